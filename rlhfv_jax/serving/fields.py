"""Values of a JSON body, checked: each function returns what it names or raises a Refusal that names the field."""

import json
import math
import reprlib
from typing import Any, NoReturn

from rlhfv_jax.serving.refusal import bad

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60


def shown(value: Any) -> str:
    """A value for an error's sentence, short however large or deep it is."""
    return _shown.repr(value)


def body(data: bytes) -> dict[str, Any]:
    """The JSON object of a request's body; NaN and Infinity, which are no JSON, are refused."""
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except RecursionError as error:
        raise bad("The body is not a chat completion: it is nested too deeply.") from error
    except ValueError as error:
        raise bad(f"The body is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise bad(f"The body is {shown(found)}; expected a JSON object with model and messages.")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def text(value: Any, param: str) -> str:
    """A string of real characters; half a surrogate pair, which JSON can spell, is none."""
    if not isinstance(value, str):
        raise bad(f"{param} is {shown(value)}; expected a string.", param)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise bad(
            f"{param} has half a surrogate pair at character {error.start}; expected whole characters.", param
        ) from error
    return value


def flag(value: Any, param: str) -> bool:
    """A field that is true or false."""
    if not isinstance(value, bool):
        raise bad(f"{param} is {shown(value)}; expected true or false.", param)
    return value


def whole(value: Any, param: str, low: int, high: int) -> int:
    """An integer in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad(f"{param} is {shown(value)}; expected a whole number from {low} to {high}.", param)
    return value


def number(value: Any, param: str, low: float, high: float) -> float:
    """A finite number in [low, high]."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not fits or not math.isfinite(value):
        raise bad(f"{param} is {shown(value)}; expected a number from {low:g} to {high:g}.", param)
    return float(value)
