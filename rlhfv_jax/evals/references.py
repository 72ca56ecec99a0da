"""The user's folder of official files: each is found by its official name, or one sentence says where it comes from."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.errors import UserError

LEVELS = ("", "*/", "*/*/")  # how deep files are looked for; the shallowest is taken


def find(references: str | Path, names: str | Sequence[str], source: str) -> Path:
    """The file of that name (or of the first of several that is there), at most two folders down.

    Raises:
      UserError: it is missing, or stands in two folders at the same depth.
    """
    folder = Path(references)
    names = [names] if isinstance(names, str) else list(names)
    if not folder.is_dir():
        raise UserError(f"--references={folder} is no folder; {names[0]} is looked for there, it comes from {source}.")
    for name in names:
        for level in LEVELS:
            found = sorted(path for path in folder.glob(level + name) if path.is_file())
            if len(found) > 1:
                raise UserError(f"{name} stands in {found[0].parent} and in {found[1].parent}; leave one of them.")
            if found:
                return found[0]
    raise UserError(f"{folder / names[0]} is missing; it comes from {source}.")


def read_json(path: Path) -> Any:
    """The file's value. Raises UserError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}).") from error


def read_lists(path: Path, fields: Sequence[str]) -> dict[str, Any]:
    """A JSON object in which each of the fields is a list of objects, as COCO and VQA have them.

    Raises UserError for anything else.
    """
    values = read_json(path)
    for field in fields:
        rows = values.get(field) if isinstance(values, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: expected an object with the list {field!r} of objects.")
    return values
