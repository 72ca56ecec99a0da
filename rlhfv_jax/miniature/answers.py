"""Answers of a model about drawn scenes: captions at a temperature, and short answers to clean questions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax.data.chat import WORDS as TEMPLATE
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.decoding import processors, sample
from rlhfv_jax.decoding.forward import Inputs, Network
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.metrics import Reporter
from rlhfv_jax.miniature import captions, corpus, world
from rlhfv_jax.models import vlm

IMAGES_PER_BATCH = 250
LONGEST_ANSWER = 34  # tokens; four mentions take 25


class Answerer:
    """Compiles each kind of decoding once and answers with any parameters."""

    def __init__(self, model: vlm.Muffin, tokenizer: MuffinTokenizer):
        self._model, self._tokenizer = model, tokenizer
        self._network = Network(model.config, model.dtype)
        self._unstack, self._features = jax.jit(self._network.unstack), jax.jit(self._network.features)
        self._programs: dict[sample.Mode, sample.Programs] = {}
        self._stop = tokenizer.encode(TEMPLATE.end_of_turn)[-1]

    def describe(self, params: Any, scenes: Sequence[world.Scene], temperature: float, seed: int) -> list[str]:
        """One caption a scene. The same seed gives every model the same random numbers, for paired comparisons."""
        prompts = [[captions.prompt(scene.kind)] for scene in scenes]
        return [row[0] for row in self._answer(params, scenes, prompts, LONGEST_ANSWER, temperature, seed)]

    def reply(self, params: Any, scenes: Sequence[world.Scene], questions: Sequence[Sequence[str]]) -> list[list[str]]:
        """Greedy one-word answers to the same number of questions for each scene."""
        return self._answer(params, scenes, questions, 1, 0.0, 0)

    def _answer(
        self,
        params: Any,
        scenes: Sequence[world.Scene],
        questions: Sequence[Sequence[str]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[str]]:
        settings = GenerationSettings(max_new_tokens, temperature=temperature)
        params = self._unstack(params)
        rows = len(questions[0])
        prompts = [[self._prompt(question) for question in group] for group in questions]
        width = max(len(prompt) for group in prompts for prompt in group)
        seeds = np.random.SeedSequence(seed).generate_state(len(scenes) * rows)
        answers: list[list[str]] = []
        with Reporter(f"answers at temperature {temperature}", len(scenes), unit="scenes") as reporter:
            for first in range(0, len(scenes), IMAGES_PER_BATCH):
                # A last batch is filled up with its first scene, so that one shape compiles.
                picked = list(range(first, min(first + IMAGES_PER_BATCH, len(scenes))))
                filled = picked + [first] * (IMAGES_PER_BATCH - len(picked))
                flat = [prompt for i in filled for prompt in prompts[i]]
                tokens = np.full((len(flat), width), self._tokenizer.pad_id, np.int32)
                for row, prompt in enumerate(flat):
                    tokens[row, : len(prompt)] = prompt
                lengths = np.asarray([len(prompt) for prompt in flat], np.int32)
                images = np.stack([world.draw(scenes[i]) for i in filled])
                row_seeds = np.concatenate([seeds[i * rows : (i + 1) * rows] for i in filled])
                image_of = np.repeat(np.arange(len(filled), dtype=np.int32), rows)
                inputs = Inputs(tokens, lengths, self._features(params, images), image_of)
                out = self._decode(params, inputs, row_seeds, settings)[: len(picked) * rows]
                texts = [self._text(row) for row in out]
                answers += [texts[i * rows : (i + 1) * rows] for i in range(len(picked))]
                reporter.update(len(answers))
        return answers

    def _prompt(self, question: str) -> list[int]:
        return self._tokenizer.encode(TEMPLATE.prompt(question, self._model.config.tower.queries).rstrip())

    def _text(self, tokens: list[int]) -> str:
        return self._tokenizer.decode([t for t in tokens if t not in (self._stop, self._tokenizer.pad_id)]).strip()

    def _decode(self, params: Any, inputs: Inputs, seeds: np.ndarray, settings: GenerationSettings) -> list[list[int]]:
        mode, limit = sample.mode(settings), jnp.int32(settings.max_new_tokens)
        if mode not in self._programs:
            self._programs[mode] = sample.programs(self._network, mode)
        vocabulary, program = self._network.llm.padded_vocab, self._programs[mode]
        controls = processors.controls(settings, vocabulary, [self._stop], processors.no_stop_strings())
        state = program.start(params, inputs, seeds, controls, limit, slots=settings.max_new_tokens)
        state = program.advance(params, state, controls, limit, width=inputs.tokens.shape[1])
        tokens, ends = np.asarray(state.tokens), np.asarray(state.lengths)
        return [row[:end].tolist() for row, end in zip(tokens, ends, strict=True)]


def ask(scenes: Sequence[world.Scene], seed: int, split: str) -> list[list[captions.Turn]]:
    """Nine clean questions with their true answers for each scene of a split."""
    return [captions.vqa_turns(scene, corpus.rng_of(seed, split, row, stream=2)) for row, scene in enumerate(scenes)]
