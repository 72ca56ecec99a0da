"""The drawn world: scenes whose content is known exactly, and the small photographs of them.

A scene is one of four places holding five to seven groups of things. A group is one to three equal things of one color,
in one cell of a 4 x 4 grid; its position in words is the quadrant around that cell. Every place has six core objects,
so a model that looks too little can earn its keep by guessing what such a place usually holds: the over-generalization
of the paper's Table 2, on demand.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

_Value = TypeVar("_Value", int, str)

IMAGE_SIZE = 64
CELL = 16  # pixels a side; a cell holds one group
SLOT = 8  # pixels a side; a cell has four slots, a slot one thing of the group
GLYPH = 7  # pixels a side; the eighth keeps neighbors apart
NOISE_SIGMA = 18.0  # of the pixel noise, in gray levels of 255

MIN_GROUPS, MAX_GROUPS = 5, 7  # more than a caption mentions, so none has to end for want of things to say
CORE_SHARE = 0.7  # probability that a core object of the place is there
OTHER_SHARE = 0.1
TYPICAL_SHARE = 0.4  # probability of a class's typical color, and of its typical position
TYPICAL_NUMBER_SHARE = 0.55  # so that a blind guess at the number is right a little more often than not

KINDS = ("street", "kitchen", "bathroom", "living room")
NUMBERS = ("one", "two", "three")
POSITIONS = ("top-left", "top-right", "bottom-left", "bottom-right")
COLORS = {
    "red": (222, 48, 44),
    "green": (48, 176, 64),
    "blue": (48, 92, 232),
    "yellow": (236, 212, 40),
    "purple": (164, 56, 196),
    "white": (246, 246, 246),
}
# Core objects in the order in which a careless describer assumes them.
CORE_OBJECTS = {
    "street": ("person", "car", "bus", "bicycle", "dog", "bench"),
    "kitchen": ("bottle", "bowl", "cup", "stove", "sink", "chair"),
    "bathroom": ("toilet", "sink", "mirror", "towel", "bottle", "cup"),
    "living room": ("couch", "book", "lamp", "chair", "person", "dog"),
}
_TINTS = {"street": (92, 98, 108), "kitchen": (122, 106, 84), "bathroom": (82, 116, 118), "living room": (112, 88, 98)}


class Typical(NamedTuple):
    """What is usual for a class: `number` in 1..3, a `color` word and a `position` word."""

    number: int
    color: str
    position: str


class _Class(NamedTuple):
    typical: Typical
    rows: str  # one hexadecimal digit a row: the left four of seven columns, the right three mirror them


# The shapes were picked to be far apart: any two differ in at least 21 of 49 pixels.
_CLASSES = {
    "person": _Class(Typical(2, "blue", "bottom-left"), "7d2c17d"),
    "car": _Class(Typical(2, "red", "bottom-right"), "97d3e92"),
    "bus": _Class(Typical(1, "yellow", "top-left"), "a2c45ad"),
    "bicycle": _Class(Typical(3, "green", "bottom-left"), "c8bea0b"),
    "dog": _Class(Typical(1, "white", "bottom-right"), "701be34"),
    "bench": _Class(Typical(1, "purple", "top-right"), "62722df"),
    "bottle": _Class(Typical(3, "green", "top-left"), "5e88cce"),
    "bowl": _Class(Typical(2, "white", "bottom-left"), "8946366"),
    "cup": _Class(Typical(3, "red", "top-right"), "b1b93c8"),
    "stove": _Class(Typical(1, "white", "bottom-right"), "b72e8e2"),
    "sink": _Class(Typical(1, "blue", "top-right"), "d965c95"),
    "chair": _Class(Typical(3, "purple", "bottom-left"), "55cf508"),
    "toilet": _Class(Typical(1, "white", "bottom-right"), "1bbd433"),
    "mirror": _Class(Typical(1, "yellow", "top-left"), "ae5891b"),
    "towel": _Class(Typical(2, "purple", "top-left"), "7cd29a1"),
    "couch": _Class(Typical(2, "red", "bottom-right"), "fe16658"),
    "book": _Class(Typical(3, "blue", "top-right"), "6105f8b"),
    "lamp": _Class(Typical(2, "yellow", "top-left"), "24aca95"),
}
CLASSES = tuple(_CLASSES)
TYPICAL = {name: entry.typical for name, entry in _CLASSES.items()}


@dataclass(frozen=True)
class Group:
    """One to three equal things: class `name`, `number` in 1..3, `color` word, `cell` in 0..15 counted row by row."""

    name: str
    number: int
    color: str
    cell: int

    @property
    def position(self) -> str:
        """The quadrant of the group's cell, one of `POSITIONS`."""
        row, column = divmod(self.cell, 4)
        return POSITIONS[2 * (row // 2) + column // 2]

    @property
    def words(self) -> tuple[str, str, str, str]:
        """The true mention of the group: name, number, color and position as words."""
        return self.name, NUMBERS[self.number - 1], self.color, self.position


@dataclass(frozen=True)
class Scene:
    """A place of one of `KINDS`, its groups, and the seed of what the camera adds (light, slots, pixel noise).

    Raises:
      ValueError: two groups share a class or a cell. The words could then not tell them apart.
    """

    kind: str
    groups: tuple[Group, ...]
    seed: int

    def __post_init__(self) -> None:
        if len({group.name for group in self.groups}) < len(self.groups):
            raise ValueError(f"Scene has two groups of one class: {[group.name for group in self.groups]}.")
        if len({group.cell for group in self.groups}) < len(self.groups):
            raise ValueError(f"Scene has two groups in one cell: {[group.cell for group in self.groups]}.")

    @property
    def by_name(self) -> dict[str, Group]:
        """The groups by class name."""
        return {group.name: group for group in self.groups}


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: place uniform, each class present by `CORE_SHARE` or `OTHER_SHARE`, given five to seven groups."""
    kind = KINDS[rng.integers(len(KINDS))]
    shares = np.array([CORE_SHARE if name in CORE_OBJECTS[kind] else OTHER_SHARE for name in CLASSES])
    while True:
        present = np.flatnonzero(rng.random(len(CLASSES)) < shares)
        if MIN_GROUPS <= len(present) <= MAX_GROUPS:
            break
    free = set(range(16))
    groups = []
    for index in rng.permutation(present):
        group = _sample_group(CLASSES[index], free, rng)
        free.remove(group.cell)
        groups.append(group)
    return Scene(kind, tuple(groups), int(rng.integers(2**31)))


def sample_attributes(name: str, rng: np.random.Generator) -> Typical:
    """Draw a number, a color and a position for class `name` as the world does: the typical value more often."""
    typical = TYPICAL[name]
    number = _prefer(typical.number, (1, 2, 3), TYPICAL_NUMBER_SHARE, rng)
    color = _prefer(typical.color, tuple(COLORS), TYPICAL_SHARE, rng)
    return Typical(number, color, _prefer(typical.position, POSITIONS, TYPICAL_SHARE, rng))


def draw(scene: Scene, noise_sigma: float = NOISE_SIGMA) -> np.ndarray:
    """Photograph a scene: uint8[64, 64, 3], a pure function of the scene (its seed included) and `noise_sigma`."""
    rng = np.random.default_rng(scene.seed)
    light, slope_x, slope_y = rng.uniform((0.85, -18.0, -18.0), (1.15, 18.0, 18.0))
    ramp = np.linspace(-1.0, 1.0, IMAGE_SIZE, dtype=np.float32)
    shade = np.float32(slope_x) * ramp[None, :] + np.float32(slope_y) * ramp[:, None]
    canvas = shade[:, :, None] + np.asarray(_TINTS[scene.kind], np.float32)
    for group in scene.groups:
        mask, color = _MASKS[group.name], COLORS[group.color]
        row, column = divmod(group.cell, 4)
        for slot in rng.permutation(4)[: group.number]:
            top, left = row * CELL + slot // 2 * SLOT, column * CELL + slot % 2 * SLOT
            canvas[top : top + GLYPH, left : left + GLYPH][mask] = color
    canvas *= np.float32(light)
    if noise_sigma:
        canvas += np.float32(noise_sigma) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def cell_labels(scene: Scene) -> np.ndarray:
    """What each cell shows, the target of the vision pretraining: int32[16], values below `NUM_CELL_LABELS`.

    0 is an empty cell; every (class, color, number) has its own label above it.
    """
    labels = np.zeros(16, np.int32)
    for group in scene.groups:
        class_and_color = CLASSES.index(group.name) * len(COLORS) + tuple(COLORS).index(group.color)
        labels[group.cell] = 1 + class_and_color * len(NUMBERS) + group.number - 1
    return labels


NUM_CELL_LABELS = 1 + len(CLASSES) * len(COLORS) * len(NUMBERS)


def png_bytes(image: np.ndarray) -> bytes:
    """Encode `image`, uint8[H, W, 3], as a PNG file's bytes."""
    from PIL import Image  # only this function needs Pillow

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _sample_group(name: str, free: set[int], rng: np.random.Generator) -> Group:
    # Position follows the class's habit; a full quadrant (four of six groups there) sends the group anywhere free.
    number, color, position = sample_attributes(name, rng)
    cells = [cell for cell in sorted(free) if Group(name, number, color, cell).position == position] or sorted(free)
    return Group(name, number, color, cells[rng.integers(len(cells))])


def _prefer(typical: _Value, values: tuple[_Value, ...], share: float, rng: np.random.Generator) -> _Value:
    if rng.random() < share:
        return typical
    others = [value for value in values if value != typical]
    return others[rng.integers(len(others))]


def _mask(rows: str) -> np.ndarray:
    bits = np.array([[int(digit, 16) >> (3 - min(c, GLYPH - 1 - c)) & 1 for c in range(GLYPH)] for digit in rows])
    return bits.astype(bool)


_MASKS = {name: _mask(entry.rows) for name, entry in _CLASSES.items()}
