"""What to change where a configuration does not fit: the mildest change that does, compiled like the plan itself."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from rlhfv_jax import memory, settings
from rlhfv_jax.settings import Settings

# Each row is tried in this order: from what only costs time to what changes what is learned. Values are settings by
# dotted key; "smallest" stands for one pair for every share of the devices.
CHANGES: tuple[dict[str, Any], ...] = (
    {"remat": "full"},
    {"remat": "full", "optim.memory": "split"},
    {"remat": "full", "optim.memory": "split_sr"},
    {"remat": "full", "optim.memory": "split_sr", "optim.batch_size": "smallest"},
    {"lora.rank": 64, "optim.memory": "fp32"},
    {"lora.rank": 64, "optim.memory": "fp32", "remat": "full"},
    {"lora.rank": 64, "optim.memory": "fp32", "remat": "full", "optim.batch_size": "smallest"},
)


def changed(settings: Any, key: str, value: Any) -> Any:
    """The frozen settings with another value at a dotted key."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(settings, **{name: changed(getattr(settings, name), rest, value) if rest else value})


def candidates(s: Settings, shares: int) -> Iterator[tuple[str, Settings]]:
    """The flags of each change and the settings with it, without those that change nothing."""
    seen = [s]
    for row in CHANGES:
        after, flags = s, []
        for key, value in row.items():
            value = shares if value == "smallest" else value
            if _worth_it(s, key, value) and value != settings.get(s, key):
                after = changed(after, key, value)
                flags.append(f"--config.{key}={value}")
        if after not in seen:
            seen.append(after)
            yield " ".join(flags), after


def _worth_it(s: Settings, key: str, value: Any) -> bool:
    if key == "lora.rank":
        return not s.lora.rank
    if key == "optim.batch_size":
        return value < s.optim.batch_size
    if key == "optim.memory" and value != "fp32":
        able = s.dtype == "bfloat16" and s.optim.name == "adamw" and not s.lora.rank
        return able and memory.NAMES.index(value) > memory.NAMES.index(s.optim.memory)
    return True


def search(
    s: Settings, shares: int, state_gib: Callable[[Settings], float], plan: Callable[[Settings], dict], capacity: float
) -> list[dict[str, Any]]:
    """Tries the changes until one fits; what it found of each, the last one fitting where any does.

    `state_gib` gives a device's share of the state, without compiling; what is larger than the device is not compiled.
    """
    tried = []
    for flags, after in candidates(s, shares):
        if (state := state_gib(after)) > capacity:
            tried.append({"change": flags, "fits": False, "state_gib": state})
            continue
        found = plan(after)
        tried.append({"change": flags, "fits": found["fits"], "peak_gib": found.get("peak_gib"), "state_gib": state})
        if found["fits"]:
            break
    return tried
