"""Rows are the tokens Muffin was trained on; targets are the answer and one end of turn."""

import json
import re

import numpy as np
import pytest

from rlhfv_jax.data.chat import MUFFIN, TEMPLATES, encode_row, encode_turns
from rlhfv_jax.data.tokenizer import ADDED, CONTROL, MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE

ANSWERS = [
    "A dog.",
    "  Two  dogs ",
    "\nIt is\nred.\n",
    "Это кошка 🐱。",
    "###",
    "#1 is a#",
    "e\u0301té",
    "🐱",
    "漢字 kanji",
]


@pytest.fixture(scope="module")
def llama(fixtures) -> MuffinTokenizer:
    return MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")


@pytest.fixture(scope="module")
def golden(fixtures) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """(question, answer, input_ids, labels) of the reference: conversations and both sides of ten preference pairs."""
    rows = []
    for item in json.loads((fixtures / "conversation.json").read_text())["training"]:
        turns = [turn["value"] for turn in item["conversation"]]
        if len(turns) == 2 and turns[0].startswith("<image>\n"):
            rows.append((turns[0].removeprefix("<image>\n"), turns[1], item["input_ids"], item["labels"]))
    arrays = np.load(fixtures / "ddpo.npz")
    for i, pair in enumerate(json.loads((fixtures / "ddpo.json").read_text())["pairs"]):
        for side, name in (("win", "chosen"), ("rej", "rejected")):
            ids, labels = (arrays[f"pair{i}_{side}_{kind}"] for kind in ("input_ids", "labels"))
            rows.append((pair["question"], pair[name], ids, labels))
    assert len(rows) == 22
    return [(question, answer, np.asarray(ids), np.asarray(labels)) for question, answer, ids, labels in rows]


def test_tokens_equal_the_reference(llama, golden):
    for question, answer, ids, _ in golden:
        row = encode_row(llama, MUFFIN, question, answer, queries=8)
        np.testing.assert_array_equal(row.tokens, ids)
        assert row.tokens.dtype == np.int32


def test_a_row_without_image_equals_the_reference(llama, fixtures):
    item = json.loads((fixtures / "conversation.json").read_text())["training"][3]
    question, answer = (turn["value"] for turn in item["conversation"])
    assert encode_row(llama, MUFFIN, question, answer, queries=0).tokens.tolist() == item["input_ids"]


def test_targets_are_the_reference_labels_without_its_prompt_side_tokens(llama, golden):
    """Muffin also supervises `## #` of the human turn, `## # Assistant :` before the answer and the last space."""
    for question, answer, ids, labels in golden:
        supervised = np.flatnonzero(labels != IGNORE)
        prefix = len(["##", "#"]) + len(["##", "#", "▁Ass", "istant", ":"])
        expected = np.full(len(ids), IGNORE)
        expected[supervised[prefix:-1]] = ids[supervised[prefix:-1]]
        row = encode_row(llama, MUFFIN, question, answer, queries=8)
        np.testing.assert_array_equal(row.labels, expected[1:])


def test_a_conversation_equals_the_reference(llama, fixtures):
    """Three turns in one row; the image stands before the first question only."""
    item = json.loads((fixtures / "conversation.json").read_text())["training"][1]
    turns = [turn["value"].removeprefix("<image>\n") for turn in item["conversation"]]
    tokens, labels, answers = encode_turns(llama, MUFFIN, list(zip(turns[::2], turns[1::2], strict=True)), queries=8)
    assert tokens.tolist() == item["input_ids"]
    assert [llama.decode(tokens[part].tolist()) for part, _ in answers] == turns[1::2]
    expected = np.full(len(tokens) - 1, IGNORE)
    for part, _ in answers:
        targets = slice(part.start - 1, part.stop - 1 + len(["<0x0A>", "##", "#"]))
        expected[targets] = tokens[1:][targets]
    np.testing.assert_array_equal(labels, expected)
    assert llama.decode(labels[labels != IGNORE].tolist()) == " ".join(f"{a}\n###" for a in turns[1::2])
    assert set(np.flatnonzero(labels != IGNORE) + 1) <= set(np.flatnonzero(np.asarray(item["labels"]) != IGNORE))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_label_is_the_next_token(llama, tokenizer, answer, template):
    for model in (llama, tokenizer):
        row = encode_row(model, template, "What is this?", answer, queries=3)
        scored = row.labels != IGNORE
        assert row.labels.shape == (len(row.tokens) - 1,)
        np.testing.assert_array_equal(row.labels[scored], row.tokens[1:][scored])
        positions = np.flatnonzero(scored) + 1
        np.testing.assert_array_equal(positions, np.arange(row.answer.start, row.answer.start + scored.sum()))


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_targets_spell_the_answer_and_one_end_of_turn(llama, tokenizer, answer, template):
    row = encode_row(llama, template, "What is this?", answer, queries=3)
    targets = row.labels[row.labels != IGNORE].tolist()
    # Decoding drops the space that joins the answer to what is before it; the rest is exact.
    assert llama.decode(targets).removeprefix(" ") == (answer + template.end_of_turn).removeprefix(" ")
    assert llama.decode(row.tokens[row.answer].tolist()).removeprefix(" ") == answer.removeprefix(" ")
    row = encode_row(tokenizer, template, "What is this?", answer, queries=3)  # it drops extra spaces itself
    spelled = tokenizer.decode(row.labels[row.labels != IGNORE].tolist())
    assert "".join(spelled.split()) == "".join((answer + template.end_of_turn).split())


@pytest.mark.parametrize("answer", ANSWERS)
def test_spans_map_answer_tokens_to_their_characters(llama, tokenizer, answer):
    for model in (llama, tokenizer):
        row = encode_row(model, MUFFIN, "What is this?", answer, queries=3)
        ids = row.tokens[row.answer].tolist()
        assert len(row.spans) == len(ids)
        assert all(0 <= a < b <= len(answer) for a, b in row.spans)
        assert {i for a, b in row.spans for i in range(a, b)} >= {i for i, c in enumerate(answer) if not c.isspace()}
        for i, (token, (a, b)) in enumerate(zip(ids, row.spans, strict=True)):
            if (piece := model.piece(token)) == "▁" and i == 0:
                assert (a, b) == row.spans[1], "the space before the answer counts as its first word's"
            elif not piece.startswith("<0x"):
                assert answer[a:b].strip() == piece.replace("▁", " ").strip()


@pytest.mark.parametrize("history", [(), (("What is it?", "A bus."),), (("Who?", "He."), ("And <image> now?", "It."))])
@pytest.mark.parametrize("template", [t for t in TEMPLATES.values() if t.opening is None], ids=lambda t: t.name)
def test_a_prompt_is_the_training_row_up_to_the_answer(llama, template, history):
    """So a model is asked in the very tokens that it was trained on."""
    for question in ("Which color?", "  Spaces?  ", *([] if history else ["Here <image> it is."])):
        row = encode_row(llama, template, question, "Red.", 3, history=history)
        prompt = llama.encode(template.prompt(question, 3, history))
        assert row.tokens[: row.answer.start].tolist() == prompt


@pytest.mark.parametrize(
    ("turns", "queries", "words"),
    [
        ([("<image> and <image>?", "A.")], 3, "says <image> 2 times, for one image"),
        ([("<image>?", "A."), ("<image>?", "B.")], 3, "says <image> 2 times"),
        ([("<image>?", "A.")], 0, "says <image> 1 times, for no image"),
        ([("What?", "An <image>.")], 3, "the answer contains the reserved token <image>"),
    ],
)
def test_an_image_has_one_place(llama, turns, queries, words):
    with pytest.raises(UserError, match=words):
        encode_turns(llama, MUFFIN, turns, queries)


def test_image_tokens_stand_before_the_question_once(llama):
    row = encode_row(llama, MUFFIN, "What is this?", "A dog.", queries=64)
    positions = np.flatnonzero(row.tokens == llama.image_token)
    assert len(positions) == 64 and positions[-1] - positions[0] == 63
    assert positions[-1] < row.answer.start


def test_both_answers_share_the_prompt(llama, coco_records):
    """The summed log-prob is over the answer alone only if everything before it is the same on both sides."""
    for record in coco_records[:40]:
        rows = [encode_row(llama, MUFFIN, record.question, text, 3) for text in (record.chosen, record.rejected)]
        prompts = [row.tokens[: row.answer.start].tolist() for row in rows]
        assert prompts[0] == prompts[1]


@pytest.mark.parametrize("token", [*ADDED, *CONTROL])
def test_reserved_tokens_are_refused(tokenizer, token):
    with pytest.raises(UserError, match=f"the question contains the reserved token {re.escape(token)}"):
        encode_row(tokenizer, MUFFIN, f"What is {token}?", "A dog.", queries=3)
    with pytest.raises(UserError, match="the answer contains the reserved token"):
        encode_row(tokenizer, MUFFIN, "What?", f"A {token}", queries=3)


@pytest.mark.parametrize("answer", ["", " \n", "\u3000"])
def test_an_empty_answer_is_refused(tokenizer, answer):
    with pytest.raises(UserError, match="the answer is empty"):
        encode_row(tokenizer, MUFFIN, "What?", answer, queries=3)
