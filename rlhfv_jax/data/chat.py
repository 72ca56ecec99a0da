"""From questions and answers to one row of tokens with its targets. One template object serves every program."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhfv_jax.data.tokenizer import IMAGE_END, IMAGE_PATCH, IMAGE_START, Span, Tokenizer, find_reserved
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

IMAGE = "<image>"  # in a question: the image stands here, and not where the template would put it
LABEL_MASKS = ("answer", "muffin")

Turn = tuple[str, str]  # question, answer


@dataclass(frozen=True)
class Template:
    """The words around questions and answers.

    `before` stands in front of the first question, `between` a question and its answer, `end_of_turn` closes the answer
    (it is the stop string of generation, and a target), `again` stands in front of every later question, `tail` ends a
    training row without being a target. `image_borders` stand around the image tokens; the image comes before the
    first question, or after it with `image_last`. `opening` ends a prompt in place of `between`, in forms that no model
    was trained on. `role` is how the turns of Muffin's own label rule begin, empty where that rule has no meaning.
    """

    name: str
    before: str
    between: str
    end_of_turn: str
    again: str = ""
    tail: str = ""
    image_borders: tuple[str, str] = (IMAGE_START, IMAGE_END)
    image_last: bool = False
    opening: str | None = None
    role: str = ""

    def prompt(self, question: str, queries: int, history: Sequence[Turn] = ()) -> str:
        """The text that a model continues with its answer, after earlier turns; `queries` image tokens, 0 for none.

        It is a training row up to the space before the answer.
        """
        text, borders = self.training_text([*history, (question, "")], queries)
        end = self.between.rstrip(" ") if self.opening is None else self.opening  # answers begin with the space
        return text[: borders[-1][1] - len(self.between)] + end

    def continuation(self, answer: str) -> str:
        """What stands behind `prompt` in a training row, up to the end of turn: the answer, after a space if any."""
        return self.between[len(self.between.rstrip(" ")) :] + answer

    def training_text(self, turns: Sequence[Turn], queries: int) -> tuple[str, list[tuple[int, int, int, int]]]:
        """The turns as one text, and of each where its question, its answer and its end of turn begin, and its end."""
        placed = next((i for i, (question, _) in enumerate(turns) if IMAGE in question), 0)
        text, borders = "", []
        for i, (question, answer) in enumerate(turns):
            asked = len(text) + len(self.before if i == 0 else self.again)
            text += self._question(question, queries if i == placed else 0, first=i == 0) + self.between
            start = len(text)
            text += answer + self.end_of_turn
            borders.append((asked, start, start + len(answer), len(text)))
        return text, borders

    def _question(self, question: str, queries: int, first: bool) -> str:
        image = self.image_borders[0] + IMAGE_PATCH * queries + self.image_borders[1]
        if queries and self.image_last:
            question = f"{question.replace(IMAGE, '')}\n{image}"
        elif queries:
            question = question.replace(IMAGE, image) if IMAGE in question else f"{image}\n{question}"
        return (self.before if first else self.again) + question


def _system(person: str) -> str:
    return (
        f"A chat between a curious {person} and an artificial intelligence assistant. "
        f"The assistant gives helpful, detailed, and polite answers to the {person}'s questions."
    )


# The form of Muffin's training data (LLaVA's v0).
MUFFIN = Template(
    name="muffin",
    before=_system("human") + "\n\n### Human: ",
    between="\n### Assistant: ",
    end_of_turn="\n###",
    again=" Human: ",
    tail=" ",
    role="###",
)
# The released evaluation asks otherwise than the model was trained: the image last, and the model has to write
# " Assistant:" itself. Its chat goes on in the training form, but shows the image with the first question only.
MUFFIN_RELEASE = Template(
    name="muffin_release",
    before=_system("human") + "\n###Human: ",
    between="\n### Assistant: ",
    end_of_turn="\n###",
    image_last=True,
    opening="\n###",
)
MUFFIN_RELEASE_CHAT = Template(
    name="muffin_release_chat",
    before=MUFFIN.before,
    between=MUFFIN.between,
    end_of_turn=MUFFIN.end_of_turn,
    again=MUFFIN.again,
    opening="\n###",
)
VICUNA_V1_1 = Template(
    name="vicuna_v1_1",
    before=_system("user") + " USER: ",
    between=" ASSISTANT: ",
    end_of_turn="</s>",
    again="USER: ",
)
# LLaVA 1.5: no borders, and its tokenizer keeps the white space around the image.
LLAVA_V1 = Template(
    name="llava_v1",
    before=_system("human") + " USER: ",
    between=" ASSISTANT: ",
    end_of_turn="</s>",
    again="USER: ",
    image_borders=("", ""),
)
# LLaVA 1.0 is trained in the form that Muffin took over.
LLAVA_V0 = dataclasses.replace(MUFFIN, name="llava_v0")
# For closed vocabularies of white-space words, as in the miniature: no system prompt, every mark a word of its own.
WORDS = Template(name="words", before="", between=" : ", end_of_turn=" ###", again=" ")

TEMPLATES = {
    template.name: template
    for template in (MUFFIN, MUFFIN_RELEASE, MUFFIN_RELEASE_CHAT, VICUNA_V1_1, LLAVA_V0, LLAVA_V1, WORDS)
}
_WORDS = re.compile(r"(.*?)\{question\}(.+?)\{answer\}(.+?)(?:\{again\}(.*))?", re.DOTALL)


def find_template(text: str) -> Template:
    """The template of a name, or one written out; raises UserError where it is neither.

    Written out it is what stands in front of the first {question}, between it and its {answer}, and behind that the end
    of turn; after an {again} follows what stands in front of every later question.

    >>> find_template("<|user|>\n{question}</s>\n<|assistant|>\n{answer}</s>{again}\n<|user|>\n").end_of_turn
    '</s>'
    """
    if text in TEMPLATES:
        return TEMPLATES[text]
    if (found := _WORDS.fullmatch(text)) is None:
        raise UserError(
            f"The template {text!r} is not known; choose one of {', '.join(TEMPLATES)}, or write one out as "
            "'USER: {question} ASSISTANT: {answer}</s>{again}USER: '."
        )
    before, between, end_of_turn, again = found.groups()
    return Template(text, before, between, end_of_turn, before if again is None else again)


@dataclass(frozen=True)
class Row:
    """One tokenised row.

    tokens int32[T]; labels int32[T-1] as in `structs.PairBatch`; answer: the slice of `tokens` that spells the (last)
    answer; spans: for each token of the answer its characters in the answer text.
    """

    tokens: np.ndarray
    labels: np.ndarray
    answer: slice
    spans: list[Span]


def encode_row(
    tokenizer: Tokenizer,
    template: Template,
    question: str,
    answer: str,
    queries: int,
    label_mask: str = "answer",
    history: Sequence[Turn] = (),
) -> Row:
    """Tokenises the whole row once; targets are the answer and one end of turn, found by character offsets.

    Earlier turns (`history`) are context, never targets. `label_mask` as in `encode_turns`. Raises UserError where the
    question or the answer spells a special token, or the answer is empty.
    """
    tokens, labels, answers = encode_turns(tokenizer, template, [*history, (question, answer)], queries, label_mask)
    part, spans = answers[-1]
    if history:
        labels[: part.start - 1] = IGNORE
    return Row(tokens, labels, part, spans)


def encode_turns(
    tokenizer: Tokenizer, template: Template, turns: Sequence[Turn], queries: int, label_mask: str = "answer"
) -> tuple[np.ndarray, np.ndarray, list[tuple[slice, list[Span]]]]:
    """A conversation about one image as one row: tokens, labels, and of each answer its tokens and their characters.

    label_mask "answer": every answer with its end of turn is a target. "muffin": the released code's targets (see
    `_released_labels`). The image stands where a question says <image>, else where the template puts it.
    """
    _check(turns, queries)
    text, borders = template.training_text(turns, queries)
    text += template.tail
    ids, spans = tokenizer.encode_with_offsets(text)
    tokens = np.asarray(ids, np.int32)
    labels = np.full(len(ids) - 1, IGNORE, np.int32)
    answers = []
    for _, start, stop, end in borders:
        # The space before an answer is the answer's, joined to its first word or a token of its own: a prompt ends
        # before it. Nothing is taken from the answer by its end of turn.
        prompted = start - len(template.between) + len(template.between.rstrip(" "))
        first = next(i for i, (_, b) in enumerate(spans) if b > prompted)
        last = next((i for i, (a, _) in enumerate(spans) if a >= stop), len(ids))
        target = next((i for i, (a, _) in enumerate(spans) if a >= end), len(ids))
        labels[first - 1 : target - 1] = tokens[first:target]
        answers.append((slice(first, last), _within(spans[first:last], start)))
    if label_mask == "muffin":
        labels = _released_labels(tokenizer, template, text, borders, tokens)
    return tokens, labels, answers


def _within(spans: Sequence[Span], start: int) -> list[Span]:
    """The spans relative to an answer's start; a space of its own before the answer counts as its first word's."""
    relative = [(max(a - start, 0), b - start) for a, b in spans]
    for i in reversed(range(len(relative) - 1)):
        if relative[i][1] <= 0:
            relative[i] = relative[i + 1]
    return relative


def _released_labels(
    tokenizer: Tokenizer,
    template: Template,
    text: str,
    borders: Sequence[tuple[int, int, int, int]],
    tokens: np.ndarray,
) -> np.ndarray:
    """int32[T-1], what Muffin's released code trains on: everything but the system prompt and the questions.

    It finds the questions by tokenising header and turns one by one, each with its own beginning-of-sequence token, and
    leaves the first two tokens of a question's turn in. Where a turn's "###" is another number of tokens in context,
    everything after it is one token off; that too is kept here.
    """
    if not template.role:
        raise UserError(f"the template {template.name} has no released labels; use ddpo.label_mask=answer")
    labels = tokens[1:].copy()
    at = 0
    for i, (asked, start, stop, _) in enumerate(borders):
        human, assistant = text.rfind(template.role, 0, asked), text.rfind(template.role, 0, start)
        if i == 0:
            at = len(tokenizer.encode(text[:human]))
            labels[: at - 1] = IGNORE
        size = len(tokenizer.encode(text[human:assistant]))
        labels[at + 1 : at + size - 1] = IGNORE  # label i stands for token i + 1
        at += size + len(tokenizer.encode(text[assistant : stop + 1]))  # the answer's turn ends with a line break
    return labels


def _check(turns: Sequence[Turn], queries: int) -> None:
    for question, answer in turns:
        for field, part in (("question", question), ("answer", answer)):
            if token := find_reserved(part):
                raise UserError(f"the {field} contains the reserved token {token}")
        if IMAGE in answer:
            raise UserError(f"the answer contains the reserved token {IMAGE}")
        if not answer.strip():
            raise UserError("the answer is empty")
    slots = sum(question.count(IMAGE) for question, _ in turns)
    if slots > (1 if queries else 0):
        raise UserError(f"the question says {IMAGE} {slots} times, for {'one image' if queries else 'no image'}")


def cut(row: Row, length: int) -> Row:
    """The row's first `length` tokens; only the end of the answer may go. Raises UserError where its start would."""
    if row.answer.start >= length:
        raise UserError(f"image and question alone take {row.answer.start} tokens")
    stop = min(row.answer.stop, length)
    answer = slice(row.answer.start, stop)
    return Row(row.tokens[:length], row.labels[: length - 1], answer, row.spans[: stop - answer.start])
