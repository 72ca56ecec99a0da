"""What a cached file depends on: its name, and what differs where it is of something else."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rlhfv_jax import trees
from rlhfv_jax.errors import UserError


def key(facts: Mapping[str, Any]) -> str:
    """sha256 of the facts, nested plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check(file: str, stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raises UserError, which begins with `file`, naming every fact in which what it stores differs from this run."""
    found, wanted = dict(trees.paths(stored)), dict(trees.paths(json.loads(json.dumps(facts))))
    lines = [
        f"{name} ({_short(found.get(name))} there, {_short(wanted.get(name))} here)"
        for name in sorted({*found, *wanted})
        if found.get(name) != wanted.get(name)
    ]
    if lines:
        raise UserError(f"{file} was made for something else: {'; '.join(lines)}.")


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) > 32 else text
