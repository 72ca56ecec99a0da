"""What a project is: its kind, its hallucination types with their letters and keys, its reasons to skip."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.errors import UserError

KINDS = ("correction", "mhumaneval")


@dataclass(frozen=True)
class HallucinationType:
    """A type: `key` is stored and exported, `letter` marks it without color, `shortcut` is the key that picks it."""

    key: str
    label: str
    letter: str
    color: str
    shortcut: str


# Six of section 2 and four of section 4.1 of the paper, in its order. The colors differ in lightness too.
CORRECTION_TYPES = (
    HallucinationType("objects", "Objects", "O", "#b3261e", "1"),
    HallucinationType("positions", "Positions", "P", "#1f5fbf", "2"),
    HallucinationType("numbers", "Numbers", "N", "#7a4a00", "3"),
    HallucinationType("attributes", "Attributes", "A", "#6a2fa0", "4"),
    HallucinationType("actions", "Actions", "C", "#0b6b4f", "5"),
    HallucinationType("misc", "Other", "M", "#4a4f57", "6"),
)
MHUMANEVAL_TYPES = (
    *CORRECTION_TYPES[:3],
    HallucinationType("others", "Others", "M", "#4a4f57", "4"),
)
SKIP_REASONS = (
    ("image_missing", "The image is missing or broken"),
    ("prompt_unclear", "The prompt is unclear"),
    ("unsafe", "Unsafe content"),
    ("not_english", "Not in the project's language"),
    ("other", "Another reason"),
)
# Keys of segment mode, by what they do; a project may change them. The browser adds the types' shortcuts.
KEYS = {
    "next_segment": "j",
    "previous_segment": "k",
    "split": "s",
    "merge": "m",
    "revert": "u",
    "clean": "n",
    "skip": "x",
    "guideline": "g",
    "zoom": "z",
    "next_item": "]",
    "previous_item": "[",
    "weights": "w",
    "help": "?",
}


@dataclass(frozen=True)
class Project:
    """A project's settings. `seed` shuffles an annotator's order where models are compared unseen, and draws the
    share `overlap` of imported items for a second annotator; `gold` is the share of gold items in everybody's work."""

    kind: str = "correction"
    title: str = ""
    types: tuple[HallucinationType, ...] = CORRECTION_TYPES
    keys: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(KEYS))
    guideline: str = ""
    lease_minutes: float = 30.0
    seed: int = 0
    overlap: float = 0.0
    gold: float = 0.05

    @property
    def type_keys(self) -> tuple[str, ...]:
        """The types as they are stored."""
        return tuple(t.key for t in self.types)


def new(kind: str, title: str = "") -> Project:
    """The settings that the paper's section for this kind of project asks for. Raises UserError for an unknown kind."""
    if kind not in KINDS:
        raise UserError(f"There is no project kind {kind!r}; choose one of {', '.join(KINDS)}.")
    corrects = kind == "correction"
    return Project(
        kind=kind,
        title=title or ("Corrections" if corrects else "MHumanEval"),
        types=CORRECTION_TYPES if corrects else MHUMANEVAL_TYPES,
        guideline=CORRECT_GUIDELINE if corrects else LABEL_GUIDELINE,
    )


def to_dict(project: Project) -> dict[str, Any]:
    """Plain values, ready for JSON."""
    return dataclasses.asdict(project)


def from_dict(values: Mapping[str, Any], where: str = "project.json") -> Project:
    """A checked project; raises UserError for unknown fields, types without a key, and shortcuts that collide."""
    known = {f.name for f in dataclasses.fields(Project)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{where}: unknown setting {unknown[0]!r}; known are {', '.join(sorted(known))}.")
    values = dict(values)
    if values.get("kind", "correction") not in KINDS:
        raise UserError(f"{where}, kind: expected one of {', '.join(KINDS)}, found {values['kind']!r}.")
    if "types" in values:
        try:
            values["types"] = tuple(HallucinationType(**t) for t in values["types"])
        except TypeError as error:
            raise UserError(
                f"{where}, types: expected objects of key, label, letter, color, shortcut ({error})."
            ) from error
    if unknown := sorted(set(values.get("keys", {})) - set(KEYS)):
        raise UserError(f"{where}, keys: unknown action {unknown[0]!r}; known are {', '.join(KEYS)}.")
    values["keys"] = KEYS | dict(values.get("keys", {}))
    project = Project(**values)
    _check(project, where)
    return project


def _check(project: Project, where: str) -> None:
    for name, share in (("overlap", project.overlap), ("gold", project.gold)):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise UserError(f"{where}, {name}: expected a share from 0 to 1, found {share!r}.")
    if not project.types:
        raise UserError(f"{where}, types: a project needs at least one.")
    for t in project.types:
        if not all(isinstance(value, str) and value for value in dataclasses.astuple(t)):
            raise UserError(f"{where}, types: key, label, letter, color and shortcut are texts, found {t}.")
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", t.color):
            raise UserError(f"{where}, types, {t.key}: the color is written as #rrggbb, found {t.color!r}.")
    for field, used in (("key", [t.key for t in project.types]), ("letter", [t.letter for t in project.types])):
        if len(set(used)) < len(used):
            raise UserError(f"{where}, types: two types have the same {field}.")
    taken: dict[str, str] = {}
    for action, key in [*project.keys.items(), *((t.label, t.shortcut) for t in project.types)]:
        if not isinstance(key, str) or len(key) != 1:
            raise UserError(f"{where}, keys: {action} needs a single character, found {key!r}.")
        if key in taken:
            raise UserError(f"{where}, keys: {key!r} would be both {taken[key]} and {action}; change one of them.")
        taken[key] = action


CORRECT_GUIDELINE = """\
Correct only what the image contradicts. Leave everything else as the model wrote it: style, length, order, spelling.
Change as few words as make the statement true. Delete a statement that cannot be made true.
What the image does not settle is not a hallucination. Zoom in before you decide.
Give every segment the type of what was wrong: an object that is not there, a position, a number, an attribute such as \
color or material, an action, or another kind.
Two neighboring errors of two types are two segments: split them.
If nothing is wrong, say so with "No hallucination"; do not improve the text."""

LABEL_GUIDELINE = """\
Mark every stretch of words that the image contradicts, as short as makes the error clear, and give it a type: \
objects, positions, numbers, or others (attributes, actions and everything else).
One error is one segment, however often its words repeat it; an error named again is another segment.
What the image does not settle is not a hallucination. Zoom in before you decide.
If nothing is wrong, say so with "No hallucination"."""
