"""From a question and an answer to one row of tokens with its targets. One template object serves every program."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhfv_jax.data.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START, MuffinTokenizer, Span, find_reserved
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE


@dataclass(frozen=True)
class Template:
    """The words around a question and an answer.

    `before` stands in front of the image, `between` the question and the answer, `end_of_turn` closes the answer (it is
    the stop string of generation, and a target), `again` stands in front of every later question of a conversation,
    `tail` ends a training row without being a target.
    """

    name: str
    before: str
    between: str
    end_of_turn: str
    again: str = ""
    tail: str = ""

    def prompt(self, question: str, queries: int) -> str:
        """The text that a model continues with its answer; `queries` is the number of image tokens, 0 for none."""
        image = IMAGE_START + IMAGE_PATCH * queries + IMAGE_END + "\n" if queries else ""
        return f"{self.before}{image}{question}{self.between}"

    def next_prompt(self, question: str) -> str:
        """The text between the end of one turn and the answer to the next question."""
        return f"{self.again}{question}{self.between}"


# The system prompt and turns of the released Muffin training data (LLaVA's v0 form).
MUFFIN = Template(
    name="muffin",
    before="A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.\n\n### Human: ",
    between="\n### Assistant: ",
    end_of_turn="\n###",
    again=" Human: ",
    tail=" ",
)
# For closed vocabularies of white-space words, as in the miniature: no system prompt, every mark a word of its own.
WORDS = Template(name="words", before="", between=" : ", end_of_turn=" ###", again=" ")

TEMPLATES = {template.name: template for template in (MUFFIN, WORDS)}


@dataclass(frozen=True)
class Row:
    """One tokenised row.

    tokens int32[T]; labels int32[T-1] as in `structs.PairBatch`; answer: the slice of `tokens` that spells the answer;
    spans: for each token of the answer its characters in the answer text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    answer: slice
    spans: list[Span]


def encode_row(tokenizer: MuffinTokenizer, template: Template, question: str, answer: str, queries: int) -> Row:
    """Tokenises the whole row once; targets are the answer and one end of turn, found by character offsets.

    Raises UserError where the question or the answer spells a special token, or the answer is empty.
    """
    tokens, labels, answers = encode_turns(tokenizer, template, [(question, answer)], queries)
    return Row(tokens, labels, *answers[0])


def encode_turns(
    tokenizer: MuffinTokenizer, template: Template, turns: Sequence[tuple[str, str]], queries: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[slice, list[Span]]]]:
    """A conversation about one image as one row: tokens, labels, and of each answer its tokens and their characters.

    Every answer with its end of turn is a target; the image stands before the first question.
    """
    text, borders = "", []
    for i, (question, answer) in enumerate(turns):
        for field, part in (("question", question), ("answer", answer)):
            if token := find_reserved(part):
                raise UserError(f"the {field} contains the reserved token {token}")
        if not answer.strip():
            raise UserError("the answer is empty")
        text += template.prompt(question, queries) if i == 0 else template.next_prompt(question)
        start = len(text)
        text += answer + template.end_of_turn
        borders.append((start, start + len(answer), len(text)))
    ids, spans = tokenizer.encode_with_offsets(text + template.tail)
    tokens = np.asarray(ids, np.int32)
    labels = np.full(len(ids) - 1, IGNORE, np.int32)
    answers = []
    for start, stop, end in borders:
        # A token that straddles a border (a space joined to the first word) belongs to what comes after the border,
        # except that nothing is taken from the answer by its end of turn.
        first = next(i for i, (_, b) in enumerate(spans) if b > start)
        last = next(i for i, (a, _) in enumerate(spans) if a >= stop)
        target = next((i for i, (a, _) in enumerate(spans) if a >= end), len(ids))
        labels[first - 1 : target - 1] = tokens[first:target]
        answers.append((slice(first, last), [(max(a - start, 0), b - start) for a, b in spans[first:last]]))
    return tokens, labels, answers
