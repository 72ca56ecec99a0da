"""Align multimodal LLMs with fine-grained correctional human feedback (RLHF-V, CVPR 2024), in JAX."""

__version__ = "0.1.0"
