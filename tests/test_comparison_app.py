"""The comparison in the annotation application: who sees what, and that a blind vote is blind."""

import json
from collections import Counter

import comparison_world
import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from rlhfv_jax.annotation import app, ballots, people, serving
from rlhfv_jax.annotation.ballots import Ballots
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.comparing import sets, votes
from rlhfv_jax.errors import UserError

NAMES = ("zebra-7b", "quokka-7b", "narwhal-7b")
ITEMS = 60


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    files = comparison_world.write(tmp_path_factory.mktemp("world"), ITEMS)
    files["DPO"].with_name("images").joinpath("2.jpg").write_bytes(b"no image")
    answers = [files[name] for name in comparison_world.NAMES]
    return sets.read(answers, files["questions"], NAMES, [files["spans"]])


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "work")
    yield store
    store.close()


def clients(store, comparison, blind=True):
    """Two signed-in people's clients of a server that was just started."""
    server = serving.Server(store)
    shown = None if comparison is None else Ballots(store, comparison, blind)
    application = app.build(server, hosts=["testserver"], ballots=shown)
    found = []
    for name in ("ada", "bob"):
        known = {person["name"] for person in people.listed(store.read)}
        token = people.new_token(store, name) if name in known else people.add(store, name)
        client = TestClient(application, headers={"X-Requested-With": "rlhfv"})
        assert client.post("/api/session", json={"token": token}).status_code == 200
        found.append(client)
    return found


def vote(client, item, choice):
    return client.post("/api/compare/vote", json={"item": item, "choice": choice})


def test_an_open_comparison_is_read_by_everybody_signed_in_and_by_nobody_else(store, comparison):
    ada, _ = clients(store, comparison, blind=False)
    found = ada.get("/api/compare").json()
    assert found["names"] == list(NAMES) and len(found["items"]) == ITEMS
    assert found["items"][5]["answers"][1] is None and found["items"][5]["answers"][0]["name"] == NAMES[0]
    assert found["items"][0]["answers"][0]["spans"] == [list(s) for s in comparison.items[0].answers[0].spans]
    assert "quokka-7b lacks 1" in found["notes"]
    assert ada.get("/api/compare/image/0").headers["content-type"] == "image/jpeg"
    assert ada.get("/api/compare/image/2").json()["detail"] == "This question has no image that can be shown."
    assert vote(ada, 0, 0).status_code == 403 and ada.get("/api/compare/results").status_code == 403
    stranger = TestClient(ada.app, headers={"X-Requested-With": "rlhfv"})
    for path in ("/api/compare", "/api/comparisons", "/api/compare/image/0", "/api/compare/results"):
        assert stranger.get(path).status_code == 401, path
    assert vote(stranger, 0, 0).status_code == 401


def test_without_a_comparison_there_is_none(store):
    ada, _ = clients(store, None)
    assert ada.get("/api/comparisons").json() == []
    assert ada.get("/api/compare").status_code == vote(ada, 0, 0).status_code == 404


def test_no_response_names_a_model_before_the_vote(store, comparison):
    """Everything that the server can be asked for, read byte by byte, with its headers."""
    ada, bob = clients(store, comparison)

    def everything(client):
        paths = [
            "/",
            "/healthz",
            "/api/me",
            "/api/projects",
            "/api/comparisons",
            "/api/compare",
            "/api/compare/results",
        ]
        paths += [f"/api/compare/image/{i}" for i in (0, 1, 2, ITEMS, -1, "zebra")]
        replies = [client.get(path) for path in paths]
        replies += [vote(client, *what) for what in ((0, 7), (0, "zebra"), (-1, 0), (ITEMS, 0), ("0", 0), (0, None))]
        assert all(reply.status_code < 500 for reply in replies)
        return b"\n".join(reply.content + str(reply.headers).encode() for reply in replies)

    assert not [name for name in NAMES if name.encode() in everything(ada)]
    shown = ada.get("/api/compare").json()
    assert shown["names"] is None and len(shown["items"]) == ITEMS
    assert all(set(a) == {"text", "spans"} and a["spans"] is None for item in shown["items"] for a in item["answers"])
    assert len(shown["items"][5]["answers"]) == 2
    told = vote(ada, 4, 1).json()
    assert {a["name"] for a in told["answers"]} == set(NAMES) and told["choice"] == 1
    assert any(a["spans"] for a in told["answers"])
    after = ada.get("/api/compare").json()["items"]
    assert after[4] == told and all(
        "name" not in str(item["answers"][0].keys()) for item in after if item["number"] != 4
    )
    assert not [name for name in NAMES if name.encode() in everything(bob)]  # it was not bob's vote


def test_a_vote_stands_and_counts_once(store, comparison):
    ada, _ = clients(store, comparison)
    first = vote(ada, 4, 1)
    assert vote(ada, 4, 1).json() == first.json()  # a reply that was lost is asked for again
    assert vote(ada, 4, 0).status_code == vote(ada, 4, "tie").status_code == 409
    assert ada.get("/api/comparisons").json()[0]["voted"] == 1


def order(client):
    return [tuple(a["text"] for a in item["answers"]) for item in client.get("/api/compare").json()["items"]]


def test_the_order_is_each_persons_own_and_outlives_a_restart(store, comparison):
    ada, bob = clients(store, comparison)
    orders = [order(ada), order(bob)]
    assert 0.5 * ITEMS < sum(a != b for a, b in zip(*orders, strict=True)) < ITEMS
    again, _ = clients(store, comparison)
    assert order(again) == orders[0]
    (seed,) = store.read.execute("SELECT seed FROM comparison").fetchone()
    assert len(seed) == 32 and seed not in again.get("/api/compare").text
    places = Counter()
    for each in orders:
        for item, texts in zip(comparison.items, each, strict=True):
            if None not in item.answers and len(set(texts)) == 3:
                places[texts.index(item.answers[2].text)] += 1
    # Three places of about a third each: outside these bounds with probability below 1e-3 were they even.
    assert len(places) == 3 and all(abs(n / places.total() - 1 / 3) < 0.17 for n in places.values())


def test_votes_are_exported_and_counted_by_model_not_by_letter(store, comparison, tmp_path):
    ada, bob = clients(store, comparison)
    with pytest.raises(UserError, match="Nobody has voted"):
        ballots.export(store.read, tmp_path / "votes.jsonl")
    best = NAMES[2]
    for item in ada.get("/api/compare").json()["items"]:
        texts = [a["text"] for a in item["answers"]]
        wanted = comparison.items[item["number"]].answers[2]
        vote(ada, item["number"], "tie" if wanted is None else texts.index(wanted.text))
    vote(bob, 0, "tie")
    assert bob.get("/api/compare/results").status_code == 403
    assert ballots.export(store.read, tmp_path / "votes.jsonl") == ITEMS + 1
    cast = votes.read([tmp_path / "votes.jsonl"])
    assert {v.voter for v in cast} == {"annotator-1", "annotator-2"} and {v.comparison for v in cast} == {
        comparison.digest
    }
    rows = [json.loads(line) for line in (tmp_path / "votes.jsonl").read_text().splitlines()]
    assert {tuple(sorted(row["shown"])) for row in rows} == {
        tuple(sorted(NAMES)),
        tuple(sorted(NAMES[::2])),
        tuple(sorted(NAMES[:2])),
    }
    assert rows[0]["at"] > 1e9
    found = votes.rates(cast)
    assert found == ada.get("/api/compare/results").json()
    assert found["models"][best]["chosen"] == sum(v.choice == best for v in cast) >= 0.9 * ITEMS
    assert found["models"][best]["rate"]["low"] > 85 and found["ties"] == 2


def test_other_answers_are_another_comparison_with_its_own_votes(store, comparison):
    ada, _ = clients(store, comparison)
    vote(ada, 0, 0)
    other = sets.Comparison((*NAMES[:2], "orca"), comparison.items, comparison.types, comparison.counts)
    ada, _ = clients(store, other)
    assert ada.get("/api/comparisons").json()[0]["voted"] == 0
    assert len(ballots._stored(store.read)) == 1 and ballots._stored(store.read, other.digest) == []
