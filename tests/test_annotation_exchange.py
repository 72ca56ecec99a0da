"""Projects to other tools, to an archive, and back: nothing is lost, and what is unusable is named."""

import csv
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("regex")
from annotation_world import CORRECTED, RESPONSE, picture
from exchange_world import build, content
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from rlhfv_jax.annotation import assignment, collected, diff, exchange, exports, imports, project
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.data import sources
from rlhfv_jax.errors import UserError

few = settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
seeds = st.integers(0, 10**9)
kinds = st.sampled_from(["correction", "mhumaneval"])


def there(folder: Path, file: Path, kind: str, **options) -> tuple[Store, imports.Report]:
    """A new store with the file imported into it."""
    store = Store(folder)
    found = imports.archived(file)
    name, wanted = found or (kind, project.new(kind))
    identity = store.write(lambda c: assignment.add_project(c, name, wanted))
    report = imports.run(store, identity, file, imports.Options(**options))
    return store, report


def without_status(folder: Path, kind: str) -> Store:
    """A store with the records as Argilla's own `to_json` writes them again: without what a response's status was."""
    records = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    for record in records:
        record["responses"] = {
            question: [{name: one[name] for name in ("value", "user_id")} for one in answers]
            for question, answers in record["responses"].items()
        }
    (folder / "argilla.json").write_text(json.dumps(records), encoding="utf-8")
    store, report = there(folder / "c", folder / "argilla.json", kind)
    assert report.errors == []
    return store


def export(store: Store, kind: str, form: str, path: Path) -> dict:
    return exports.export(store, 1, project.new(kind), form, path)


@few
@given(seeds, kinds)
def test_an_archive_imported_into_a_new_directory_exports_the_same_bytes(seed, kind):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = build(folder / "a", seed, kind)
        export(before, kind, "archive", folder / "project.zip")
        after, report = there(folder / "b", folder / "project.zip", kind)
        assert report.errors == []
        assert content(after, names=True) == content(before, names=True)
        forms = {"archive": "project.zip", "csv": "table.csv", "label_studio": "tasks.json", "argilla": "records.json"}
        forms |= {"parquet": "pairs.parquet", "jsonl": "lines.jsonl"} if kind == "correction" else {"spans": "spans"}
        for form, file in forms.items():
            made = []
            for store in (before, after):
                target = store.folder / "out" / form  # made by the export
                try:
                    counts = export(store, kind, form, target / file)["counts"]
                    if form == "csv":
                        with (target / file).open(encoding="utf-8", newline="") as table:
                            assert counts["rows"] == sum(1 for _ in csv.DictReader(table))
                except UserError as error:  # nothing finished, or nothing corrected
                    made.append(str(error))
                else:
                    made.append({str(p.relative_to(target)): p.read_bytes() for p in target.rglob("*") if p.is_file()})
            assert made[0] == made[1]
        before.close()
        after.close()


@few
@given(seeds, kinds, st.sampled_from(["label_studio", "argilla"]))
def test_another_tools_file_comes_back_whole(seed, kind, form):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = build(folder / "a", seed, kind)
        export(before, kind, form, folder / "tasks.json")
        after, report = there(folder / "b", folder / "tasks.json", kind)
        assert report.errors == []
        assert content(after, names=True) == content(before, names=False)
        if form == "argilla":
            assert content(without_status(folder, kind), names=True) == content(before, names=False)
        for row in after.read.execute(
            "SELECT a.id, a.cuts_json, a.corrected, i.response FROM annotation a JOIN item i ON i.id = a.item "
            "WHERE a.verdict = 'corrected' AND ? = 'correction'",
            (kind,),
        ):
            cuts = diff.Cuts(*(tuple(map(tuple, json.loads(row["cuts_json"])[n])) for n in ("splits", "merges")))
            stored = after.read.execute(
                "SELECT src0, src1, dst0, dst1 FROM segment WHERE annotation = ? ORDER BY ord", (row["id"],)
            )
            assert diff.segments(row["response"], row["corrected"], cuts) == [diff.Change(*s) for s in stored]
        again = imports.run(before, 1, folder / "tasks.json", imports.Options())
        assert (again.errors, again.added, again.annotations) == ([], 0, 0)  # it knows its own work again
        before.close()
        after.close()


@few
@given(seeds, st.sampled_from(["label_studio", "argilla"]))
def test_labels_and_texts_alone_give_the_replaced_and_deleted_segments_back(seed, form):
    """As made in the other tool: without our notes, and without divisions that the texts do not show."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = build(folder / "a", seed)
        export(before, "correction", form, folder / "tasks.json")
        tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
        for task in tasks:
            task.get("data", task.get("metadata")).pop("rlhfv")
        (folder / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
        after, report = there(folder / "b", folder / "tasks.json", "correction", keep_going=True)
        for error in report.errors:
            assert "tasks.json, " in error["detail"] and (
                "one change" in error["detail"] or "leaves it" in error["detail"]
            )
        every = collected.finished(before.read, 1)
        known = {r.response: [o for o in every if o.response == r.response] for r in every}
        for row in collected.finished(after.read, 1):
            mine = [o for o in known[row.response] if (o.verdict, o.corrected) == (row.verdict, row.corrected)]
            assert mine or row.verdict == "skipped"
            if row.verdict == "corrected" and any(
                {s.change for s in o.segments} == {s.change for s in row.segments} for o in mine
            ):
                typed = {s for s in row.segments if s.op != "insert"}
                assert any(typed <= set(o.segments) for o in mine)
        before.close()
        after.close()


def task(response=RESPONSE, corrected=CORRECTED, regions=((2, 5, "attributes"), (24, 28, "positions")), **more) -> dict:
    """A task as Label Studio exports it, labels made by hand."""
    results = [
        {
            "from_name": "label",
            "to_name": "text",
            "type": "labels",
            "id": str(i),
            "value": {"start": a, "end": b} | {"labels": [kind]},
        }
        for i, (a, b, kind) in enumerate(regions)
    ]
    results.append({"from_name": "fix", "to_name": "text", "type": "textarea", "value": {"text": [corrected]}})
    one = {"id": 7, "completed_by": {"email": "ada@example.org"}, "result": results, "was_cancelled": False}
    one |= {"lead_time": 12.5, "created_at": "2026-01-02T03:04:05.678Z", "updated_at": "2026-01-02T03:04:18Z"}
    data = {"image": exchange.data_url("image/jpeg", picture()), "question": "What is it?", "answer": response}
    return {"id": 31, "data": data, "annotations": [one | more]}


def run(folder: Path, values: list, **options) -> tuple[Store, imports.Report]:
    folder.mkdir(exist_ok=True)
    (folder / "given.json").write_text(json.dumps(values), encoding="utf-8")
    return there(folder / "store", folder / "given.json", "correction", **options)


def test_a_correction_made_in_label_studio_is_a_submission_of_its_annotator(tmp_path):
    store, report = run(tmp_path, [task()])
    assert (report.errors, report.added, report.annotations) == ([], 1, 1)
    (row,) = collected.finished(store.read, 1)
    assert [(s.src_text, s.dst_text, s.type) for s in row.segments] == [
        ("red", "blue", "attributes"),
        ("left", "right", "positions"),
    ]
    assert (row.active_ms, row.opened, row.ext_id, row.prompt) == (12500, 1767323045.678, "31", "What is it?")
    assert [r["name"] for r in store.read.execute("SELECT name FROM annotator")] == ["ada@example.org"]
    assert (
        exports.export(store, 1, project.new("correction"), "parquet", tmp_path / "p.parquet")["counts"]["pairs"] == 1
    )
    store.close()


def test_offsets_of_either_unit_are_told_by_the_words_they_store(tmp_path):
    response = "👩‍👩‍👧 👍🏽 and a red bus."
    at = response.index("red")
    utf16 = len(response[:at].encode("utf-16-le")) // 2
    assert utf16 == at + 5
    for start in (at, utf16):
        one = task(response, response.replace("red", "blue"), [(start, start + 3, "Attributes")])
        one["annotations"][0]["result"][0]["value"]["text"] = "red"
        store, report = run(tmp_path / str(start), [one])
        assert report.errors == []
        (row,) = collected.finished(store.read, 1)
        assert [(s.src_text, s.type) for s in row.segments] == [("red", "attributes")]
        store.close()
    one["annotations"][0]["result"][0]["value"]["text"] = "bus"
    _, report = run(tmp_path / "wrong", [one])
    assert "task 31, annotation 7, result 0: 'bus' does not stand at" in report.errors[0]["detail"]


def test_an_answer_that_changes_form_keeps_its_labels_in_place(tmp_path):
    response = "Cafe\u0301\r\nwith a red bus."  # two code points shorter once normalized
    at = response.index("red")
    store, report = run(tmp_path, [task(response, response.replace("red", "blue"), [(at, at + 3, "attributes")])])
    assert (report.errors, report.normalized) == ([], 1)
    (row,) = collected.finished(store.read, 1)
    assert [(s.src_text, s.dst_text) for s in row.segments] == [("red", "blue")]
    store.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"regions": [(2, 5, "attributes")]}, "the change 'left' → 'right' has no label"),
        ({"regions": [(2, 5, "colors"), (24, 28, "positions")]}, "'colors' is no type of this project"),
        ({"regions": [(2, 5, "attributes"), (24, 28, "positions"), (32, 35, "numbers")]}, "'two' is labeled numbers"),
        ({"corrected": RESPONSE}, "'red' is labeled attributes"),
        ({"corrected": " ", "regions": [(2, 5, "attributes")]}, "The text is empty"),
        ({"corrected": RESPONSE + " ", "regions": []}, "Only white space was changed"),
        ({"regions": [(2, 500, "attributes")]}, "[2, 500) leaves the answer's 40 characters"),
        ({"regions": [(5, 2, "attributes")]}, "expected two offsets"),
        ({"result": "none"}, "expected a list of objects"),
        (
            {"corrected": "Some men.", "regions": [(2, 5, "attributes"), (24, 28, "positions")]},
            "is labeled attributes, positions, and where it divides is not clear",
        ),
    ],
)
def test_what_cannot_be_used_is_named_with_task_and_annotation(tmp_path, change, words):
    store, report = run(tmp_path, [task(), task(**change) | {"id": 32}])
    assert report.added == 0 and len(report.errors) == 1
    assert "given.json, task 32, annotation 7" in report.errors[0]["detail"] and words in report.errors[0]["detail"]
    store.close()


def test_images_are_found_where_label_studio_kept_them_and_never_fetched(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a b.jpg").write_bytes(picture())
    (folder / "b.jpg").write_bytes(picture(1))
    addresses = ["/data/local-files/?d=sub/a%20b.jpg", "/data/upload/3/0123abcd-b.jpg", "sub/a b.jpg"]
    tasks = [task() | {"id": i} for i in range(4)]
    for one, address in zip(tasks, [*addresses, "https://example.org/a.jpg"], strict=True):
        one["data"] = one["data"] | {"image": address}
    store, report = run(tmp_path, tasks, images=str(folder), keep_going=True)
    assert report.added == 3
    assert "task 3, data.image: 'https://example.org/a.jpg' is not fetched" in report.errors[0]["detail"]
    store.close()
    _, report = run(tmp_path / "other", tasks[:1], images=str(tmp_path / "images" / "sub"), confined=True)
    assert report.errors == []  # by its last name, inside the folder
    tasks[0]["data"] = tasks[0]["data"] | {"image": "../images/b.jpg"}
    outside, report = run(tmp_path / "third", tasks[:1], images=str(folder / "sub"), confined=True)
    assert "no file of '../images/b.jpg'" in report.errors[0]["detail"]
    outside.close()


def test_work_done_elsewhere_on_our_own_items_is_added_to_them(tmp_path):
    before = build(tmp_path / "a", 5)
    export(before, "correction", "label_studio", tmp_path / "tasks.json")
    tasks = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    text = tasks[0]["data"]["response"]
    tasks[0]["annotations"].append({"id": 1, "completed_by": {"email": "dot@example.org"}, "result": []})
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    had = len(collected.finished(before.read, 1))
    report = imports.run(before, 1, tmp_path / "tasks.json", imports.Options())
    assert (report.errors, report.annotations) == ([], 1)
    rows = collected.finished(before.read, 1)
    assert len(rows) == had + 1
    tasks[0]["data"]["response"] = text + " And more."
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    report = imports.run(before, 1, tmp_path / "tasks.json", imports.Options())
    assert "is here with another answer" in report.errors[0]["detail"]
    before.close()


def test_a_damaged_archive_is_refused_by_member_line_and_field(tmp_path):
    before = build(tmp_path / "a", 11, items=3)
    export(before, "correction", "archive", tmp_path / "project.zip")
    before.close()
    with zipfile.ZipFile(tmp_path / "project.zip") as file:
        members = {name: file.read(name) for name in file.namelist()}
    picture_name = next(name for name in members if name.startswith("images/"))
    annotation = json.loads(members["annotations.jsonl"].split(b"\n")[0])

    def changed(**fields):
        return {"annotations.jsonl": json.dumps(annotation | fields).encode()}

    for number, (change, words) in enumerate(
        [
            ({picture_name: b"other"}, "is damaged: its content is not what its name says"),
            (changed(item="nobody"), "annotations.jsonl line 1, item: 'nobody' does not occur in items.jsonl"),
            (changed(state="done"), "annotations.jsonl line 1: state 'done' and verdict"),
            (changed(revision="1"), "annotations.jsonl line 1, revision: expected a whole number"),
            (changed(segments=[[0, 10**6, 0, 0, "objects"]]), "leaves the text or lies out of order"),
            (
                changed(verdict="corrected", state="submitted", segments=[], corrected="Quite another text."),
                "no segment says so",
            ),
        ]
    ):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as file:
            for name, data in (members | change).items():
                file.writestr(name, data)
        store, report = there(tmp_path / f"store{number}", path, "correction")
        assert report.added == 0 and any(words in error["detail"] for error in report.errors), report.errors
        store.close()
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match="not a readable archive"):
        imports.archived(tmp_path / "text.zip")


def test_an_archives_members_are_read_by_name_and_nothing_is_unpacked(tmp_path):
    before = build(tmp_path / "a", 3, items=2)
    export(before, "correction", "archive", tmp_path / "project.zip")
    before.close()
    with zipfile.ZipFile(tmp_path / "project.zip", "a") as file:
        file.writestr("../outside.txt", "x")
    store, report = there(tmp_path / "in" / "b", tmp_path / "project.zip", "correction")
    assert report.errors == [] and not list(tmp_path.rglob("outside.txt"))
    store.close()


def record(**answers) -> dict:
    """A record as Argilla 2 writes it, a user's answers by question."""
    responses = {name: [{"value": value, "user_id": "0b1c"}] for name, value in answers.items()}
    fields = {"image": exchange.data_url("image/jpeg", picture()), "prompt": "What is it?", "response": RESPONSE}
    head = {"id": "r1", "fields": fields, "metadata": {"model": "m"}, "suggestions": {}, "vectors": {}}
    return head | {"responses": responses, "status": "completed", "_server_id": None}


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (
            {
                "corrected": CORRECTED,
                "segments": [
                    {"label": "attributes", "start": 2, "end": 5},
                    {"label": "positions", "start": 24, "end": 28},
                ],
            },
            ("corrected", 2, ""),
        ),
        ({"corrected": RESPONSE}, ("clean", 0, "")),
        ({"segments": []}, ("skipped", 0, "other: skipped in Argilla")),
        ({"corrected": RESPONSE, "skip_reason": "too dark"}, ("skipped", 0, "other: too dark")),
    ],
)
def test_argillas_responses_are_submissions_of_its_users(tmp_path, answers, found):
    store, report = run(tmp_path, [record(**answers)])
    assert (report.errors, report.annotations) == ([], 1)
    (row,) = collected.finished(store.read, 1)
    assert (row.verdict, len(row.segments), row.skip_reason) == found
    assert [r["name"] for r in store.read.execute("SELECT name FROM annotator")] == ["argilla-0b1c"]
    store.close()


def test_a_span_without_words_counts_as_its_ends_fit_between_words(tmp_path):
    response = "👩‍👩‍👧 👍🏽 and a red bus."
    at = response.index("red")
    for shift in (0, 5):  # code points, and Argilla's browser's UTF-16 units
        span = {"label": "attributes", "start": at + shift, "end": at + 3 + shift}
        one = record(corrected=response.replace("red", "blue"), segments=[span])
        one["fields"]["response"] = response
        store, report = run(tmp_path / str(shift), [one])
        assert report.errors == []
        (row,) = collected.finished(store.read, 1)
        assert [s.src_text for s in row.segments] == ["red"]
        store.close()


def test_a_tfds_build_holds_the_pairs_of_the_parquet_with_images_and_segments(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    store = build(tmp_path / "a", 4, items=16)
    counts = export(store, "correction", "tfds", tmp_path / "tfds")["counts"]
    assert export(store, "correction", "parquet", tmp_path / "pairs.parquet")["counts"] == counts
    pairs = sources.read(tmp_path / "pairs.parquet")
    assert sources.digest(sources.read(tmp_path / "tfds")) == sources.digest(pairs)
    builder = tfds.builder_from_directory(tmp_path / "tfds" / "rlhfv" / "1.0.0")  # as anybody reads it
    rows = builder.as_data_source("train")
    assert len(rows) == counts["pairs"] > 2
    for row, pair in zip(rows, pairs, strict=True):
        assert [row[name].decode() for name in ("id", "chosen", "rejected")] == [pair.id, pair.chosen, pair.rejected]
        assert np.array_equal(row["image"], np.asarray(Image.open(io.BytesIO(pair.image)).convert("RGB")))
        spans = row["rejected_segments"]
        found = zip(spans["start"], spans["end"], spans["type"], strict=True)
        assert [(int(a), int(b), kind.decode()) for a, b, kind in found] == [
            (s.start, s.end, s.type) for s in pair.segments[1]
        ]
    with pytest.raises(UserError, match="already holds a data set"):
        export(store, "correction", "tfds", tmp_path / "tfds")
    store.close()


def test_the_command_line_takes_a_project_to_another_directory_and_another_tool(tmp_path):
    store = build(tmp_path / "a", 21)
    export(store, "correction", "archive", tmp_path / "project.zip")
    store.close()

    def annotate(*given: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "rlhfv_jax.annotate", f"--project={tmp_path / 'b'}", *given]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    taken = annotate(f"--import={tmp_path / 'project.zip'}", "--name=mine")
    assert taken.returncode == 0 and "finished annotations came along" in taken.stdout
    refused = annotate(f"--export={tmp_path / 'tasks.json'}")
    assert refused.returncode == 1 and "--export_format=label_studio" in refused.stderr
    assert annotate(f"--export={tmp_path / 'tasks.json'}", "--export_format=label_studio").returncode == 0
    config = ElementTree.parse(tmp_path / "tasks.config.xml").getroot()
    assert [label.get("value") for label in config.iter("Label")] == list(project.new("correction").type_keys)
