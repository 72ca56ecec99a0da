"""Labels of the annotation app as MHumanEval's scores: the export unchanged, and the paper's printed percentages."""

import json
import math
import subprocess
import sys
import uuid

import pytest
from annotation_world import RESPONSE, add
from conftest import shared

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from rlhfv_jax.annotation import app, exports, people, project, serving
from rlhfv_jax.annotation.store import Store
from rlhfv_jax.evals import mhumaneval

WORDS = {"objects": "bus", "positions": "left", "numbers": "two", "others": "red"}
LABELS = [  # (benchmark, types of the segments), one an answer; None: skipped
    ("MMHal-Bench", ["objects", "numbers"]),
    ("MMHal-Bench", []),
    ("mmhal", ["others"]),
    ("object_halbench", ["positions"]),
    ("objhal", None),
]


@pytest.fixture
def exported(tmp_path):
    """Two models' answers, labeled through the HTTP interface, and exported; the second has no hallucination at all."""
    store = Store(tmp_path / "work")
    rows = [
        {"id": f"{model}/{i}", "response": RESPONSE, "model": model, "benchmark": benchmark}
        for model in ("muffin", "other")
        for i, (benchmark, _) in enumerate(LABELS)
    ]
    add(store, tmp_path, "mhumaneval", rows)
    client = TestClient(app.build(serving.Server(store), hosts=["testserver"]), headers={"X-Requested-With": "rlhfv"})
    client.post("/api/session", json={"token": people.add(store, "ada")})
    while (item := client.post("/api/projects/1/next").json()["item"]) is not None:
        assert "model" not in client.get(f"/api/items/{item}").json()  # whose answer it is stays hidden
        start = {"base_rev": 0, "op_id": uuid.uuid4().hex}
        types = LABELS[(item - 1) % 5][1] if item <= 5 else []
        if types is None:
            reply = client.post(f"/api/items/{item}/skip", json=start | {"reason": "prompt_unclear"})
        else:
            places = [(RESPONSE.index(WORDS[t]), RESPONSE.index(WORDS[t]) + len(WORDS[t]), t) for t in types]
            segments = [{"src0": a, "src1": b, "dst0": a, "dst1": b, "type": t} for a, b, t in places]
            more = {"segments": segments, "verdict": "corrected" if types else "clean", "state": "submitted"}
            reply = client.put(
                f"/api/items/{item}/annotation", json=start | more | {"active_ms": 9000, "confirm": True}
            )
        assert reply.status_code == 200, reply.text
    exports.export(store, 1, project.new("mhumaneval"), "spans", tmp_path / "out")
    store.close()
    return tmp_path / "out"


def test_the_export_is_evaluated_unchanged(exported, tmp_path):
    line = [
        sys.executable,
        "-m",
        "rlhfv_jax.evaluate",
        "--benchmark=mhumaneval",
        "--partial",
        f"--out={tmp_path / 's'}",
    ]
    line += [f"--answers={exported / 'spans.jsonl'}"]
    refused = subprocess.run(line, capture_output=True, text=True)
    assert refused.returncode == 1 and "choose one with --model=NAME" in refused.stderr
    subprocess.run([*line, "--model=muffin"], check=True, capture_output=True)
    found = json.loads((tmp_path / "s" / "scores.json").read_text())
    metrics = {name: metric["value"] for name, metric in found["metrics"].items()}
    assert metrics == {
        **{"object": 25.0, "position": 25.0, "number": 25.0, "other": 25.0, "all": 75.0, "segments": 4.0},
        "mmhal_resp": pytest.approx(200 / 3),
    }
    assert found["settings"]["labels"] == 4  # the skipped one is in no denominator
    rows = [json.loads(line) for line in (exported / "spans.jsonl").read_text().splitlines()]
    fields = "id question_id benchmark model annotator revision verdict skip_reason prompt response spans"
    assert all(set(row) == set(fields.split()) for row in rows)
    summary = json.loads((exported / "summary.json").read_text())["models"]["muffin"]
    assert [summary["rates"][key]["value"] for key in ("objects", "positions", "numbers", "others", "all")] == [
        *[25.0] * 4,
        75.0,
    ]
    assert summary["mmhal"]["value"] == pytest.approx(metrics["mmhal_resp"]) and summary["segments"] == 4


def test_the_papers_percentages_are_counts_of_146_and_of_96_answers():
    """Tables 1 and 3 through the scorer: every printed rate is k answers of 146 (of 96 for Resp.), two excepted."""
    tables = [json.loads(shared(f"data/benchmarks/tables/paper_table{n}.json").read_text()) for n in (1, 3)]
    printed = [list(model["printed"].items()) for model in tables[0]["models"].values()]
    names = ["mmhal_resp_human" if column == "mmhal_resp" else column for column in tables[1]["columns"]]
    repeated = ("Muffin", "RLHF-V")  # rows of Table 1
    printed += [list(zip(names, row, strict=True)) for name, row in tables[1]["rows"].items() if name not in repeated]
    rates = [value for row in printed for name, value in row if name.startswith("mhe_") and value is not None]
    human = [value for row in printed for name, value in row if name == "mmhal_resp_human" and value is not None]
    assert [value for value in rates if nearest(value, 146, "all") != value] == [34.3]  # 50 of 146 are 34.2
    assert [value for value in human if nearest(value, 96, "mmhal_resp") != value] == [64.4]  # 62 of 96 are 64.6
    assert (len(rates), len(human)) == (48, 12)


def nearest(value: float, n: int, name: str) -> float:
    """What the scorer says, as printed, for the number of hallucinated answers of n that fits best."""
    count = round(value * n / 100)
    labels = [mhumaneval.Label(str(i), ("object",) * (i < count), "mmhal") for i in range(n)]
    return math.floor(10 * mhumaneval.score(labels).metrics[name].value + 0.5) / 10  # 31.25 is printed as 31.3
