"""Questions in, answers out: the files around generation."""
