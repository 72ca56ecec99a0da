"""Questions that a model answers while it trains: fixed ones, at fixed steps, with the parameters of the moment.

Each name of `config.evals.questions` gets `evals/NAME/STEP/` in the run's directory: answers.jsonl, always, in the form
that `generate` writes; and where the name is that of a benchmark without a judge, scores.json and items.jsonl as
`evaluate` writes them. The figures are the run's own metrics, `eval/NAME/METRIC`.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from rlhfv_jax import lora, sharding
from rlhfv_jax.data import images
from rlhfv_jax.data.chat import TEMPLATES
from rlhfv_jax.data.tokenizer import Tokenizer
from rlhfv_jax.decoding import batch
from rlhfv_jax.decoding.engine import Engine
from rlhfv_jax.decoding.settings import GenerationSettings
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import benchmarks
from rlhfv_jax.evals.scores import write_scores
from rlhfv_jax.generation import questions
from rlhfv_jax.generation.questions import Question
from rlhfv_jax.models import vlm
from rlhfv_jax.settings import Settings

ANSWERS = "answers.jsonl"
JUDGED = ("mmhal", "llava_bench", "mhumaneval")  # benchmarks that need a model or people to judge
ROUND = 4  # batches whose images are held at once


@dataclass(frozen=True)
class Task:
    """The questions of one name; `scored` where it is a benchmark's."""

    name: str
    questions: tuple[Question, ...]
    digest: str
    scored: bool


class Evaluators:
    """Everything that `config.evals` asks for, read and tried once: what is wrong with it shows before any training.

    Raises UserError where a question cannot be asked (its image, its words), a benchmark cannot be scored on these
    questions, or `config.best` names a metric that none of this gives. Use within `jax.set_mesh(mesh)`.
    """

    def __init__(self, s: Settings, config: vlm.MuffinConfig, tokenizer: Tokenizer, mesh: Mesh, folder: Path):
        if jax.process_count() > 1:
            raise UserError("config.evals.questions answers questions in one process; leave it empty in this run.")
        self._settings, self._config, self._tokenizer, self._mesh, self._folder = s, config, tokenizer, mesh, folder
        self._tasks = [self._task(name, path) for name, path in s.evals.files().items()]
        self._engine: Engine | None = None
        known = {f"eval/{task.name}/{metric}" for task in self._tasks for metric in self._tried(task)}
        if s.best.startswith(tuple(f"eval/{task.name}/" for task in self._tasks)) and s.best not in known:
            raise UserError(
                f"config.best={s.best} is no metric of these questions; there are {', '.join(sorted(known))}."
            )

    def facts(self) -> dict[str, Any]:
        """What the manifest says: number and digest of the questions, by name."""
        return {task.name: {"questions": len(task.questions), "digest": task.digest} for task in self._tasks}

    def check_same(self, before: Mapping[str, Any] | None) -> None:
        """Raises UserError where a run that continues would ask other questions than before."""
        now = self.facts()
        if before is not None and before != now:
            name = next(name for name in {**before, **now} if before.get(name) != now.get(name))
            raise UserError(
                f"The questions of config.evals.questions {name!r} have changed since this run began, so its figures "
                "would not compare; put the file back, or start another --workdir."
            )

    def __call__(self, step: int, params: Any) -> dict[str, float]:
        """Answers, writes and scores everything with `params` as they train (sharded, with adapters)."""
        engine = self._loaded(params)
        try:
            values: dict[str, float] = {}
            for task in self._tasks:
                values |= {
                    f"eval/{task.name}/{key}": value for key, value in self._evaluate(engine, task, step).items()
                }
        finally:
            engine.replace_params(None)
        return values

    def _evaluate(self, engine: Engine, task: Task, step: int) -> dict[str, float]:
        lines = list(self._answers(engine, task, f"step {step}"))
        folder = self._folder / task.name / str(step)
        path = write_lines(folder / ANSWERS, lines)
        tokens = [len(line["token_ids"]) for line in lines]
        values = {
            "tokens": sum(tokens) / len(lines),
            "cut": 100 * sum(line["finish_reason"] == "length" for line in lines) / len(lines),
            "empty": 100 * sum(not line["text"].strip() for line in lines) / len(lines),
        }
        if task.scored:
            scores = self._score(task.name, path)
            write_scores(scores, folder)
            values |= {name: metric.value for name, metric in scores.metrics.items() if metric.value is not None}
        return values

    def _answers(self, engine: Engine, task: Task, model: str) -> Iterator[dict[str, Any]]:
        e = self._settings.evals
        how = GenerationSettings(max_new_tokens=e.max_new_tokens, num_beams=e.num_beams, stop=engine.stop)
        for first in range(0, len(task.questions), ROUND * e.batch_size):
            asked = task.questions[first : first + ROUND * e.batch_size]
            prompts = [engine.prompt(question.text, _image(question)) for question in asked]
            for question, (answer, *_) in zip(asked, engine.answer(prompts, how), strict=True):
                line = {"question_id": question.id, "prompt": question.text, "model_id": model}
                line |= {} if question.image_id is None else {"image_id": question.image_id}
                yield line | {
                    "text": answer.text,
                    "token_ids": list(answer.token_ids),
                    "finish_reason": answer.finish_reason,
                }

    def _loaded(self, params: Any) -> Engine:
        """The engine with these parameters; its programs stay compiled from one evaluation to the next."""
        s = self._settings
        decodable = self._decodable(params)
        if self._engine is None:
            self._engine = Engine(
                self._config, decodable, self._tokenizer, s.data.template, s.dtype, self._mesh, s.evals.batch_size
            )
        else:
            self._engine.replace_params(decodable)
        return self._engine

    def _decodable(self, params: Any) -> Any:
        """The parameters as `generate` has them: adapters merged, in the compute dtype, where they lie."""
        s = self._settings

        def convert(params: Any) -> Any:
            merged = lora.merge(params, s.lora.scale) if s.lora.rank else params
            return jax.tree.map(lambda leaf: leaf.astype(s.dtype), merged)

        where = sharding.shardings(jax.eval_shape(convert, params), self._mesh)
        return jax.jit(convert, out_shardings=where)(params)

    def _task(self, name: str, path: str) -> Task:
        e = self._settings.evals
        if name in JUDGED:
            raise UserError(f"config.evals.questions: {name} needs a judge; give it another name to write its answers.")
        found = questions.read(path, e.image_dir or None)
        task = Task(name, found.rows[: e.count or None], found.digest, name in benchmarks.BENCHMARKS)
        for question in task.questions:
            try:
                self._check(question)
            except (UserError, UnicodeError) as error:
                raise UserError(f"{path}, question {question.id!r}: {error}") from error
        return task

    def _check(self, question: Question) -> None:
        """Raises UserError or UnicodeError where the question cannot be asked."""
        question.text.encode()  # half of a surrogate pair, which JSON can bring, is no text for a tokenizer
        has_image = _image(question) is not None
        queries = self._config.tower.queries if has_image else 0
        tokens = self._tokenizer.encode(TEMPLATES[self._settings.data.template].prompt(question.text, queries, ()))
        batch.check_tokens(tokens, self._tokenizer.image_token, queries, has_image)

    def _tried(self, task: Task) -> list[str]:
        """The names of the task's metrics, from scoring empty answers."""
        names = ["tokens", "cut", "empty"]
        if not task.scored:
            return names
        with tempfile.TemporaryDirectory() as folder:
            lines = [
                {"question_id": question.id, "text": ""}
                | ({} if question.image_id is None else {"image_id": question.image_id})
                for question in task.questions
            ]
            try:
                return names + list(self._score(task.name, write_lines(Path(folder) / ANSWERS, lines)).metrics)
            except UserError as error:
                raise UserError(f"config.evals.questions: {task.name} cannot be scored: {error}") from error

    def _score(self, name: str, path: Path) -> Any:
        way = benchmarks.Way(Path(self._settings.evals.references or "."), partial=True)
        return benchmarks.score(name, path, way)


def together(
    s: Settings, rows: Callable[[Any], Mapping[str, float]] | None, asked: Evaluators | None, total: int
) -> tuple[int, Callable[[int, Any], Mapping[str, float]] | None]:
    """How often a run evaluates, in steps (0: at its end alone), and what: `evaluate(step, params)`.

    `rows(params)` is due at multiples of eval_every, `asked` at those of evals.every, both at step `total`. What is
    evaluated is empty at a step at which neither is due, and None where there is neither.
    """
    parts: list[tuple[int, Callable[[int, Any], Mapping[str, float]]]] = []
    if rows is not None:
        parts.append((s.eval_every, lambda _, params: rows(params)))
    if asked is not None:
        parts.append((s.evals.every or s.eval_every, asked))

    def evaluate(step: int, params: Any) -> dict[str, float]:
        values: dict[str, float] = {}
        for every, part in parts:
            if step == total or (every and step % every == 0):
                values |= part(step, params)
        return values

    return math.gcd(*(every for every, _ in parts)), evaluate if parts else None


def _image(question: Question) -> Any:
    data = question.image_bytes()
    return images.open_image(data) if data is not None else None


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Writes JSON lines, whole or not at all; returns the path. Raises UserError where that cannot be."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"Cannot write answers to {path}: {error.strerror or error}.") from error
    return path
