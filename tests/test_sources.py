"""Every format gives the same records; every bad input is one sentence with file, row and field."""

import base64
import dataclasses
import json
import re
import resource
from contextlib import contextmanager, suppress

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhfv_jax.data import sources
from rlhfv_jax.data.sources import PreferenceRecord, Segment
from rlhfv_jax.errors import UserError

GOOD = {"question": "What is it?", "chosen": "A dog.", "rejected": "A cat."}
TEXT = json.dumps(GOOD)
IMAGE = {"image_base64": base64.b64encode(b"pixels").decode()}
LINE = json.dumps(GOOD | IMAGE)
RECORD = PreferenceRecord("3", b"pixels", GOOD["question"], GOOD["chosen"], GOOD["rejected"])
WRITERS = [(sources.write_parquet, "pairs.parquet"), (sources.write_jsonl, "pairs.jsonl")]


def parquet(path, *changes: dict, drop: str = ""):
    """A file of the published schema with one row for each dict of changes."""
    rows = [
        {"ds_name": "rlhf-v", "image": {"bytes": b"pixels", "path": None}, "text": TEXT, "origin_dataset": "VQAv2"}
        | {"origin_split": "{}", "idx": i, "image_path": ""}
        | change
        for i, change in enumerate(changes)
    ]
    schema = sources.PARQUET_SCHEMA
    pq.write_table(pa.Table.from_pylist(rows, schema.remove(schema.get_field_index(drop)) if drop else schema), path)
    return path


def refusal(path) -> str:
    """The message with which the file is refused; always names the file."""
    with pytest.raises(UserError) as caught:
        sources.read(path)
    assert path.name in str(caught.value) or sources.segments_path(path).name in str(caught.value)
    return str(caught.value)


@contextmanager
def full_disk():
    """Files cannot grow beyond two kilobytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def segmented(record: PreferenceRecord) -> PreferenceRecord:
    return dataclasses.replace(record, segments=((Segment(2, 5, "object"),), (Segment(0, 1), Segment(2, 5, "número"))))


# The formats agree.


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_written_records_are_read_back(coco_records, tmp_path, write, name):
    write(coco_records, tmp_path / name)
    found = sources.read(tmp_path / name)
    assert [dataclasses.replace(r, where="") for r in found] == [dataclasses.replace(r, where="") for r in coco_records]
    assert sources.digest(found) == sources.digest(coco_records)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_any_unicode_survives(tmp_path, write, name):
    text = 'naïve\u2028 🐱\r\n\t"\\ \x00 e\u0301\u0085'
    record = dataclasses.replace(RECORD, question=text, chosen=text + "a", rejected=text + "b")
    write([record], tmp_path / name)
    found = sources.read(tmp_path / name)[0]
    assert (found.question, found.chosen, found.rejected) == (text, text + "a", text + "b")


def test_the_parquet_has_the_published_columns(tmp_path):
    sources.write_parquet([RECORD], tmp_path / "pairs.parquet")
    table = pq.read_table(tmp_path / "pairs.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        "ds_name": "string",
        "image": "struct<bytes: binary, path: string>",
        "text": "string",
        "origin_dataset": "string",
        "origin_split": "string",
        "idx": "int64",
        "image_path": "string",
    }
    assert json.loads(table["text"][0].as_py()) == GOOD
    assert table["image"][0].as_py()["bytes"] == b"pixels"


def test_the_published_rows_are_read(tmp_path):
    """The column `idx` is the id, also where the other columns are missing or null."""
    path = parquet(tmp_path / "pairs.parquet", {"idx": 7}, {"idx": 5, "origin_dataset": None}, drop="ds_name")
    records = sources.read(path)
    assert [record.id for record in records] == ["7", "5"]
    assert [record.origin for record in records] == ["VQAv2", ""]
    assert records[1].where == f"{path}, row 1"


def test_jsonl_images_are_paths_beside_the_file_or_base64(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"from a file")
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD | {"image": "images/a.jpg"}) + "\n\n" + LINE + "\r\n")
    records = sources.read(path)
    assert [record.image for record in records] == [b"from a file", b"pixels"]
    assert [record.id for record in records] == ["0", "2"]  # the line number, blank lines counted


def test_numeric_and_text_ids_are_the_same_id(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD | IMAGE | {"id": 12}) + "\n" + json.dumps(GOOD | IMAGE | {"id": "x-1"}) + "\n")
    assert [record.id for record in sources.read(path)] == ["12", "x-1"]


# Segments.


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_segments_travel_beside_the_file(tmp_path, write, name):
    records = [segmented(RECORD), dataclasses.replace(RECORD, id="4")]
    write(records, tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {name, "pairs.segments.jsonl"}
    found = sources.read(tmp_path / name)
    assert [record.segments for record in found] == [records[0].segments, None]
    assert sources.digest(found) == sources.digest(records)


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_writing_without_segments_removes_old_ones(tmp_path, write, name):
    write([segmented(RECORD)], tmp_path / name)
    write([RECORD], tmp_path / name)
    assert sources.read(tmp_path / name)[0].segments is None


def test_a_file_of_the_same_stem_never_loses_its_segments(tmp_path):
    """pairs.jsonl and pairs.parquet share one sidecar; writing the second is refused or leaves the first's spans."""
    sources.write_jsonl([segmented(RECORD)], tmp_path / "pairs.jsonl")
    with suppress(UserError):
        sources.write_parquet([dataclasses.replace(RECORD, id="4")], tmp_path / "pairs.parquet")
    assert sources.read(tmp_path / "pairs.jsonl")[0].segments == segmented(RECORD).segments


def sidecar_line(**fields) -> str:
    return json.dumps({"id": 0, "chosen": [{"start": 0, "end": 1}], "rejected": []} | fields)


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (sidecar_line(id=9), ["pairs.segments.jsonl", "'9' does not occur", "pairs.jsonl"]),
        (sidecar_line(chosen=[{"start": 2, "end": 7}]), ["row 0", "chosen", "[2, 7)", "6 characters"]),
        (sidecar_line(rejected=[{"start": -1, "end": 2}]), ["row 0", "rejected", "[-1, 2)"]),
        (sidecar_line(rejected=[{"start": 3, "end": 2}]), ["row 0", "rejected", "[3, 2)"]),
        (sidecar_line(chosen=[{"start": 0}]), ["row 0", "chosen", "end"]),
        (sidecar_line(chosen=[{"start": "a", "end": 2}]), ["row 0", "chosen"]),
        (sidecar_line(chosen=[{"start": 0.5, "end": 2}]), ["row 0", "chosen"]),
        (sidecar_line(chosen=[[0, 2]]), ["row 0", "chosen", "start, end and type"]),
        (sidecar_line(chosen={}), ["row 0", "chosen"]),
        (json.dumps({"id": 0, "chosen": []}), ["row 0", "rejected"]),
        (json.dumps({"chosen": [], "rejected": []}), ["row 0", "id"]),
        ("{", ["row 0", "not valid JSON"]),
        ("[]", ["row 0", "expected a JSON object"]),
        (sidecar_line() + "\n" + sidecar_line(chosen=[]), ["row 1", "id", "before"]),
    ],
)
def test_a_bad_sidecar_is_refused(tmp_path, line, parts):
    path = tmp_path / "pairs.jsonl"
    path.write_text(LINE + "\n")
    sources.segments_path(path).write_text(line + "\n")
    message = refusal(path)
    assert [part for part in parts if part not in message] == []


# Bad input.


def with_text(**fields) -> dict:
    return {"text": json.dumps({key: value for key, value in (GOOD | fields).items() if value is not ...})}


BAD_ROWS = {
    "broken JSON": ({"text": '{"question": '}, ["text", "not valid JSON"]),
    "null text": ({"text": None}, ["text", "not valid JSON"]),
    "JSON that is a list": ({"text": "[]"}, ["text", "expected a JSON object", "list"]),
    "no question": (with_text(question=...), ["question", "missing", "chosen, rejected"]),
    "null question": (with_text(question=None), ["question", "expected text", "NoneType"]),
    "number as answer": (with_text(chosen=3), ["chosen", "expected text", "int"]),
    "list as answer": (with_text(rejected=["a"]), ["rejected", "expected text", "list"]),
    "empty answer": (with_text(chosen=""), ["chosen", "empty"]),
    "blank answer": (with_text(rejected=" \n"), ["rejected", "empty"]),
    "blank question": (with_text(question="\t"), ["question", "empty"]),
    "equal answers": (with_text(chosen="A cat."), ["chosen and rejected", "equal"]),
    "half a surrogate pair": (with_text(chosen="a \ud83d dog"), ["chosen", "surrogate"]),
    "null image": ({"image": None}, ["image", "found none"]),
    "null image bytes": ({"image": {"bytes": None, "path": "a.jpg"}}, ["image", "found none"]),
    "empty image bytes": ({"image": {"bytes": b"", "path": None}}, ["image", "found none"]),
    "null idx": ({"idx": None}, ["idx", "found null"]),
    "idx used twice": ({"idx": 0}, ["id", "'0'", "row 0", "unique"]),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_parquet_row_is_refused(tmp_path, kind):
    change, parts = BAD_ROWS[kind]
    message = refusal(parquet(tmp_path / "pairs.parquet", {}, change))
    assert [part for part in ["pairs.parquet", "row 1", *parts] if part not in message] == []


BAD_LINES = {
    "broken JSON": ("{", ["not valid JSON"]),
    "a list": ("[1]", ["expected a JSON object", "list"]),
    "no image": (TEXT, ["image", "image_base64", "question"]),
    "missing image file": (json.dumps(GOOD | {"image": "none.jpg"}), ["image", "none.jpg", "No such file"]),
    "image path of a folder": (json.dumps(GOOD | {"image": "."}), ["image", "Is a directory"]),
    "image path with NUL": (json.dumps(GOOD | {"image": "a\0b"}), ["image"]),
    "image that is a number": (json.dumps(GOOD | {"image": 3}), ["image"]),
    "bad base64": (json.dumps(GOOD | {"image_base64": "a"}), ["image_base64", "not base64"]),
    "base64 with other characters": (json.dumps(GOOD | {"image_base64": "cGl4*ZWxz"}), ["image_base64", "not base64"]),
    "base64 beyond ASCII": (json.dumps(GOOD | {"image_base64": "é"}), ["image_base64", "not base64"]),
    "empty base64": (json.dumps(GOOD | {"image_base64": ""}), ["image_base64"]),
    "no question": (json.dumps({"chosen": "a", "rejected": "b"} | IMAGE), ["question", "missing"]),
    "number as answer": (json.dumps(GOOD | IMAGE | {"chosen": 1.5}), ["chosen", "expected text", "float"]),
    "empty answer": (json.dumps(GOOD | IMAGE | {"rejected": ""}), ["rejected", "empty"]),
    "blank answer": (json.dumps(GOOD | IMAGE | {"chosen": "\u3000"}), ["chosen", "empty"]),
    "equal answers": (json.dumps(GOOD | IMAGE | {"chosen": "A cat."}), ["chosen and rejected", "equal"]),
    "half a surrogate pair": (json.dumps(GOOD | IMAGE | {"question": "\udc00?"}), ["question", "surrogate"]),
    "duplicate id": (json.dumps(GOOD | IMAGE | {"id": "0"}), ["id", "'0'", "row 0", "unique"]),
    "id that is an object": (json.dumps(GOOD | IMAGE | {"id": {"a": 1}}), ["id"]),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_jsonl_line_is_refused(tmp_path, kind):
    line, parts = BAD_LINES[kind]
    path = tmp_path / "pairs.jsonl"
    path.write_text(LINE + "\n" + line + "\n")
    message = refusal(path)
    assert [part for part in ["pairs.jsonl", "row 1", *parts] if part not in message] == []


@pytest.mark.parametrize("column", ["image", "text", "idx"])
def test_a_missing_column_is_named(tmp_path, column):
    message = refusal(parquet(tmp_path / "pairs.parquet", {}, drop=column))
    assert f"column '{column}' is missing" in message and "ds_name" in message


def test_a_column_of_another_type_is_refused(tmp_path):
    path = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"image": [{"bytes": "pixels"}], "text": [TEXT], "idx": [0]}), path)
    assert "image" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("pairs.parquet", b"PAR1 no more", "not a readable parquet file"),
        ("pairs.parquet", b"", "not a readable parquet file"),
        ("pairs.jsonl", b"", "has no rows"),
        ("pairs.jsonl", b"\n \n", "has no rows"),
        ("pairs.jsonl", b"\xff\xfe{}", "UTF-8"),
        ("pairs.csv", b"question,chosen", "expected preference pairs as .parquet, .jsonl, .json, .tsv or a folder"),
        ("pairs", b"", "expected preference pairs as .parquet, .jsonl, .json, .tsv or a folder"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, content, part):
    (tmp_path / name).write_bytes(content)
    assert part in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl", "tfds"])
def test_a_missing_file_is_refused(tmp_path, name):
    assert "does not exist" in refusal(tmp_path / name)


def test_a_parquet_without_rows_is_refused(tmp_path):
    assert "has no rows" in refusal(parquet(tmp_path / "pairs.parquet"))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    path = parquet(tmp_path / "pairs.parquet", {})
    table = pq.read_table(path)
    text = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff{}"], pa.binary()).buffers())
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", text), path)
    assert "pairs.parquet" in refusal(path)


def test_json_nested_beyond_reason_is_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("[" * 100_000)
    assert "row 0" in refusal(path)


def test_a_damaged_parquet_is_refused_or_read_whole(tmp_path):
    """Bytes lost in a download: never a raw traceback."""
    path = parquet(tmp_path / "pairs.parquet", {"image": {"bytes": bytes(range(256)) * 20, "path": None}}, {}, {})
    whole = path.read_bytes()
    for at in range(0, len(whole), 37):
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        try:
            assert sources.read(path)
        except UserError as error:
            assert "pairs.parquet" in str(error)


# Digest.


@pytest.mark.parametrize(
    "change",
    [
        {"id": "4"},
        {"image": b"pixelt"},
        {"question": "What is it"},
        {"chosen": "A dog"},
        {"rejected": "A cat"},
        {"segments": ((), ())},
        {"segments": ((Segment(0, 1),), ())},
        {"segments": ((), (Segment(0, 1),))},
        {"chosen": RECORD.rejected, "rejected": RECORD.chosen},
    ],
)
def test_the_digest_changes_with_every_field(change):
    assert sources.digest([dataclasses.replace(RECORD, **change)]) != sources.digest([RECORD])


def test_the_digest_depends_on_order_and_count_but_not_on_the_file():
    other = dataclasses.replace(RECORD, id="4")
    digests = {sources.digest(records) for records in ([RECORD, other], [other, RECORD], [RECORD], [])}
    assert len(digests) == 4
    assert sources.digest([dataclasses.replace(RECORD, where="elsewhere")]) == sources.digest([RECORD])


# Writing.


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_full_disk_keeps_the_old_file(coco_records, tmp_path, write, name):
    write([RECORD], tmp_path / name)
    old = (tmp_path / name).read_bytes()
    with pytest.raises(Exception, match=r"(?i)file too large|large"), full_disk():
        write(coco_records, tmp_path / name)
    assert (tmp_path / name).read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_full_disk_keeps_the_old_segments(coco_records, tmp_path, write, name):
    write([segmented(RECORD)], tmp_path / name)
    with pytest.raises(Exception, match=r"(?i)file too large|large"), full_disk():
        write(coco_records, tmp_path / name)
    assert sources.read(tmp_path / name)[0].segments == segmented(RECORD).segments


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_full_disk_is_the_users_error(coco_records, tmp_path, write, name):
    with pytest.raises(UserError, match=re.escape(name)), full_disk():
        write(coco_records, tmp_path / name)


@pytest.mark.parametrize("identity", ["x-1", "-3", "", "000000000785", "٣", "9" * 30])
def test_an_id_that_parquet_would_change_is_refused(tmp_path, identity):
    path = tmp_path / "pairs.parquet"
    with pytest.raises(UserError, match=rf"pairs\.parquet.*{identity}"):
        sources.write_parquet([dataclasses.replace(RECORD, id=identity)], path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_missing_folder_is_the_users_error(tmp_path, write, name):
    with pytest.raises(UserError, match="nowhere"):
        write([RECORD], tmp_path / "nowhere" / name)
