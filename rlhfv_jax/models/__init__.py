"""Pure-functional Flax models: LLaMA, BEiT-3 and their composition."""
