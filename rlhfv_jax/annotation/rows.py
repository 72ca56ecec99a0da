"""What an import works on, whatever the file: an item as a row, and the finished work that a file may bring along."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.annotation.diff import Cuts

NO_CUTS = Cuts()


@dataclass(frozen=True)
class Work:
    """One person's annotation of an item, from a file; times are seconds since 1970, 0 where the file has none.

    `number` is the person's number in the store that the file came from, 0 where it came from elsewhere.
    """

    person: str
    verdict: str
    corrected: str
    segments: tuple[Typed, ...] = ()
    cuts: Cuts = NO_CUTS
    state: str = "submitted"
    skip_reason: str = ""
    rev: int = 1
    active_ms: int = 0
    opened: float = 0.0
    updated: float = 0.0
    number: int = 0


@dataclass(frozen=True)
class Decision:
    """An adjudication: the reviewer by name and number, what was decided, why, and when."""

    reviewer: str
    number: int
    result: dict[str, Any]
    reason: str
    at: float


@dataclass(frozen=True)
class Place:
    """An item's settings that only an archive has; `number` is its number in the store that it came from."""

    number: int
    n_annotators: int
    priority: float
    gold_json: str | None
    decision: Decision | None = None


class Row(NamedTuple):
    """A row of any file, before it is checked; `image` gives the encoded bytes when called.

    `works` makes the finished work from the item's texts once these are checked and normalized. `key` tells images
    apart whose names may be the same.
    """

    where: str
    ext_id: str
    image: Callable[[], bytes]
    prompt: Any
    response: Any
    prefill: Any
    model: str
    source: dict[str, Any]
    name: str
    works: Callable[[str], list[Work]] | None = None
    place: Place | None = None
    key: str = ""
    gold: Any = None


@dataclass(frozen=True)
class Options:
    """How to read: `questions` holds the images of answers, `images` is the folder that image paths start from.

    `form` names the format where the file's name does not tell it. `confined` refuses image paths outside `images`,
    for files that came over the network. `prefill` starts from a pair's chosen answer. `keep_going` takes the good
    rows of a file with bad ones. `overlap` is the share of the items that is drawn for a second annotator; None: the
    project's.
    """

    questions: str = ""
    images: str = ""
    confined: bool = False
    prefill: bool = False
    n_annotators: int = 1
    keep_going: bool = False
    dry_run: bool = False
    form: str = "auto"
    overlap: float | None = None
