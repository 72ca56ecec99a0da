"""From a question and an answer to one row of tokens with its targets. One template object serves every program."""

from dataclasses import dataclass

import numpy as np

from rlhfv_jax.data.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START, MuffinTokenizer, find_reserved
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE


@dataclass(frozen=True)
class Template:
    """The words around a question and an answer.

    `before` stands in front of the image, `between` the question and the answer, `end_of_turn` closes the answer (it is
    the stop string of generation, and a target), `tail` follows it in training rows without being a target.
    """

    name: str
    before: str
    between: str
    end_of_turn: str
    tail: str = ""

    def prompt(self, question: str, queries: int) -> str:
        """The text that a model continues with its answer; `queries` is the number of image tokens, 0 for none."""
        image = IMAGE_START + IMAGE_PATCH * queries + IMAGE_END + "\n" if queries else ""
        return f"{self.before}{image}{question}{self.between}"


# The system prompt and turns of the released Muffin training data (LLaVA's v0 form).
MUFFIN = Template(
    name="muffin",
    before="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.\n\n### Human: ",
    between="\n### Assistant: ",
    end_of_turn="\n###",
    tail=" ",
)

TEMPLATES = {template.name: template for template in (MUFFIN,)}


@dataclass(frozen=True)
class Row:
    """One tokenised row.

    tokens int32[T]; labels int32[T-1] as in `structs.PairBatch`; answer: the slice of `tokens` that spells the answer;
    spans: for each token of the answer its characters in the answer text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    answer: slice
    spans: list[tuple[int, int]]


def encode_row(tokenizer: MuffinTokenizer, template: Template, question: str, answer: str, queries: int) -> Row:
    """Tokenises the whole row once; targets are the answer and one end of turn, found by character offsets.

    Raises UserError where the question or the answer spells a special token, or the answer is empty.
    """
    for field, text in (("question", question), ("answer", answer)):
        if token := find_reserved(text):
            raise UserError(f"the {field} contains the reserved token {token}")
    if not answer.strip():
        raise UserError("the answer is empty")
    prompt = template.prompt(question, queries)
    ids, spans = tokenizer.encode_with_offsets(prompt + answer + template.end_of_turn + template.tail)
    start, stop = len(prompt), len(prompt) + len(answer)
    # A token that straddles a border (a space joined to the first word) belongs to what comes after the border, except
    # that nothing is taken from the answer by its end of turn.
    answer_from = next(i for i, (_, b) in enumerate(spans) if b > start)
    answer_to = next(i for i, (a, _) in enumerate(spans) if a >= stop)
    target_to = next((i for i, (a, _) in enumerate(spans) if a >= stop + len(template.end_of_turn)), len(ids))
    tokens = np.asarray(ids, np.int32)
    labels = np.full(len(ids) - 1, IGNORE, np.int32)
    labels[answer_from - 1 : target_to - 1] = tokens[answer_from:target_to]
    answer_spans = [(max(a - start, 0), b - start) for a, b in spans[answer_from:answer_to]]
    return Row(tokens, labels, slice(answer_from, answer_to), answer_spans)
