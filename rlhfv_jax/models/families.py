"""The model families: one line each. All that a family is stands in its own file, as a subclass of `vlm.VlmConfig`."""

from collections.abc import Mapping
from typing import Any

from rlhfv_jax.errors import UserError
from rlhfv_jax.models.llava import Llava15Config, LlavaConfig
from rlhfv_jax.models.muffin import MuffinConfig
from rlhfv_jax.models.omnilmm import OmniLMMConfig
from rlhfv_jax.models.vlm import VlmConfig

FAMILIES: dict[str, type[VlmConfig]] = {
    "muffin": MuffinConfig,
    "llava": LlavaConfig,
    "llava15": Llava15Config,
    "omnilmm": OmniLMMConfig,
}


def config_class(model: Mapping[str, Any]) -> type[VlmConfig]:
    """The class that a model's plain values are of; records from before there were families are Muffin's.

    Raises UserError for an unknown family.
    """
    name = model.get("family", "muffin")
    if name not in FAMILIES:
        raise UserError(f"config.model.family={name!r} is not known; choose one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
