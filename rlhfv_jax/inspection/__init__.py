"""What the loss sees of a data set: one row in every detail, or the whole set in numbers."""
