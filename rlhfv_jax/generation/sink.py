"""Where the answers of a run go: into the file, into the counts, and to the progress that a person sees."""

import hashlib
import time
from collections.abc import Sequence

from rlhfv_jax.generation.answer_file import AnswerFile, Line
from rlhfv_jax.generation.questions import Question
from rlhfv_jax.metrics import Reporter

MINUTE = 60


class Sink:
    """Takes one line a question; `total` counts those of earlier runs too."""

    def __init__(self, file: AnswerFile, reporter: Reporter, total: int):
        self._file, self._reporter, self._total = file, reporter, total
        self._before = self._done = total - len(file.missing)
        self._start = time.monotonic()
        self.failures: list[Line] = []
        self.tokens = 0

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens of this run over its seconds so far, loading and compilation included."""
        return self.tokens / max(time.monotonic() - self._start, 1e-9)

    def answered(self, question: Question, model_id: str, choices: Sequence[Line], tokens: int) -> None:
        """Stores the answers, the best or first of them as the line's own; `tokens` were generated for them."""
        line = _head(question, model_id) | choices[0]
        self._add(line | {"answers": list(choices)} if len(choices) > 1 else line, tokens)

    def failed(self, question: Question, model_id: str, reason: str) -> None:
        """Stores that the question has no answer, and why."""
        line = _head(question, model_id) | {"error": reason}
        self.failures.append(line)
        self._add(line, 0)

    def _add(self, line: Line, tokens: int) -> None:
        self._file.add(line)
        self._done += 1
        self.tokens += tokens
        seconds = time.monotonic() - self._start
        left = seconds / (self._done - self._before) * (self._total - self._done)
        note = f"{self.tokens_per_second:.0f} tokens/s, {int(left) // MINUTE}:{int(left) % MINUTE:02} left"
        self._reporter.update(self._done, note)


def seed_of(seed: int, question: Question) -> int:
    """The question's own seed in [0, 2**32), so that neither its place nor an interruption changes its samples."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{question.id}".encode()).digest()[:4], "little")


def _head(question: Question, model_id: str) -> Line:
    head: Line = {"question_id": question.id, "prompt": question.text, "model_id": model_id}
    return head if question.image_id is None else head | {"image_id": question.image_id}
