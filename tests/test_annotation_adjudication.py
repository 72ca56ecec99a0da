"""Overlap, blindness, gold items and adjudication through the HTTP interface, and what the exports take of them."""

import base64
import dataclasses
import json
import sqlite3
import uuid
from collections.abc import Sequence

import pytest
from annotation_world import CORRECTED, RESPONSE, add, picture

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from rlhfv_jax.annotation import app, assignment, collected, diff, exports, imports, people, project, schema, serving
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import FILE, Store
from rlhfv_jax.data import sources
from rlhfv_jax.errors import UserError

ROLES = {"ada": "annotator", "bob": "annotator", "rita": "reviewer", "eve": "admin"}


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "work")
    yield store
    store.close()


def clients(store: Store) -> dict[str, TestClient]:
    application = app.build(serving.Server(store), hosts=["testserver"])
    found = {}
    for name, role in ROLES.items():
        found[name] = TestClient(application, headers={"X-Requested-With": "rlhfv"})
        assert found[name].post("/api/session", json={"token": people.add(store, name, role)}).status_code == 200
    return found


def settings(kind: str = "correction", **more) -> Project:
    return dataclasses.replace(project.new(kind), **more)


def work(
    client: TestClient,
    item: int,
    corrected: str = CORRECTED,
    types: Sequence[str] = ("attributes", "positions"),
    response: str = RESPONSE,
    **more,
):
    """A submission; the answer itself means no hallucination."""
    spans = diff.segments(response, corrected)
    body = {"base_rev": 0, "op_id": uuid.uuid4().hex, "state": "submitted", "active_ms": 9000, "confirm": True}
    body |= {"verdict": "corrected" if spans else "clean", "corrected": corrected}
    body |= {"segments": [s._asdict() | {"type": t} for s, t in zip(spans, types, strict=False)]}
    return client.put(f"/api/items/{item}/annotation", json=body | more)


def given(client: TestClient) -> int:
    return client.post("/api/projects/1/next").json()["item"]


@pytest.fixture
def world(store, tmp_path):
    """Two items that two people do: they differ about the first and see nothing wrong in the second."""
    add(store, tmp_path, "correction", [{"response": RESPONSE}] * 2, settings(overlap=1.0))
    found = clients(store)
    for name, other, types in (
        ("ada", CORRECTED, ["attributes", "positions"]),
        ("bob", RESPONSE.replace("red", "green"), ["objects"]),
    ):
        assert given(found[name]) == 1 and work(found[name], 1, other, types).status_code == 200
        assert given(found[name]) == 2 and work(found[name], 2, RESPONSE).status_code == 200
    return found


def decision(client: TestClient, item: int = 1, **more):
    case = client.get(f"/api/projects/1/adjudicate/{item}").json()
    corrected = RESPONSE.replace("red", "blue")
    segments = [s._asdict() | {"type": "attributes"} for s in diff.segments(RESPONSE, corrected)]
    body = {"base_rev": 0, "op_id": uuid.uuid4().hex, "revisions": case["revisions"], "reason": "It is blue."}
    body |= {"verdict": "corrected", "corrected": corrected, "segments": segments}
    return client.post(f"/api/projects/1/adjudicate/{item}", json=body | more)


def test_nobody_sees_the_others_work_before_all_have_submitted(store, tmp_path):
    add(store, tmp_path, "correction", [{"response": RESPONSE}], settings(overlap=1.0))
    found = clients(store)
    item = given(found["ada"])
    assert work(found["ada"], item).status_code == 200
    assert found["bob"].get(f"/api/items/{item}").status_code == 403
    assert given(found["bob"]) == item
    shown = found["bob"].get(f"/api/items/{item}").json()
    assert shown["annotation"] is None and CORRECTED not in json.dumps(shown)
    assert found["bob"].get(f"/api/items/{item}?annotator=1").status_code == 403
    for name in ("rita", "eve"):  # they may be asked to annotate it too
        assert found[name].get(f"/api/items/{item}?annotator=1").status_code == 403
        assert found[name].get(f"/api/items/{item}/history?annotator=1").status_code == 403
        assert found[name].get("/api/projects/1/mine?annotator=1").json() == []
        assert found[name].get(f"/api/projects/1/adjudicate/{item}").status_code == 404
        assert found[name].get("/api/projects/1/queue").json()["items"] == []
    assert len(found["eve"].get("/api/projects/1/agreement.csv").text.splitlines()) == 1
    assert given(found["rita"]) is None  # the two places are taken
    assert work(found["bob"], item).status_code == 200
    assert found["rita"].get(f"/api/items/{item}?annotator=1").json()["annotation"]["corrected"] == CORRECTED
    assert found["bob"].get(f"/api/items/{item}?annotator=1").status_code == 403  # an annotator never


@pytest.mark.parametrize("path", ["queue", "adjudicate/1", "agreement", "agreement.csv"])
def test_annotators_neither_review_nor_see_agreement(world, path):
    assert world["ada"].get(f"/api/projects/1/{path}").status_code == 403
    assert [world[name].get(f"/api/projects/1/{path}").status_code for name in ("rita", "eve")] == [200, 200]


def test_an_annotator_decides_nothing(world):
    case = world["rita"].get("/api/projects/1/adjudicate/1").json()
    body = {"base_rev": 0, "op_id": uuid.uuid4().hex, "revisions": case["revisions"], "verdict": "clean", "reason": ""}
    assert world["ada"].post("/api/projects/1/adjudicate/1", json=body).status_code == 403
    assert "annotator" not in json.dumps(case)  # the sides have no names


def test_what_was_decided_is_exported_and_what_was_not_is_left_out_and_counted(world, store, tmp_path):
    (waiting,) = world["rita"].get("/api/projects/1/queue").json()["items"]
    assert (waiting["item"], waiting["why"]) == (1, "types")  # F1 is 2/3, which is enough
    with pytest.raises(UserError, match="items left out: 1 needs adjudication"):
        exports.export(store, 1, settings(), "parquet", tmp_path / "pairs.parquet")
    assert decision(world["rita"]).json() == {"rev": 1}
    done = exports.export(store, 1, settings(), "parquet", tmp_path / "pairs.parquet")
    assert done["counts"] == {"pairs": 1, "clean": 1, "skipped": 0, "segments": 1}
    (record,) = sources.read(tmp_path / "pairs.parquet")
    assert record.chosen == RESPONSE.replace("red", "blue")
    lines = [json.loads(line) for line in (tmp_path / "pairs.annotations.jsonl").read_text().splitlines()]
    assert [(line["id"], line["origin"], line["item_state"], line["counts"]) for line in lines] == [
        ("0", "submission", "adjudicated", False),
        ("0", "submission", "adjudicated", False),
        ("0", "adjudication", "adjudicated", True),
        ("1", "submission", "agreed", True),
        ("1", "submission", "agreed", False),
    ]
    assert (lines[2]["reason"], lines[2]["annotator"]) == ("It is blue.", "annotator-3")
    found = world["eve"].get("/api/projects/1/stats").json()
    assert (found["segments"]["value"], found["finished"], found["states"]["adjudicated"]) == (0.5, 4, 1)
    assert found["people"][0]["others"] == {"comparisons": 2, "same_verdict": 1.0, "overlap_f1": pytest.approx(2 / 3)}


def test_a_decision_holds_is_done_once_and_may_be_revised(world, store):
    op = uuid.uuid4().hex
    assert [decision(world["rita"], op_id=op).json() for _ in range(2)] == [{"rev": 1}] * 2
    assert decision(world["eve"]).status_code == 409  # from before
    assert decision(world["eve"], base_rev=1, verdict="skipped", skip={"reason": "unsafe"}).json() == {"rev": 2}
    (one, _) = collected.outcomes(store.read, 1)
    assert (one.counts.verdict, one.counts.skip_reason, one.counts.rev) == ("skipped", "unsafe", 2)
    stored = json.loads(store.read.execute("SELECT result_json FROM adjudication").fetchone()[0])
    assert [(e["rev"], e["reason"], e["reviewer"]) for e in stored["earlier"]] == [(1, "It is blue.", 3)]
    reply = world["ada"].post("/api/items/1/reopen", json={"base_rev": 1, "op_id": uuid.uuid4().hex})
    assert reply.status_code == 403 and "reviewer has decided" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"revisions": [9, 9]}, 409),
        ({"reason": 3}, 422),
        ({"reason": "x" * 1001}, 422),
        ({"segments": []}, 422),  # a segment without a type
        ({"verdict": "skipped"}, 422),
        ({"verdict": "clean"}, 422),
        ({"op_id": "short"}, 422),
    ],
)
def test_a_decision_is_checked_as_a_submission_is(world, store, change, status):
    assert decision(world["rita"], **change).status_code == status
    assert store.read.execute("SELECT COUNT(*) FROM adjudication").fetchone()[0] == 0


def test_a_seeded_share_is_drawn_for_two_and_every_import_draws_alike(store, tmp_path):
    drawn = []
    for n in range(2):
        add_to = tmp_path / str(n)
        add_to.mkdir()
        identity = store.write(lambda c, n=n: assignment.add_project(c, f"p{n}", settings(seed=5)))
        image = base64.b64encode(picture()).decode()
        rows = [{"id": f"i{i}", "prompt": "p", "response": "A bus.", "image_base64": image} for i in range(40)]
        (add_to / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        imports.run(store, identity, add_to / "items.jsonl", imports.Options(overlap=0.1))
        found = store.read.execute("SELECT ext_id FROM item WHERE project = ? AND n_annotators = 2", (identity,))
        drawn.append({row["ext_id"] for row in found})
    assert len(drawn[0]) == 4 and drawn[0] == drawn[1]
    assert assignment.progress(store.read, Person(1, "x", "admin"), 1)["places"] == 44


GOLD = {"corrected": RESPONSE.replace("red", "blue"), "segments": [{"src0": 2, "src1": 5, "dst0": 2, "dst1": 6}]}
GOLD["segments"][0]["type"] = "attributes"


def test_gold_items_come_unannounced_score_people_and_stay_out_of_exports(store, tmp_path):
    rows = [{"response": RESPONSE}] * 12 + [{"response": RESPONSE, "gold": g} for g in (GOLD, {"verdict": "clean"})]
    add(store, tmp_path, "correction", rows, settings(gold=0.5, overlap=1.0))
    found = clients(store)
    seen = {}
    for name, change in (("ada", "blue"), ("bob", "green")):
        seen[name] = []
        while item := given(found[name]):
            shown = found[name].get(f"/api/items/{item}").json()
            assert "gold" not in json.dumps(shown)
            seen[name].append(item)
            assert work(found[name], item, RESPONSE.replace("red", change)).status_code == 200
        assert sorted(seen[name]) == list(range(1, 15))
    assert seen["ada"][-2:] != [13, 14] and seen["ada"] != seen["bob"]  # mixed in, not where they were imported
    people_ = {p["annotator"]: p for p in found["eve"].get("/api/projects/1/stats").json()["people"]}
    assert people_["annotator-1"]["gold"] == {"items": 2, "verdict": 0.5, "f1": 0.5, "types": 1.0}
    counts = exports.export(store, 1, settings(), "jsonl", tmp_path / "pairs.jsonl")["counts"]
    assert (counts["pairs"], counts["gold_left_out"]) == (12, 2)
    assert '"gold"' not in (tmp_path / "pairs.annotations.jsonl").read_text()
    counts = exports.export(store, 1, settings(), "jsonl", tmp_path / "all.jsonl", gold=True)["counts"]
    assert (counts["pairs"], counts["clean"]) == (13, 1)
    report = found["eve"].get("/api/projects/1/agreement").json()
    assert report["items"] == 12


@pytest.mark.parametrize(
    ("gold", "says"),
    [
        ("{", "line 1, gold: is not valid JSON"),
        (3, "line 1, gold: expected an object, found int"),
        ({"verdict": "maybe"}, "line 1, gold.verdict: expected corrected or clean"),
        ({"corrected": "A blue bus."}, "line 1, gold.segments"),
        ({"verdict": "clean", "corrected": "A blue bus."}, "line 1, gold.segments[0].type"),
    ],
)
def test_a_gold_annotation_that_is_none_is_named(store, tmp_path, gold, says):
    identity = store.write(lambda c: assignment.add_project(c, "p", settings()))
    row = {"prompt": "p", "response": "A red bus.", "gold": gold, "image_base64": base64.b64encode(picture()).decode()}
    (tmp_path / "items.jsonl").write_text(json.dumps(row) + "\n")
    report = imports.run(store, identity, tmp_path / "items.jsonl", imports.Options())
    assert report.added == 0 and says in report.errors[0]["detail"]


def test_labels_are_decided_too_and_spans_have_one_line_a_response(store, tmp_path):
    add(store, tmp_path, "mhumaneval", [{"response": RESPONSE, "model": "m"}] * 2, settings("mhumaneval", overlap=1.0))
    found = clients(store)
    for name, kind in (("ada", "objects"), ("bob", "others")):
        while item := given(found[name]):
            start = {"src0": 2, "src1": 5, "dst0": 2, "dst1": 5}
            assert work(found[name], item, verdict="corrected", segments=[start | {"type": kind}]).status_code == 200
    for item in (1, 2):
        more = {"segments": [{"src0": 2, "src1": 9, "dst0": 2, "dst1": 9, "type": "objects"}]}
        assert decision(found["rita"], item, **(more if item == 1 else {"verdict": "clean", "segments": []})).is_success
    counts = exports.export(store, 1, settings("mhumaneval"), "spans", tmp_path / "out")["counts"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "spans.jsonl").read_text().splitlines()]
    assert counts["responses"] == 2 and [[s["text"] for s in line["spans"]] for line in lines] == [["red bus"], []]
    assert len((tmp_path / "out" / "annotations.jsonl").read_text().splitlines()) == 6


def test_a_store_of_the_first_version_is_copied_and_upgraded_with_everything_in_it(tmp_path, monkeypatch):
    with monkeypatch.context() as old:
        old.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        store = Store(tmp_path / "work")
        image = ("0" * 64, "image/png", 1, 1, "")
        store.write(lambda c: c.execute("INSERT INTO image VALUES (?, ?, ?, ?, ?)", image) and None)
        values = json.loads(json.dumps(project.to_dict(settings())))
        del values["overlap"], values["gold"]  # settings of that time
        row = ("old", "correction", json.dumps(values))
        store.write(lambda c: c.execute("INSERT INTO project VALUES (1, ?, ?, ?, 0.0)", row) and None)
        item = "INSERT INTO item(id, project, ext_id, image_sha256, prompt, response, model, source_json) "
        store.write(lambda c: c.execute(f"{item} VALUES (1, 1, 'a', ?, '', 'A bus.', '', '{{}}')", image[:1]) and None)
        people.add(store, "ada")
        done = "INSERT INTO annotation(item, annotator, rev, state, corrected, cuts_json, verdict, opened, updated) "
        values = "VALUES (1, 1, 1, 'submitted', 'A bus.', '{}', 'clean', 0.0, 0.0)"
        store.write(lambda c: c.execute(done + values) and None)
        store.close()
    path = tmp_path / "work" / FILE
    assert sqlite3.connect(path).execute("PRAGMA user_version").fetchone() == (1,)
    store = Store(tmp_path / "work")
    assert store.read.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    assert store.read.execute("SELECT COUNT(*) FROM adjudication").fetchone()[0] == 0
    assert store.read.execute("SELECT sha256 FROM image").fetchone()[0] == image[0]
    assert assignment.project_of(store.read, 1).overlap == 0.0
    assert store.read.execute("SELECT filled FROM item").fetchone()[0] == 1
    assert [one.state for one in collected.outcomes(store.read, 1)] == ["single"]
    store.close()
    (copy,) = path.parent.glob("*before-schema*")
    assert sqlite3.connect(copy).execute("PRAGMA user_version").fetchone() == (1,)
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        sqlite3.connect(copy).execute("SELECT * FROM adjudication")
