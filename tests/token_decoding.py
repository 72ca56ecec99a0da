"""Decoding over token ids, without tokenizer and engine: what the tests of `decoding` share."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rlhfv_jax.decoding import beam, processors, sample
from rlhfv_jax.decoding.forward import Inputs, Network
from rlhfv_jax.decoding.sample import Progress
from rlhfv_jax.decoding.settings import GenerationSettings


class TokenDecoder:
    """Keeps its programs, so that equal shapes compile once in a module of tests."""

    def __init__(self, config, params):
        self.network = Network(config)
        self.params = jax.jit(self.network.unstack)(params)
        self.features = jax.jit(self.network.features)
        self.programs: dict = {}

    def state(
        self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, image=None, image_of=None, seeds=None
    ):
        """The final state; prompts of mixed lengths, right-padded to a multiple of 8."""
        mode = (beam if settings.num_beams > 1 else sample).mode(settings)
        if mode not in self.programs:
            module = beam if isinstance(mode, beam.Mode) else sample
            self.programs[mode] = module.programs(self.network, mode)
        width = -(-max(map(len, prompts)) // 8) * 8
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        lengths = np.asarray([len(prompt) for prompt in prompts], np.int32)
        features = None if image is None else self.features(self.params, image)
        inputs = Inputs(tokens, lengths, features, None if image is None else np.asarray(image_of, np.int32))
        vocabulary = self.network.llm.padded_vocab
        controls = processors.controls(settings, vocabulary, settings.stop_ids, processors.no_stop_strings())
        limit, program = jnp.int32(settings.max_new_tokens), self.programs[mode]
        seeds = (
            None if settings.num_beams > 1 else np.asarray([0] * len(prompts) if seeds is None else seeds, np.uint32)
        )
        state = program.start(self.params, inputs, seeds, controls, limit, slots=settings.max_new_tokens)
        return program.advance(self.params, state, controls, limit, width=width)

    def progress(self, prompts, settings: GenerationSettings, **more) -> Progress:
        state = self.state(prompts, settings, **more)
        module = beam if settings.num_beams > 1 else sample
        return jax.device_get(module._progress(state, settings.num_answers))

    def ids(self, prompts, settings: GenerationSettings, **more) -> list[list[int]]:
        """The tokens of every answer, in order."""
        found = self.progress(prompts, settings, **more)
        return [row[:length].tolist() for row, length in zip(found.tokens, found.lengths, strict=True)]
