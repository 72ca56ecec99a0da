"""Texts and images in, answers out: a checkpoint with its tokenizer, as programs and servers use it.

engine = Engine.load("runs/rlhfv")
prompt = engine.prompt("What is in the image?", image)
[[answer]] = engine.answer([prompt], GenerationSettings(stop=engine.stop))
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhfv_jax import adapters, checkpoint, settings, sharding
from rlhfv_jax.data import images, tokenizer_record
from rlhfv_jax.data.chat import Template, Turn, find_template
from rlhfv_jax.data.tokenizer import Tokenizer
from rlhfv_jax.decoding import batch, beam, processors, sample, stops
from rlhfv_jax.decoding.batch import Answer, Arrays, Delta, Prompt
from rlhfv_jax.decoding.forward import Inputs, Network
from rlhfv_jax.decoding.processors import Controls
from rlhfv_jax.decoding.sample import Programs, Progress
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.decoding.text import TextStream, cut
from rlhfv_jax.errors import UserError
from rlhfv_jax.models import vlm
from rlhfv_jax.models.llama import LlamaConfig
from rlhfv_jax.structs import IGNORE

NO_TOKEN = -1  # an end token that never comes


class Engine:
    """Answers prompts with one model; not for several threads at once.

    Programs compile once per bucket: prompts padded to a multiple of 32 tokens, room for 16, 32, 64, ... new tokens,
    1, 2, 4, ... rows, times the few things that settings switch on or off. Values of settings compile nothing.

    Args:
      config: of a model of any family, or a LLaMA's alone, which answers prompts without images.
      params: as the model has them, without adapters; consumed where they lie on the mesh already.
      template: what `prompt` puts questions in, and whose end of turn `stop` is.
      batch_size: rows (prompts times beams or answers) that are decoded together, at most.
    """

    def __init__(
        self,
        config: vlm.VlmConfig | LlamaConfig,
        params: Any,
        tokenizer: Tokenizer,
        template: str = "muffin",
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        batch_size: int = 32,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.template = find_template(template)
        self.stop = (self.template.end_of_turn.strip(),)
        self.mesh = mesh if mesh is not None else sharding.make_mesh(data=-1, fsdp=1)
        self.batch_size = batch_size
        self.network = Network(config, jnp.dtype(dtype))
        self._ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self._hidden = stops.hidden_ids(tokenizer)
        self._program = functools.cache(self._make_program)
        self._stop_table = functools.lru_cache(maxsize=16)(self._make_stop_table)
        self._unstack = jax.jit(self.network.unstack)
        self.replace_params(params)
        with jax.set_mesh(self.mesh):
            self._features = jax.jit(self.network.features)
            self._log_probs = jax.jit(self.network.log_probs)

    @classmethod
    def load(
        cls, path: str | Path, dtype: Any = jnp.float32, mesh: Mesh | None = None, batch_size: int = 32
    ) -> "Engine":
        """The model of a checkpoint or run, with its tokenizer and template; a LoRA run's merged with its base."""
        meta = checkpoint.read_meta(path)
        config, tokenizer = settings.model_of(meta), tokenizer_record.from_record(meta)
        mesh = mesh if mesh is not None else sharding.make_mesh(data=-1, fsdp=1)
        with jax.set_mesh(mesh):
            params = adapters.restore_params(path, vlm.abstract_params(config), mesh, jnp.dtype(dtype))
        return cls(config, params, tokenizer, meta.get("template", "muffin"), dtype, mesh, batch_size)

    def replace_params(self, params: Any) -> None:
        """Answers with these parameters from now on, without compiling anew; None frees the ones before."""
        with jax.set_mesh(self.mesh):
            self._params = None if params is None else self._unstack(params)

    def prompt(
        self,
        question: str,
        image: Any = None,
        template: Template | None = None,
        history: Sequence[Turn] = (),
        seed: int | None = None,
    ) -> Prompt:
        """A question, after earlier turns, in the words of a template (default: the checkpoint's own)."""
        queries = self.network.queries if image is not None else 0
        return Prompt((template or self.template).prompt(question, queries, history), image, seed)

    def picture(self, image: Any) -> np.ndarray:
        """uint8[S, S, 3], a picture of any size as the model sees it; its family says how it becomes a square."""
        assert isinstance(self.config, vlm.VlmConfig), "a LLaMA alone sees no images"
        return batch.picture(image, self.config.tower.image_size, images.fit(self.config.fit, self.config.mean))

    def answer(self, prompts: Sequence[Prompt], settings: GenerationSettings) -> list[list[Answer]]:
        """`settings.num_answers` answers to each prompt, the best first where they were searched for.

        Raises UserError, naming the prompt, where one has no fit number of image tokens.
        """
        tokens, pictures = self._read(prompts)
        most = max(1, self.batch_size // max(settings.num_beams, settings.num_answers))
        answers: list[list[Answer]] = [[] for _ in prompts]
        for part in batch.by_length(tokens, most):
            for i, found in zip(part, self._answer_part(part, prompts, tokens, pictures, settings), strict=True):
                answers[i] = found
        return answers

    def stream(self, prompts: Sequence[Prompt], settings: GenerationSettings, every: int = 4) -> Iterator[list[Delta]]:
        """The same answers as they come, `every` tokens at a time, for at most `batch_size` rows.

        Each item holds what is new in any row. The pieces of a row are together exactly its answer's text, and its
        last piece brings the answer. A beam search knows its text only at the end.
        """
        tokens, pictures = self._read(prompts)
        yield from self._stream(list(range(len(prompts))), prompts, tokens, pictures, settings, every)

    def score(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """The mean log-prob of a token, float32, of each prompt's continuations (as `Template.continuation` has them).

        Raises UserError, naming the prompt, as `answer` does, and where a continuation has no tokens of its own.
        """
        asked, pictures = self._read(prompts)
        rows, labels, owner = [], [], []
        for i, texts in enumerate(continuations):
            for text in texts:
                row = self.tokenizer.encode(prompts[i].text + text)
                start = batch.common_prefix(asked[i], row)
                if start == len(row):
                    raise UserError(f"Prompt {i}: the continuation {text!r} has no tokens.")
                rows.append(row)
                labels.append([IGNORE] * (start - 1) + row[start:])
                owner.append(i)
        means = np.zeros(len(rows), np.float32)
        for part in batch.by_length(rows, self.batch_size):
            arrays = batch.pad(
                [rows[r] for r in part], [pictures[owner[r]] for r in part], [0] * len(part), 1, self._ways
            )
            targets = np.full((len(arrays.tokens), arrays.tokens.shape[1] - 1), IGNORE, np.int32)
            for place, r in enumerate(part):
                targets[place, : len(labels[r])] = labels[r]
            with jax.set_mesh(self.mesh):
                inputs, _ = self._inputs(arrays)
                found = jax.device_get(self._log_probs(self._params, inputs, sharding.put(targets, mesh=self.mesh)))
            for place, r in enumerate(part):
                means[r] = found[place][targets[place] != IGNORE].mean()
        values = iter(map(float, means))
        return [[next(values) for _ in texts] for texts in continuations]

    def _answer_part(self, part, prompts, tokens, pictures, settings) -> list[list[Answer]]:
        found: list[list[Answer]] = [[] for _ in part]
        for deltas in self._stream(part, prompts, tokens, pictures, settings, settings.max_new_tokens):
            for delta in deltas:
                if delta.answer is not None:
                    found[delta.row].append(delta.answer)
        return found

    def _stream(self, part, prompts, tokens, pictures, settings, every) -> Iterator[list[Delta]]:
        seeds = [settings.seed if (seed := prompts[i].seed) is None else seed for i in part]
        arrays = batch.pad(
            [tokens[i] for i in part], [pictures[i] for i in part], seeds, settings.num_answers, self._ways
        )
        with jax.set_mesh(self.mesh):
            controls, texts = self._controls(settings)
            program = self._program(beam.mode(settings) if settings.num_beams > 1 else sample.mode(settings))
            slots = batch.power_of_two(settings.max_new_tokens, batch.SHORTEST_ANSWER)
            inputs, row_seeds = self._inputs(arrays)
            limit = jnp.int32(settings.max_new_tokens)
            state = program.start(self._params, inputs, row_seeds, controls, limit, slots=slots)
        choices = settings.num_answers
        streams = [TextStream(functools.partial(self._text, settings), texts) for _ in range(arrays.real * choices)]
        open_rows, step = set(range(len(streams))), 1
        while open_rows:
            step = min(step + every, settings.max_new_tokens)
            with jax.set_mesh(self.mesh):
                state = program.advance(self._params, state, controls, jnp.int32(step), width=arrays.tokens.shape[1])
                progress = jax.device_get(program.progress(state, choices))
            deltas = []
            for row in sorted(open_rows):
                ids = tuple(map(int, progress.tokens[row, : progress.lengths[row]]))
                final = bool(progress.done[row]) or step == settings.max_new_tokens
                if not final and progress.scores is not None:
                    continue  # the best beam of now need not be the best one in the end
                text = streams[row].push(ids, final)
                if final:
                    open_rows.remove(row)
                if text or final:
                    answer = self._answer(row, ids, progress, settings, texts) if final else None
                    deltas.append(Delta(row // choices, row % choices, text, answer))
            if deltas:
                yield deltas

    def _answer(self, row: int, ids: tuple[int, ...], progress: Progress, settings, texts: Sequence[str]) -> Answer:
        log_probs = tuple(map(float, progress.log_probs[row, : len(ids)])) if settings.log_probs else None
        score = None if progress.scores is None else float(progress.scores[row])
        text, stopped = cut(self._text(settings, ids), texts)
        return Answer(text, ids, log_probs, "stop" if progress.ended[row] or stopped else "length", score)

    def _make_program(self, mode: sample.Mode | beam.Mode) -> Programs:
        return (beam if isinstance(mode, beam.Mode) else sample).programs(self.network, mode)

    def _text(self, settings: GenerationSettings, ids: Sequence[int]) -> str:
        unseen = {*self._hidden.values(), *settings.stop_ids}
        return self.tokenizer.decode([token for token in ids if token not in unseen])

    def _read(self, prompts: Sequence[Prompt]) -> tuple[list[list[int]], list[np.ndarray | None]]:
        tokens, pictures = [], []
        for i, prompt in enumerate(prompts):
            try:
                row = self.tokenizer.encode(prompt.text)
                has_image = prompt.image is not None
                batch.check_tokens(row, self.tokenizer.image_token, self.network.queries, has_image)
                pictures.append(self.picture(prompt.image) if has_image else None)
            except UserError as error:
                raise UserError(f"Prompt {i}: {error}") from error
            tokens.append(row)
        return tokens, pictures

    def _inputs(self, arrays: Arrays) -> tuple[Inputs, jax.Array]:
        put = functools.partial(sharding.put, mesh=self.mesh)
        features, image_of = None, None
        if arrays.images is not None:
            features, image_of = self._features(self._params, put(arrays.images)), put(arrays.image_of)
        seeds = put(arrays.seeds.reshape(-1))
        return Inputs(put(arrays.tokens), put(arrays.lengths), features, image_of), seeds

    def _controls(self, settings: GenerationSettings) -> tuple[Controls, tuple[str, ...]]:
        """The settings as arrays, and the stop strings that are text; one that is a hidden token ends by its id."""
        names = [text for text in settings.stop if text in self._hidden]
        texts = tuple(text for text in settings.stop if text not in self._hidden)
        ends = [*settings.stop_ids, *[self._hidden[name] for name in names]] or [NO_TOKEN]
        return processors.controls(settings, self.network.llm.padded_vocab, ends, self._stop_table(texts)), texts

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        return stops.token_bytes(self.tokenizer, self.network.llm.padded_vocab)

    def _make_stop_table(self, texts: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
        moves, accepts = stops.table(self._pieces, texts)
        return jnp.asarray(moves), jnp.asarray(accepts)
