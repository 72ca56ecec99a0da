"""What goes wrong around a save, on the server's side: races, a shut or newer store, restarts, damaged images."""

import json
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from annotation_world import CORRECTED, RESPONSE, add, picture

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from rlhfv_jax.annotation import app, assignment, imports, people, project, schema, serving, store
from rlhfv_jax.annotation.faults import Unauthorized
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.errors import UserError


@pytest.fixture
def opened(tmp_path):
    found = Store(tmp_path / "work")
    yield found
    found.close()


def client_of(opened: Store, name: str, role: str = "annotator", **options) -> TestClient:
    application = app.build(serving.Server(opened, **options), hosts=["testserver"])
    client = TestClient(application, headers={"X-Requested-With": "rlhfv"}, raise_server_exceptions=False)
    assert client.post("/api/session", json={"token": people.add(opened, name, role)}).status_code == 200
    return client


def draft(client: TestClient, item: int, base: int = 0, text: str = CORRECTED, **more):
    body = {"base_rev": base, "op_id": uuid.uuid4().hex, "state": "draft", "corrected": text} | more
    return client.put(f"/api/items/{item}/annotation", json=body)


def test_of_many_who_ask_at_once_one_gets_the_last_place(opened, tmp_path):
    identity = add(opened, tmp_path, "correction", [{"response": RESPONSE}])
    crowd = [Person(i, name, "annotator") for i, name in enumerate("abcdefgh", 1)]
    for person in crowd:
        people.add(opened, person.name)
    settings = project.new("correction")
    with ThreadPoolExecutor(8) as pool:
        ask = [
            pool.submit(opened.write, lambda c, p=person: assignment.next_item(c, p, identity, settings))
            for person in crowd
        ]
        found = [future.result() for future in ask]
    assert sorted(found, key=str) == [1] + [None] * 7


def test_a_place_is_free_again_when_nobody_keeps_it_and_late_work_is_still_taken(opened, tmp_path, monkeypatch):
    add(opened, tmp_path, "correction", [{"response": RESPONSE}])
    ada, bob = client_of(opened, "ada"), client_of(opened, "bob")
    assert ada.post("/api/projects/1/next").json() == {"item": 1}
    assert bob.post("/api/projects/1/next").json() == {"item": None}
    later = store.now() + 31 * 60
    monkeypatch.setattr(assignment, "now", lambda: later)
    assert bob.post("/api/projects/1/next").json() == {"item": 1}
    assert draft(ada, 1).status_code == 200  # what was typed meanwhile is not lost


def test_a_heartbeat_keeps_a_place(opened, tmp_path, monkeypatch):
    add(opened, tmp_path, "correction", [{"response": RESPONSE}])
    ada, bob = client_of(opened, "ada"), client_of(opened, "bob")
    ada.post("/api/projects/1/next")
    start = store.now()
    for minutes in (20, 40, 60):
        monkeypatch.setattr(assignment, "now", lambda m=minutes: start + 60 * m)
        assert ada.post("/api/items/1/lease").status_code == 200
        assert bob.post("/api/projects/1/next").json() == {"item": None}


def test_a_shut_store_is_said_and_what_was_sent_again_is_saved_once(opened, tmp_path):
    add(opened, tmp_path, "correction", [{"response": RESPONSE}])
    ada = client_of(opened, "ada")
    ada.post("/api/projects/1/next")
    opened.write(lambda c: c.execute("PRAGMA busy_timeout = 20") and None)
    other = sqlite3.connect(opened.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    op = uuid.uuid4().hex
    refused = draft(ada, 1, op_id=op)
    assert refused.status_code == 503 and refused.json()["error"] == "busy"
    assert ada.get("/api/items/1").json()["annotation"] is None
    other.execute("ROLLBACK")
    for _ in range(2):
        reply = draft(ada, 1, op_id=op)
        assert (reply.status_code, reply.json()["rev"]) == (200, 1)
    assert len(ada.get("/api/items/1/history").json()) == 1
    other.close()


def test_a_commit_waits_for_the_disk_not_only_for_the_system(opened):
    def settings(c):
        return [c.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert opened.write(settings) == ["wal", 2, 1]  # 2: FULL


def test_one_bad_piece_of_work_does_not_take_its_neighbors_along(opened):
    def bad(c):
        c.execute("INSERT INTO project(name, kind, config_json, created) VALUES ('half', 'x', '{}', 0)")
        raise ValueError("no")

    def good(name):
        return lambda c: assignment.add_project(c, name, project.new("correction"))

    futures = [opened.submit(work) for work in (good("a"), bad, good("b"))]
    assert [futures[0].result() > 0, futures[2].result() > 0] == [True, True]
    with pytest.raises(ValueError, match="no"):
        futures[1].result()
    assert [name for _, name, _ in assignment.all_projects(opened.read)] == ["a", "b"]


def test_a_missing_or_damaged_image_is_said_and_import_finds_it_first(opened, tmp_path):
    path = tmp_path / "bad.jsonl"
    (tmp_path / "broken.jpg").write_bytes(picture()[:400])
    (tmp_path / "vector.jpg").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    rows = [
        {"id": i, "prompt": "p", "response": "r", "image": f"{name}.jpg"}
        for i, name in enumerate(("broken", "vector", "none"))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    identity = opened.write(lambda c: assignment.add_project(c, "correction", project.new("correction")))
    report = imports.run(opened, identity, path, imports.Options())
    assert report.added == 0 and len(report.errors) == 3
    assert all(f"line {i + 1}" in error["detail"] for i, error in enumerate(report.errors))

    add(opened, tmp_path, "mhumaneval", [{"response": RESPONSE}])
    ada = client_of(opened, "ada")
    item = ada.get(f"/api/items/{ada.post('/api/projects/2/next').json()['item']}").json()
    assert ada.get(f"/api/image/{item['image']}").status_code == 200
    for folder in ("images", "images_shown"):
        for file in (opened.folder / folder).rglob("*"):
            if file.is_file():
                file.write_bytes(b"not what it was") if folder == "images" else file.unlink()
    reply = ada.get(f"/api/image/{item['image']}")
    assert reply.status_code == 404 and str(opened.folder) not in reply.text


def test_leases_sessions_and_drafts_outlive_a_restart(tmp_path):
    first = Store(tmp_path / "work")
    add(first, tmp_path, "correction", [{"response": RESPONSE}])
    ada = client_of(first, "ada")
    ada.post("/api/projects/1/next")
    assert draft(ada, 1).status_code == 200
    first.close()
    again = Store(tmp_path / "work")
    returned = TestClient(app.build(serving.Server(again), hosts=["testserver"]), headers={"X-Requested-With": "rlhfv"})
    returned.cookies.update(ada.cookies)
    assert returned.get("/api/items/1").json()["annotation"]["corrected"] == CORRECTED
    assert client_of(again, "bob").post("/api/projects/1/next").json() == {"item": None}
    again.close()


def test_no_clock_but_the_servers_is_stored(opened, tmp_path):
    add(opened, tmp_path, "correction", [{"response": RESPONSE}])
    ada = client_of(opened, "ada")
    ada.post("/api/projects/1/next")
    before = store.now()
    assert draft(ada, 1, at=0, updated=4e9, opened="1970", expires=9e9).status_code == 200
    found = opened.read.execute(
        "SELECT a.updated, a.opened, e.at, l.expires - 1800 FROM annotation a, event e, lease l"
    ).fetchone()
    assert all(before <= at <= store.now() for at in found)


def test_an_older_store_is_copied_before_it_changes_and_a_newer_one_is_refused(tmp_path, monkeypatch):
    Store(tmp_path / "work").close()
    now = len(schema.MIGRATIONS)
    monkeypatch.setattr(
        schema, "MIGRATIONS", (*schema.MIGRATIONS, "CREATE TABLE later(id INTEGER PRIMARY KEY) STRICT;")
    )
    newer = Store(tmp_path / "work")
    assert newer.read.execute("PRAGMA user_version").fetchone()[0] == now + 1
    assert newer.read.execute("SELECT COUNT(*) FROM later").fetchone()[0] == 0
    newer.close()
    copy = sqlite3.connect(tmp_path / "work" / f"annotations.before-schema-{now + 1}.sqlite")
    assert copy.execute("PRAGMA user_version").fetchone() == (now,)
    assert copy.execute("SELECT name FROM sqlite_master WHERE name = 'later'").fetchall() == []
    copy.close()
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer version"):
        Store(tmp_path / "work")


def test_a_store_on_a_network_disk_is_refused(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path}/far nfs4 rw 0 0\n")
    assert store.remote_file_system(tmp_path / "far" / "work", str(mounts)) == "nfs4"
    assert store.remote_file_system(tmp_path / "near", str(mounts)) == ""


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / store.FILE).write_bytes(b"not a database, however long it is" * 100)
    with pytest.raises(UserError, match="not a usable store"):
        Store(tmp_path / "work")


def test_whoever_is_shut_out_is_out_at_once_and_a_new_token_ends_the_old(opened, tmp_path):
    add(opened, tmp_path, "correction", [{"response": RESPONSE}])
    ada, eve = client_of(opened, "ada"), client_of(opened, "eve", "admin")
    assert ada.get("/api/me").status_code == 200
    assert eve.post("/api/people/1", json={"disabled": True}).status_code == 200
    assert ada.get("/api/me").status_code == 401
    token = eve.post("/api/people/1", json={"token": "new"}).json()["token"]
    assert ada.post("/api/session", json={"token": token}).status_code == 200
    later = eve.post("/api/people/1", json={"token": "new"}).json()["token"]
    assert ada.get("/api/me").status_code == 401 and later != token
    with pytest.raises(Unauthorized):
        people.sign_in(opened, token)
    assert token.encode() not in opened.path.read_bytes()
