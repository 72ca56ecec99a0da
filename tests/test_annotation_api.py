"""The HTTP interface of the annotation application, in process: saving, conflicts, and who may not do what."""

import base64
import io
import json
import uuid

import pytest
from PIL import Image

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from rlhfv_jax.annotation import app, assignment, diff, exports, imports, people, project, serving
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.data import sources

RESPONSE = "A red bus stands on the left of two men."
CORRECTED = "A blue bus stands on the right of two men."


def jpeg(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 24), color).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "work")
    yield store
    store.close()


@pytest.fixture
def world(store, tmp_path):
    """A correction project of three items, and clients of two annotators and an administrator."""
    settings = project.new("correction")
    identity = store.write(lambda c: assignment.add_project(c, "correction", settings))
    image = base64.b64encode(jpeg()).decode()
    lines = [{"id": i, "prompt": "Describe.", "response": RESPONSE, "image_base64": image} for i in range(3)]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = imports.run(store, identity, path, imports.Options())
    assert (report.added, report.errors) == (3, [])
    application = app.build(serving.Server(store), hosts=["testserver"])
    clients = {}
    for name, role in (("ada", "annotator"), ("bob", "annotator"), ("eve", "admin")):
        client = TestClient(application, headers={"X-Requested-With": "rlhfv"})
        token = people.add(store, name, role)
        assert client.post("/api/session", json={"token": token}).status_code == 200
        clients[name] = client
    return clients


def saved(client, item, base=0, state="draft", **changes):
    types = changes.pop("types", ["attributes", "positions"])
    spans = diff.segments(RESPONSE, CORRECTED)
    body = {
        "base_rev": base,
        "op_id": uuid.uuid4().hex,
        "state": state,
        "verdict": "corrected" if state == "submitted" else "",
        "corrected": CORRECTED,
        "segments": [s._asdict() | {"type": t} for s, t in zip(spans, types, strict=True)],
        "active_ms": 5000,
    } | changes
    return client.put(f"/api/items/{item}/annotation", json=body)


def leased(client):
    return client.post("/api/projects/1/next").json()["item"]


def test_two_annotators_never_get_the_same_place(world):
    assert leased(world["ada"]) != leased(world["bob"])


def test_a_submission_is_exported_with_its_segments(world, store, tmp_path):
    item = leased(world["ada"])
    assert saved(world["ada"], item).json()["rev"] == 1
    reply = saved(world["ada"], item, base=1, state="submitted")
    assert reply.status_code == 200, reply.text
    exports.export(store, 1, project.new("correction"), "parquet", tmp_path / "pairs.parquet")
    (record,) = sources.read(tmp_path / "pairs.parquet")
    assert (record.chosen, record.rejected) == (CORRECTED, RESPONSE)
    assert [(record.chosen[s.start : s.end], s.type) for s in record.segments[0]] == [
        ("blue", "attributes"),
        ("right", "positions"),
    ]
    assert record.image == jpeg()


def test_the_same_store_exports_the_same_bytes(world, store, tmp_path):
    saved(world["ada"], leased(world["ada"]), state="submitted")
    found = [
        exports.export(store, 1, project.new("correction"), "parquet", tmp_path / f"{i}" / "pairs.parquet")["files"]
        for i in range(2)
        if not (tmp_path / f"{i}").mkdir()
    ]
    assert [f["sha256"] for f in found[0]] == [f["sha256"] for f in found[1]]


def test_a_retried_operation_is_done_once(world):
    item, op = leased(world["ada"]), uuid.uuid4().hex
    first, second = (saved(world["ada"], item, op_id=op) for _ in range(2))
    assert first.json() == second.json() and first.json()["rev"] == 1
    assert len(world["ada"].get(f"/api/items/{item}/history").json()) == 1


def test_a_second_tab_gets_a_conflict_with_the_stored_copy(world):
    item = leased(world["ada"])
    saved(world["ada"], item)
    reply = saved(world["ada"], item, base=0)
    assert reply.status_code == 409 and reply.json()["server_copy"]["corrected"] == CORRECTED


def test_a_segment_without_a_type_is_refused_by_its_path(world):
    reply = saved(world["ada"], leased(world["ada"]), state="submitted", types=["attributes", ""])
    assert reply.status_code == 422 and reply.json()["fields"][0]["path"] == "segments[1].type"


def test_another_persons_draft_is_refused(world):
    item = leased(world["ada"])
    saved(world["ada"], item)
    bob = world["bob"]
    assert bob.get(f"/api/items/{item}").status_code == 403
    assert bob.get(f"/api/items/{item}/history?annotator=1").status_code == 403
    assert saved(bob, item).status_code == 403
    assert world["eve"].get(f"/api/items/{item}?annotator=1").json()["annotation"]["corrected"] == CORRECTED


def test_only_administrators_administer(world):
    for method, path in (("GET", "/api/people"), ("POST", "/api/backup"), ("POST", "/api/projects/1/import")):
        assert world["ada"].request(method, path).status_code == 403
    assert world["eve"].get("/api/people").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"origin": "http://evil.example"}, 403), ({"host": "evil.example"}, 403), ({"x-requested-with": ""}, 403)],
)
def test_forged_origins_and_hosts_are_refused(world, headers, status):
    assert world["ada"].post("/api/projects/1/next", headers=headers).status_code == status


def test_oversized_and_malformed_bodies_are_refused(world):
    path = f"/api/items/{leased(world['ada'])}/annotation"
    assert world["ada"].put(path, content=b"x" * (2**20 + 1)).status_code == 413
    for content in (b"", b"{", b"[1]", b"\xff", b'{"corrected": "\\ud800"}', b"[" * 100_000):
        assert world["ada"].put(path, content=content).status_code == 422


@pytest.mark.parametrize("name", ["../annotations.sqlite", "%2e%2e/annotations.sqlite", "..%2f..%2fetc/passwd"])
def test_paths_lead_nowhere_else(world, name):
    for root in ("/static/", "/api/image/", "/api/exports/x/"):
        assert world["eve"].get(root + name).status_code == 404


def test_a_full_disk_is_never_an_acknowledged_save(world, store):
    item = leased(world["ada"])
    assert saved(world["ada"], item).status_code == 200
    (pages,) = store.read.execute("PRAGMA page_count").fetchone()
    store.write(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone() and None)
    statuses = [saved(world["ada"], item, base=1 + i, corrected=CORRECTED).status_code for i in range(200)]
    first = statuses.index(507)
    assert set(statuses[first:]) <= {507, 409} and statuses[0] in (200, 507)
    store.write(lambda c: c.execute(f"PRAGMA max_page_count = {pages + 1000}").fetchone() and None)
    assert world["ada"].get(f"/api/items/{item}").json()["annotation"]["rev"] == 1 + first


def test_wrong_tokens_are_slowed_down(world, store):
    stranger = TestClient(world["ada"].app, headers={"X-Requested-With": "rlhfv"})
    statuses = [stranger.post("/api/session", json={"token": "x"}).status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert stranger.get("/api/me").status_code == 401
