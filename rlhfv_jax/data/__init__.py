"""Preference data, from files to padded NumPy batches. Nothing here imports jax."""
