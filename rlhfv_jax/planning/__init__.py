"""What a training step needs on hardware that is not here, from compiling it ahead of time."""
