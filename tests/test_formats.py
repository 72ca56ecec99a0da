"""Muffin's TSV, rankings, stored log-probs and TFDS builds read as the same records; each bad field is one sentence."""

import base64
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_jax.data import sources
from rlhfv_jax.data.records import PreferenceRecord, Segment
from rlhfv_jax.data.tfds import rlhfv
from rlhfv_jax.errors import UserError

QUESTION, CHOSEN, REJECTED = "What is it?", "A dog.", "A cat."
RECORD = PreferenceRecord("3", b"pixels", QUESTION, CHOSEN, REJECTED, origin="VQAv2")
SIX = [-3.0, -1.5, [-1.0, -2.0], -4.0, -4.0, [-4.0]]


def b64(data: bytes | str) -> str:
    return base64.b64encode(data if isinstance(data, bytes) else data.encode()).decode()


def cells(value, **changes) -> str:
    """One line of Muffin's TSV."""
    row = {"ds_name": "dpo", "image": b64(b"pixels"), "text": b64(json.dumps(value)), "origin_dataset": "VQAv2"}
    row |= {"origin_split": b64("{}"), "idx": "3", "image_path": "a.jpg"} | changes
    return "\t".join(row.values()) + "\n"


def ranking(**changes) -> dict:
    """One entry of LLaVA-RLHF's preference file."""
    turns = [("human", f"<image>\n{QUESTION}"), ("gpt", "An older answer.")]
    return {
        "id": "3",
        "image_base64": b64(b"pixels"),
        "conversations": [{"from": speaker, "value": value} for speaker, value in turns],
        "output_1": {"from": "llava", "value": REJECTED},
        "output_2": {"from": "llava", "value": CHOSEN},
        "preference": 2,
        "origin": "VQAv2",
    } | changes


def placeless(records) -> list[PreferenceRecord]:
    return [dataclasses.replace(record, where="") for record in records]


def refusal(path, content: str) -> str:
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert path.name in str(caught.value)
    return str(caught.value)


# Muffin's TSV.


@pytest.mark.parametrize(
    "text", [[QUESTION, CHOSEN, REJECTED], {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED}]
)
def test_a_tsv_line_is_the_record(tmp_path, text):
    (tmp_path / "dpo-1.tsv").write_text(cells(text))
    assert placeless(sources.read(tmp_path / "dpo-1.tsv")) == [RECORD]


def test_a_tsv_line_with_log_probs_carries_those_of_each_token(tmp_path):
    (tmp_path / "dpo-1.tsv").write_text(cells([QUESTION, CHOSEN, REJECTED, SIX]))
    assert sources.read(tmp_path / "dpo-1.tsv")[0].logps == ((-1.0, -2.0), (-4.0,))


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("a\tb\n", ["row 0", "expected 7 columns", "found 2"]),
        (cells([QUESTION, CHOSEN]), ["row 0, text", "found 2 items"]),
        (cells("text"), ["row 0, text", "JSON list or object", "str"]),
        (cells([QUESTION, CHOSEN, None]), ["row 0, rejected", "expected text", "NoneType"]),
        (cells([QUESTION, CHOSEN, " "]), ["row 0, rejected", "empty"]),
        (cells({"question": QUESTION, "chosen": CHOSEN}), ["row 0, rejected", "missing"]),
        (cells([QUESTION, CHOSEN, CHOSEN]), ["row 0, chosen and rejected", "equal"]),
        (cells([QUESTION, CHOSEN, REJECTED], text="*"), ["row 0, text", "not base64"]),
        (cells([QUESTION, CHOSEN, REJECTED], text=b64("{")), ["row 0, text", "not valid JSON"]),
        (cells([QUESTION, CHOSEN, REJECTED], image="*"), ["row 0, image", "not base64"]),
        (cells([QUESTION, CHOSEN, REJECTED], image=""), ["row 0, image", "empty"]),
        (cells([QUESTION, CHOSEN, REJECTED], idx=" "), ["row 0, idx", "found none"]),
        (cells([QUESTION, CHOSEN, REJECTED]) * 2, ["row 1, id", "used before", "row 0"]),
        ("", ["has no rows"]),
    ],
)
def test_a_bad_tsv_is_refused(tmp_path, line, parts):
    message = refusal(tmp_path / "dpo-1.tsv", line)
    assert [part for part in parts if part not in message] == []


# Stored log-probs.


@pytest.mark.parametrize(
    ("logps", "words"),
    [
        ([1, 2], "expected a list of six"),
        ("no", "expected a list of six"),
        ([-3, -1, ["x"], -4, -4, [-4]], "the chosen answer's log-probs per token are not numbers"),
        ([-3, -1, [-1], -4, -4, [float("nan")]], "the rejected answer's log-probs per token are not a list of finite"),
        ([-3, -1, [-1], -4, -4, -4], "the rejected answer's log-probs per token are not a list of finite"),
    ],
)
def test_bad_stored_log_probs_are_refused(tmp_path, logps, words):
    message = refusal(tmp_path / "dpo-1.tsv", cells([QUESTION, CHOSEN, REJECTED, logps]))
    assert "row 0, logps" in message and words in message


@pytest.mark.parametrize("place", ["in the text", "in a column"])
def test_the_parquets_log_probs_are_read_from_either_place(tmp_path, place):
    """Muffin writes them into `text`, RLAIF-V beside question, chosen and rejected in columns of their own."""
    texts = {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED}
    row = {"image": {"bytes": b"pixels", "path": None}, "idx": 3, "origin_dataset": "VQAv2"}
    if place == "in the text":
        row["text"] = json.dumps(texts | {"logps": SIX})
    else:
        row |= texts | {"logps": json.dumps({"logps": SIX})}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    (record,) = sources.read(tmp_path / "pairs.parquet")
    assert record.logps == ((-1.0, -2.0), (-4.0,))
    assert dataclasses.replace(record, where="", logps=None) == RECORD


def test_log_probs_and_history_survive_every_writer(tmp_path):
    record = dataclasses.replace(RECORD, logps=((-1.0, -2.5), (-4.0,)), history=(("Where?", "Here."),))
    sources.write_parquet([record], tmp_path / "a.parquet")
    sources.write_jsonl([record], tmp_path / "b.jsonl")
    for name in ("a.parquet", "b.jsonl"):
        found = sources.read(tmp_path / name)
        assert placeless(found) == [record]
        assert sources.digest(found) == sources.digest([record]) != sources.digest([RECORD])


@pytest.mark.parametrize("history", [[["a"]], "text", [["a", 1]], {"a": "b"}])
def test_a_bad_history_is_refused(tmp_path, history):
    line = {"question": QUESTION, "chosen": CHOSEN, "rejected": REJECTED, "image_base64": b64(b"x"), "history": history}
    assert "row 0, history: expected a list" in refusal(tmp_path / "pairs.jsonl", json.dumps(line) + "\n")


# Rankings.


def test_a_ranking_without_segments_is_the_same_record(tmp_path):
    (tmp_path / "ranked.json").write_text(json.dumps([ranking()]))
    (tmp_path / "ranked.jsonl").write_text(json.dumps(ranking()) + "\n")
    for name in ("ranked.json", "ranked.jsonl"):
        assert placeless(sources.read(tmp_path / name)) == [RECORD]


def test_rlaif_vs_columns_are_the_same_record(tmp_path):
    row = {"ds_name": "x", "image": {"bytes": b"pixels", "path": None}, "question": QUESTION, "chosen": CHOSEN}
    row |= {"rejected": REJECTED, "origin_dataset": "VQAv2", "origin_split": "{}", "idx": 3, "image_path": ""}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    assert placeless(sources.read(tmp_path / "pairs.parquet")) == [RECORD]
    del row["rejected"]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match="column 'rejected' is missing"):
        sources.read(tmp_path / "pairs.parquet")


def test_the_preferred_output_is_chosen_and_earlier_turns_are_history(tmp_path):
    turns = [("human", "Where?\n<image>"), ("gpt", "Here."), ("human", QUESTION), ("gpt", "Old.")]
    conversation = [{"from": speaker, "value": value} for speaker, value in turns]
    (tmp_path / "ranked.json").write_text(json.dumps([ranking(conversations=conversation, preference=1)]))
    (record,) = sources.read(tmp_path / "ranked.json")
    assert (record.chosen, record.rejected) == (REJECTED, CHOSEN)
    assert (record.history, record.question) == ((("Where?", "Here."),), QUESTION)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"preference": 0}, ["preference", "expected 1 or 2, found 0"]),
        ({"preference": True}, ["preference", "expected 1 or 2"]),
        ({"output_2": "A dog."}, ["output_2", "an object with a value"]),
        ({"output_1": {"value": 3}}, ["rejected", "expected text", "int"]),
        ({"conversations": []}, ["conversations", "human and gpt turns in pairs"]),
        ({"conversations": [{"from": "gpt", "value": "x"}] * 2}, ["conversations, turn 0", "a text from human"]),
        ({"id": None}, ["id", "expected text or a number"]),
        ({"image_base64": None}, ["image (a path) or image_base64"]),
    ],
)
def test_a_bad_ranking_is_refused(tmp_path, changes, parts):
    message = refusal(tmp_path / "ranked.json", json.dumps([ranking(**changes)]))
    assert [part for part in ["row 0", *parts] if part not in message] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "expected a JSON list"), ("[3]", "row 0: expected a JSON object"), ("[", "not valid"), ("[]", "no rows")],
)
def test_a_json_file_of_another_form_is_refused(tmp_path, content, words):
    assert words in refusal(tmp_path / "ranked.json", content)


# Selection.


def mixed(tmp_path):
    origins = ["GQA", "VQAv2", "GQA", "VQAv2", "VQAv2"]
    records = [dataclasses.replace(RECORD, id=str(i), origin=origin) for i, origin in enumerate(origins)]
    sources.write_parquet(records, tmp_path / "pairs.parquet")
    return tmp_path / "pairs.parquet", records


def test_rows_are_selected_by_origin_then_count_and_the_digest_is_theirs(tmp_path):
    path, records = mixed(tmp_path)
    for origins, count, kept in ((("VQAv2",), 2, [1, 3]), ((), 3, [0, 1, 2]), (("GQA", "VQAv2"), 0, range(5))):
        found = sources.read(path, origins, count)
        assert [record.id for record in found] == [str(i) for i in kept]
        assert sources.digest(found) == sources.digest([records[i] for i in kept])


def test_a_selection_that_cannot_be_made_is_refused(tmp_path):
    path, _ = mixed(tmp_path)
    with pytest.raises(UserError, match=r"pairs\.parquet has no rows of origin 'OKVQA'; found GQA, VQAv2"):
        sources.read(path, ("OKVQA",))
    with pytest.raises(UserError, match=r"has 2 such rows, data\.count asks for 3"):
        sources.read(path, ("GQA",), 3)


def test_the_docs_example_runs(coco_records, tmp_path, monkeypatch):
    """From one form to another and into a TFDS build, as docs/data.md writes it."""
    monkeypatch.chdir(tmp_path)
    sources.write_jsonl([dataclasses.replace(record, origin="VQAv2") for record in coco_records[:3]], "pairs.jsonl")
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], {})
    assert len(sources.read("pairs.parquet")) == len(sources.read("tfds")) == 3


# TFDS.


def test_a_tfds_build_of_coco_pairs_reads_back_equal(coco_records, tmp_path):
    """130 foil pairs on real photos, one with segments, one with log-probs and earlier turns; bytes of images kept."""
    records = list(coco_records)
    segments = ((Segment(0, 1, "object"),), (Segment(0, 1), Segment(2, 5, "número")))
    records[3] = dataclasses.replace(records[3], segments=segments, origin="SugarCrepe")
    records[4] = dataclasses.replace(records[4], segments=((), ()), history=(("Hm?", "Yes."),))
    records[5] = dataclasses.replace(records[5], logps=((-1.0, -0.1), (-2.5,)))
    records[5] = dataclasses.replace(
        records[5], logps=tuple(tuple(np.float32(side).astype(float).tolist()) for side in records[5].logps)
    )
    folder = rlhfv.prepare(records, tmp_path)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".array_record-00000-of-00001"}
    for path in (folder, tmp_path):
        found = sources.read(path)
        assert placeless(found) == placeless(records)
        assert sources.digest(found) == sources.digest(records)
    assert found[7].where.endswith("rlhfv/1.0.0, row 7")
    with pytest.raises(UserError, match="already holds a data set"):
        rlhfv.prepare(records[:1], tmp_path)


def test_tensorflow_is_not_imported(coco_records, tmp_path):
    folder = rlhfv.prepare(coco_records[:2], tmp_path)
    code = (
        "import sys; from rlhfv_jax.data import sources; from rlhfv_jax.data.tfds import rlhfv; "
        f"records = sources.read({str(folder)!r}); rlhfv.prepare(records, {str(tmp_path / 'again')!r}); "
        "assert len(records) == 2 and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_folder_without_a_build_or_with_a_broken_one_is_refused(coco_records, tmp_path):
    with pytest.raises(UserError, match=r"holds no TFDS data set rlhfv"):
        sources.read(tmp_path)
    folder = rlhfv.prepare(coco_records[:4], tmp_path)
    (data,) = folder.glob("*.array_record*")
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(UserError, match="is not a readable TFDS data set"):
        sources.read(folder)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="is not a readable TFDS data set"):
        sources.read(folder)
