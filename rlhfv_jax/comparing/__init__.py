"""Several models' answers to the same questions, side by side: read, put on one page, voted on."""
