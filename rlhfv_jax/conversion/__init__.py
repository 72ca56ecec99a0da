"""Weights from PyTorch to Orbax and back: one two-way table, inferred sizes, streamed in both directions."""
