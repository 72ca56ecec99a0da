"""The forms of models in PyTorch: one line each, and how one is recognized."""

from collections.abc import Iterable

from rlhfv_jax.conversion.layout import Config, Layout
from rlhfv_jax.conversion.llava import Llava, Llava15, LlavaHf
from rlhfv_jax.conversion.muffin import Muffin
from rlhfv_jax.conversion.omnilmm import OmniLMM
from rlhfv_jax.errors import UserError
from rlhfv_jax.models.llama import LlamaConfig

LLAMA_ALONE = Layout()
FORMS = (Muffin(), Llava(), Llava15(), LlavaHf(), OmniLMM(), LLAMA_ALONE)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in FORMS}


def recognize(names: Iterable[str]) -> Layout:
    """The form whose marks the most names begin with; a LLaMA alone where there are none."""
    found = {layout: sum(name.startswith(layout.marks) for name in names) for layout in LAYOUTS.values()}
    best = max(found, key=lambda layout: found[layout])
    return best if found[best] else LLAMA_ALONE


def of_tower(names: Iterable[str], found: Layout) -> Layout:
    """The form that is built with a bare tower of these names: that of the rest where it takes such a tower.

    Raises UserError for a tower that is not known.
    """
    for layout in (found, *LAYOUTS.values()):
        if layout.tower_marks and any(name.startswith(layout.tower_marks) for name in names):
            return layout
    raise UserError(
        "--tower is no vision tower that is known: expected a bare BEiT-3 (beit3_large_patch16_224.pth) or CLIP's."
    )


def of_config(config: Config, name: str = "") -> Layout:
    """The form called `name` of a model, by default its family's first; raises UserError where it has no such form."""
    family = "" if isinstance(config, LlamaConfig) else config.family
    fitting = {layout.name: layout for layout in LAYOUTS.values() if layout.family == family}
    if name and name not in fitting:
        raise UserError(f"--layout={name} is no form of this model; choose one of {', '.join(fitting)}.")
    return fitting[name] if name else next(iter(fitting.values()))
