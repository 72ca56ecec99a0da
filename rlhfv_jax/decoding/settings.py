"""How answers are decoded: one frozen record, checked once, and the released evaluation's values as a preset."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from rlhfv_jax.errors import UserError

LENGTH_NORMS = ("generated", "total")
EARLY_STOPPING = (False, True, "never")


@dataclass(frozen=True)
class GenerationSettings:
    """Greedy by default; `temperature` > 0 samples, `num_beams` > 1 searches with beams.

    max_new_tokens: the most tokens of an answer.
    num_beams: beams of a search, 1 for none. length_penalty, early_stopping (False, True or "never"): as in Hugging
      Face `generate`.
    length_norm: "generated": beam search as transformers 5 does it. "total": as transformers 4.28 did and the released
      evaluation therefore does (`decoding.beam` says where they differ).
    temperature: 0 is greedy. top_k (0: all) and top_p (1: all) limit what is sampled from.
    repetition_penalty: > 1 makes every token of the prompt and of the answer so far less likely.
    stop: an answer ends before the first of these strings.
    stop_ids: token ids that end an answer; they are the last of its `token_ids`, and not in its text.
    num_answers: answers to each prompt: samples of their own, or the best beams.
    seed: of the prompts that bring none.
    log_probs: whether answers carry the log-probs of their tokens.
    """

    max_new_tokens: int = 256
    num_beams: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    length_penalty: float = 1.0
    length_norm: str = "generated"
    early_stopping: bool | str = False
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    num_answers: int = 1
    seed: int = 0
    log_probs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_beams", "num_answers"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)!r}: expected a whole number of at least 1.")
        if not _is_int(self.top_k) or self.top_k < 0:
            raise UserError(f"top_k={self.top_k!r}: expected a whole number, 0 for no limit.")
        if not _is_int(self.seed) or not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed!r}: expected a whole number in [0, 2**32).")
        for name, good, expected in (
            ("temperature", lambda x: x >= 0, "at least 0"),
            ("top_p", lambda x: 0 < x <= 1, "in (0, 1]"),
            ("repetition_penalty", lambda x: x > 0, "above 0"),
            ("length_penalty", lambda x: True, "finite"),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not good(value):
                raise UserError(f"{name}={value!r}: expected a number {expected}.")
        if self.length_norm not in LENGTH_NORMS:
            raise UserError(f"length_norm={self.length_norm!r} is not known; choose one of {', '.join(LENGTH_NORMS)}.")
        if not any(self.early_stopping is value or self.early_stopping == value == "never" for value in EARLY_STOPPING):
            raise UserError(f"early_stopping={self.early_stopping!r} is not known; choose False, True or 'never'.")
        if not isinstance(self.stop, tuple) or not all(isinstance(text, str) and text for text in self.stop):
            raise UserError(f"stop={self.stop!r}: expected a tuple of strings that are not empty.")
        self._check_combination()

    def _check_combination(self) -> None:
        if self.num_beams > 1 and self.temperature > 0:
            raise UserError(
                f"num_beams={self.num_beams} searches for the best answer and temperature={self.temperature} draws "
                "one; set one of them aside (num_beams=1 or temperature=0)."
            )
        if self.temperature == 0 and self.num_answers > self.num_beams:
            raise UserError(
                f"num_answers={self.num_answers} would all be the same with {self.num_beams} beam(s) and temperature "
                "0; give a temperature, or at least as many beams."
            )

    def replace(self, **changes: Any) -> "GenerationSettings":
        """The same settings but for some, checked again."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Preset:
    """Settings, and the name of the template (`data.chat.TEMPLATES`) that questions are put in."""

    settings: GenerationSettings
    template: str


def muffin_release(**changes: Any) -> Preset:
    """The released evaluation of Muffin and RLHF-V (`muffin_vqa.py`), with what it does by accident.

    Its temperature of 0.7 has no effect, so there is none here; scores are divided by the total length, prompt
    included; the search goes on until every beam has a "###"; the beginning-of-sequence token 1 ends an answer and
    </s> does not, since its config.json says so.
    """
    values: dict[str, Any] = {
        "max_new_tokens": 1024,
        "num_beams": 3,
        "repetition_penalty": 1.1,
        "length_norm": "total",
        "stop": ("###",),
        "stop_ids": (1,),
    }
    return Preset(GenerationSettings(**(values | changes)), "muffin_release")


PRESETS = {"muffin_release": muffin_release}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_int(value) or isinstance(value, float)) and math.isfinite(value)
