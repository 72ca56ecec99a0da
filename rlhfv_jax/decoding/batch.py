"""Prompts as arrays of a few static shapes, and arrays as answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from rlhfv_jax.data import images
from rlhfv_jax.errors import UserError

PROMPT_MULTIPLE = 32  # prompts are padded to a multiple of this
SHORTEST_ANSWER = 16  # the cache has room for at least so many new tokens, and then for twice as many, and so on


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a model continues.

    text: as the model reads it, in the words of its template, with its image tokens (`Engine.prompt` writes it so).
    image: a picture of any size, uint8[H, W, 3], or None where the text has no image tokens.
    seed: of its samples, in [0, 2**32); None for the settings' own.
    """

    text: str
    image: Image.Image | np.ndarray | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """A model's continuation.

    text: before the first stop string, without white space around it and without end and padding tokens.
    token_ids: everything that was generated, with what ended it.
    log_probs: of those tokens, under the model itself: float32, before penalties, temperature and limits; or None.
    finish_reason: "stop" where a stop string or a token of `stop_ids` ended it, "length" where it had no more room.
    score: of a beam search, what beams are ranked by; else None.
    """

    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...] | None
    finish_reason: Literal["stop", "length"]
    score: float | None = None


class Delta(NamedTuple):
    """A piece of a streamed answer: of which prompt, of which of its answers, and the answer where this ends it."""

    row: int
    choice: int
    text: str
    answer: Answer | None


class Arrays(NamedTuple):
    """A batch on the host: prompts right-padded, images each once; the first `real` rows are real."""

    tokens: np.ndarray  # int32[P, T]
    lengths: np.ndarray  # int32[P]
    images: np.ndarray | None  # uint8[U, S, S, 3]
    image_of: np.ndarray  # int32[P]
    seeds: np.ndarray  # uint32[P, answers]
    real: int


def rounded_up(count: int, multiple: int) -> int:
    """The next multiple."""
    return -(-count // multiple) * multiple


def power_of_two(count: int, least: int) -> int:
    """The first of least, 2 least, 4 least, ... that is at least `count`."""
    while least < count:
        least *= 2
    return least


def pad(
    tokens: Sequence[Sequence[int]],
    pictures: Sequence[np.ndarray | None],
    seeds: Sequence[int],
    answers: int,
    multiple: int,
) -> Arrays:
    """Rows filled up to a power of two, which is a multiple of the devices, with copies of the first prompt."""
    rows = power_of_two(len(tokens), multiple)
    width = rounded_up(max(map(len, tokens)), PROMPT_MULTIPLE)
    order = [*range(len(tokens)), *[0] * (rows - len(tokens))]
    padded = np.zeros((rows, width), np.int32)
    for row, i in enumerate(order):
        padded[row, : len(tokens[i])] = tokens[i]
    distinct: dict[bytes, int] = {}
    kept: list[np.ndarray] = []
    image_of = []
    for picture in pictures:
        key = b"" if picture is None else picture.tobytes()
        if picture is not None and key not in distinct:
            distinct[key] = len(kept)
            kept.append(picture)
        image_of.append(distinct.get(key, 0))
    stacked = None
    if kept:
        stacked = np.stack(kept + kept[:1] * (power_of_two(len(kept), multiple) - len(kept)))
    return Arrays(
        padded,
        np.asarray([len(tokens[i]) for i in order], np.int32),
        stacked,
        np.asarray([image_of[i] for i in order], np.int32),
        np.stack([answer_seeds(seeds[i], answers) for i in order]),
        len(tokens),
    )


def answer_seeds(seed: int, answers: int) -> np.ndarray:
    """uint32[answers], the seeds of several answers to one prompt: its own, then others that follow from it."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: expected a whole number in [0, 2**32).")
    others = [np.random.SeedSequence((seed, i)).generate_state(1)[0] for i in range(1, answers)]
    return np.asarray([seed, *others], np.uint32)


def picture(image: Image.Image | np.ndarray, size: int, fit: images.Fit = images.squashed) -> np.ndarray:
    """uint8[size, size, 3] as the model sees the image: the transform of training and evaluation."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise UserError(f"An image has shape {image.shape} of {image.dtype}; expected uint8 [height, width, 3].")
        if image.shape[:2] == (size, size):
            return image
        image = Image.fromarray(image)
    return images.resize(fit(image if image.mode == "RGB" else image.convert("RGB"), size), size)


def check_tokens(tokens: Sequence[int], image_token: int, queries: int, has_image: bool) -> None:
    """Raises UserError where the image tokens of a prompt do not fit its image, or it has no tokens at all."""
    if not tokens:
        raise UserError("The prompt is empty.")
    slots = sum(token == image_token for token in tokens)
    if has_image and not queries:
        raise UserError("The prompt has an image, but the model is a language model alone, without a vision tower.")
    if slots != (queries if has_image else 0):
        expected = f"{queries}, the tower's queries" if has_image else "none without an image"
        raise UserError(f"The prompt has {slots} image tokens; expected {expected}.")


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def by_length(tokens: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """Indices of the prompts in batches of at most `most`, of prompts of like lengths."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    return [order[first : first + most] for first in range(0, len(order), most)]
