"""Endless drawn data with random access: what a row shows and says follows from (seed, split, row) alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rlhfv_jax.data import buckets, images, pipeline
from rlhfv_jax.data.chat import WORDS as TEMPLATE
from rlhfv_jax.data.chat import encode_turns
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.miniature import captions, world
from rlhfv_jax.miniature.captions import CaptionNoise
from rlhfv_jax.structs import IGNORE, SftBatch

# Disjoint splits; prompts for preference pairs, and a development split apart from the held-out one.
SPLITS = ("vision", "sft", "it_vqa", "prompts", "dev", "test")
SIX_QUESTIONS = 40  # tokens with their answers and marks, image borders and <s>
_MENTION = ("person", "one", "red", "top-left")
LONGEST = captions.prompt("living room"), captions.render("living room", [_MENTION] * captions.MENTIONS)


def rng_of(seed: int, split: str, row: int, stream: int = 0) -> np.random.Generator:
    """The random stream of one row."""
    return np.random.default_rng([seed, SPLITS.index(split), row, stream])


def scenes(seed: int, split: str, count: int) -> list[world.Scene]:
    """The first `count` scenes of a split."""
    return [world.sample_scene(rng_of(seed, split, row)) for row in range(count)]


def row_length(tokenizer: MuffinTokenizer, queries: int) -> int:
    """The static length of every row: a caption fits, and so do about six short questions."""
    tokens, _, _ = encode_turns(tokenizer, TEMPLATE, [LONGEST], queries)
    return buckets.rounded(max(len(tokens), queries + SIX_QUESTIONS))


class VisionBatch(NamedTuple):
    """Images and what each of their 16 cells shows, for the vision warm-up."""

    image: Any  # uint8[B, 64, 64, 3]
    labels: Any  # int32[B, 16]


@dataclass(frozen=True)
class VisionSource:
    """`source[row]` is a VisionBatch without its leading axis (a grain data source)."""

    seed: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: Any) -> VisionBatch:
        scene = world.sample_scene(rng_of(self.seed, "vision", int(row)))
        return VisionBatch(world.draw(scene), world.cell_labels(scene))


@dataclass(frozen=True)
class TextSource:
    """Supervised rows about drawn scenes: `source[row]` is an SftBatch without its leading axis.

    Each image has a caption row (unless `caption_noise` is None) and a row of as many short questions as fit.
    """

    seed: int
    split: str
    size: int
    tokenizer: MuffinTokenizer
    queries: int
    length: int  # of a row, from `row_length`
    caption_noise: CaptionNoise | None
    vqa_noise: float

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: Any) -> SftBatch:
        row = int(row)
        scene = world.sample_scene(rng_of(self.seed, self.split, row))
        rng = rng_of(self.seed, self.split, row, stream=1)
        conversations = [self._questions(captions.vqa_turns(scene, rng, self.vqa_noise))]
        if self.caption_noise is not None:
            conversations.insert(0, [(captions.prompt(scene.kind), captions.caption(scene, rng, self.caption_noise))])
        image = world.draw(scene)
        return self._item(image, conversations, row)

    def draw(self, row: Any, augment: images.Augmentation, rng: np.random.Generator) -> SftBatch:
        """`source[row]` with its image augmented, never mirrored: the captions name positions."""
        item = self[row]
        return item._replace(image=augment(Image.fromarray(item.image), item.image.shape[0], rng, False))

    def _questions(self, turns: Sequence[captions.Turn]) -> list[tuple[str, str]]:
        """As many turns as fit a row; a turn is its words and two marks."""
        room = self.length - self.queries - 3  # image borders and <s>
        chosen = []
        for turn in turns:
            room -= len(turn.question.split()) + len(turn.answer.split()) + 2
            if room < 0:
                break
            chosen.append((turn.question, turn.answer))
        return chosen

    def _item(self, image: np.ndarray, conversations: Sequence[Sequence[tuple[str, str]]], row: int) -> SftBatch:
        encoded = [encode_turns(self.tokenizer, TEMPLATE, turns, self.queries) for turns in conversations]
        labels = np.stack([pipeline.pad(labels, self.length - 1, IGNORE) for _, labels, _ in encoded])
        return SftBatch(
            image=image,
            tokens=np.stack([pipeline.pad(tokens, self.length, self.tokenizer.pad_id) for tokens, _, _ in encoded]),
            labels=labels,
            weights=(labels != IGNORE).astype(np.float32),
            lengths=np.asarray([len(tokens) for tokens, _, _ in encoded], np.int32),
            row=np.int32(row),
            valid=np.bool_(True),
        )
