"""Whatever is sent to the HTTP interface, it answers with a refusal or a result, never with an error of its own."""

import json
import uuid
from urllib.parse import quote

import pytest
from annotation_world import CORRECTED, RESPONSE, add

pytest.importorskip("starlette")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from rlhfv_jax.annotation import app, people, serving
from rlhfv_jax.annotation.administration import ROUTES as ADMINISTRATION
from rlhfv_jax.annotation.api import ROUTES
from rlhfv_jax.annotation.reviewing import ROUTES as REVIEWING
from rlhfv_jax.annotation.store import Store

ENDPOINTS = [
    (method, route.path)
    for route in (*ROUTES, *ADMINISTRATION, *REVIEWING)
    for method in sorted(route.methods - {"HEAD"})
]

text = st.one_of(
    st.text(max_size=40), st.sampled_from([RESPONSE, CORRECTED, "", "\0", "\ud800", "👩‍👩‍👧 é 中文", "x" * 20_001])
)
whole = st.one_of(st.integers(-3, 60), st.sampled_from([2**31, 2**63, 2**70, -1, True, 0.5, None]))
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), whole, st.floats(), text),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(text, inner, max_size=4)),
    max_leaves=12,
)


def mostly(good) -> st.SearchStrategy:
    return st.integers(0, 7).flatmap(lambda n: anything if n == 0 else good)


SPAN = {name: mostly(st.integers(0, 45)) for name in ("src0", "src1", "dst0", "dst1")}
SPAN |= {"type": mostly(st.sampled_from(["objects", "others", ""])), "src_text": mostly(text)}
FIELDS = {
    "base_rev": mostly(st.integers(0, 4)),
    "op_id": mostly(st.builds(lambda: uuid.uuid4().hex)),
    "state": mostly(st.sampled_from(["draft", "submitted"])),
    "verdict": mostly(st.sampled_from(["", "corrected", "clean"])),
    "corrected": mostly(text),
    "source": mostly(text),
    "segments": mostly(st.lists(st.fixed_dictionaries({}, optional=SPAN), max_size=4)),
    "cuts": mostly(
        st.fixed_dictionaries(
            {},
            optional={
                n: mostly(st.lists(mostly(st.lists(st.integers(0, 40), max_size=3)), max_size=3))
                for n in ("splits", "merges")
            },
        )
    ),
    "active_ms": mostly(st.integers(0, 10**6)),
    "confirm": mostly(st.booleans()),
    "reason": mostly(st.sampled_from(["other", "unsafe", "image_missing"])),
    "text": mostly(text),
    "token": mostly(text),
    "name": mostly(text),
    "role": mostly(st.sampled_from(["annotator", "admin", "king"])),
    "format": mostly(st.sampled_from(["parquet", "jsonl", "csv", "spans", "pdf"])),
    "disabled": mostly(st.booleans()),
    "revisions": mostly(st.lists(st.integers(0, 2), max_size=3)),
    "skip": mostly(st.fixed_dictionaries({}, optional={"reason": mostly(st.just("other")), "text": mostly(text)})),
}
bodies = st.one_of(
    st.fixed_dictionaries({}, optional=FIELDS).map(json.dumps),
    st.fixed_dictionaries({}, optional=FIELDS).map(json.dumps),
    anything.map(json.dumps),
    st.binary(max_size=200),
    st.sampled_from([b"[" * 50_000, b'{"a":' * 9999, b"NaN", b'{"base_rev": 1e999}', b"\xef\xbb\xbf{}"]),
)
numbers = st.one_of(
    st.integers(0, 4).map(str), st.sampled_from(["-1", "٣", "1e3", "9" * 30, "%00", "..", "0x1"]), st.text(max_size=8)
)
queries = st.dictionaries(
    st.sampled_from(
        [
            "after",
            "limit",
            "offset",
            "state",
            "annotator",
            "name",
            "annotators",
            "dry_run",
            "keep_going",
            "prefill",
            "overlap",
        ]
    ),
    st.one_of(
        st.sampled_from(["1", "0", "draft", "x.jsonl", "x.csv", "x.parquet", "x.tsv", "x.json", "-5", "9" * 40]),
        st.text(max_size=10),
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    store = Store(folder / "work")
    for kind in ("correction", "mhumaneval"):
        add(store, folder, kind, [{"response": RESPONSE}] * 3)
    application = app.build(serving.Server(store), hosts=["testserver"])
    found = []
    for name, role in (("ada", "annotator"), ("eve", "admin")):
        client = TestClient(application, headers={"X-Requested-With": "rlhfv"}, raise_server_exceptions=False)
        client.post("/api/session", json={"token": people.add(store, name, role)})
        for project in (1, 2):
            assert client.post(f"/api/projects/{project}/next").status_code == 200
        found.append((client, client.cookies.get("rlhfv_session")))
    yield found
    store.close()


def fuzz(clients, data) -> None:
    method, path = data.draw(st.sampled_from(ENDPOINTS))
    for name in ("project", "item", "person", "sha256", "folder", "name"):
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(data.draw(numbers), safe="", errors="surrogatepass"))
    client, session = data.draw(st.sampled_from(clients))
    if path == "/api/session" and method == "DELETE":
        return  # would end what the other examples need
    client.cookies.set("rlhfv_session", session)
    body = data.draw(bodies)
    if path.startswith("/api/people/") and b"disabled" in (body if isinstance(body, bytes) else body.encode()):
        return
    reply = client.request(method, path, content=body, params=data.draw(queries))
    assert reply.status_code < 500, (method, path, reply.status_code, reply.text[:300])
    if reply.status_code >= 400:
        values = reply.json()
        assert values["error"] and values["detail"] and isinstance(values["fields"], list)


few = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
many = settings(max_examples=3000, deadline=None, suppress_health_check=list(HealthCheck))


@few
@given(st.data())
def test_nothing_sent_is_answered_with_a_servers_error(clients, data):
    fuzz(clients, data)


@pytest.mark.long
@many
@given(st.data())
def test_nothing_of_thousands_sent_is_answered_with_a_servers_error(clients, data):
    fuzz(clients, data)
