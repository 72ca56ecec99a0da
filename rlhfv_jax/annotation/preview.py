"""What a correction will weigh in training, by the very function the loader uses."""

import itertools
from typing import Any

import numpy as np

from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.data import segments as training_segments
from rlhfv_jax.data.chat import TEMPLATES
from rlhfv_jax.data.encoding import encode_pairs
from rlhfv_jax.data.records import SIDES, PreferenceRecord, Segment
from rlhfv_jax.data.segments import Diff
from rlhfv_jax.data.tokenizer import Tokenizer
from rlhfv_jax.structs import IGNORE

GAMMA = 5.0
RELEASED = Diff(hunks="replace", min_match=3)  # the released script, its prompt and tail left out


def weights(
    question: str,
    response: str,
    corrected: str,
    typed: list[Typed],
    tokenizer: Tokenizer,
    template: str = "muffin",
    gamma: float = GAMMA,
) -> dict[str, Any]:
    """For chosen and rejected the answer's tokens as [(text, weight)], and what carries no weight.

    Tokens of the same characters (an emoji's bytes, a lone space marker and the word after it) are one piece.
    `unweighted` are segments (by place) that no token spells; `released_unweighted` those that the released script,
    which only looks at replaced words, would leave at weight 1. Raises UserError as the loader does.
    """
    sides = (
        tuple(Segment(s.change.dst0, s.change.dst1, s.type) for s in typed if s.change.dst0 < s.change.dst1),
        tuple(Segment(s.change.src0, s.change.src1, s.type) for s in typed if s.change.src0 < s.change.src1),
    )
    record = PreferenceRecord("preview", b"", question, corrected, response, sides, where="this correction")
    (ours,), _ = encode_pairs([record], tokenizer, TEMPLATES[template], 1, gamma=gamma, max_length=2**31)
    (released,), _ = encode_pairs(
        [record], tokenizer, TEMPLATES[template], 1, gamma=gamma, diff=RELEASED, spans="diff", max_length=2**31
    )
    values: dict[str, Any] = {"gamma": gamma}
    marked: dict[str, list[list[int]]] = {}
    for k, (name, text) in enumerate(zip(SIDES, (corrected, response), strict=True)):
        row = ours.rows[k]
        at = row.answer.start
        tokens = zip(row.spans, ours.weights[k][at - 1 : row.answer.stop - 1].tolist(), strict=True)
        groups = itertools.groupby(tokens, key=lambda token: token[0])
        values[name] = [[text[a:b], max(weight for _, weight in group)] for (a, b), group in groups]
        marked[name] = [
            np.flatnonzero(
                (w[at - 1 : row.answer.stop - 1] == gamma) & (row.labels[at - 1 : row.answer.stop - 1] != IGNORE)
            ).tolist()
            for w in (ours.weights[k], released.weights[k])
        ]
    for place, name in ((0, "unweighted"), (1, "released_unweighted")):
        values[name] = [
            i
            for i, s in enumerate(typed)
            if not any(
                _touches(ours.rows[k].spans, marked[side][place], span)
                for k, (side, span) in enumerate(
                    zip(SIDES, ((s.change.dst0, s.change.dst1), (s.change.src0, s.change.src1)), strict=True)
                )
            )
        ]
    return values


def _touches(spans: Any, marked: list[int], span: tuple[int, int]) -> bool:
    if span[0] == span[1]:
        return False
    return any(training_segments.inside([spans[i] for i in marked], [span]))
