"""The browser puts a decision together from two sides: checked against Python's diff on thousands of random pairs."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("regex")
from rlhfv_jax.annotation import app, diff
from rlhfv_jax.annotation.diff import Cuts

SCRIPT = """
import {{ composed, places }} from "{}";
import {{ readFileSync }} from "node:fs";
const cases = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(cases.map(({{ response, sides, draws }}) => {{
  const found = places(sides), make = (choices) => composed(response, sides, found, choices);
  const mixed = found.map((_, i) => draws[i % draws.length]);
  const all = (side) => make(found.map(() => side));
  return {{ none: all(null), each: sides.map((_, k) => all(k)),
    mixed: make(mixed), taken: found.flatMap((p, i) => (mixed[i] === null ? [] : p.sides[mixed[i]])) }};
}})));
"""
WORDS = ["a", "red", "bus", "two", "men", "👩‍👩‍👧", "é", "3.5", ",", "."]


def side(rng: random.Random, response: str) -> dict:
    """Some words replaced, taken out or put in, and some segments divided or joined by hand."""
    words = response.split(" ")
    for _ in range(rng.randint(0, 4)):
        at, how = rng.randrange(len(words)), rng.random()
        words[at : at + (how < 0.7)] = [] if how < 0.2 and len(words) > 1 else rng.choices(WORDS, k=rng.randint(1, 2))
    corrected = " ".join(words)
    plain = diff.segments(response, corrected)
    places = [(a, b) for a, _ in diff.tokens(response) for b, _ in diff.tokens(corrected)]
    splits = [(a, b) for a, b in places if any(c.src0 <= a <= c.src1 and c.dst0 <= b <= c.dst1 for c in plain)]
    cuts = Cuts(tuple(rng.sample(splits, min(len(splits), rng.randint(0, 2)))))
    changes = diff.segments(response, corrected, cuts)
    segments = [
        c._asdict() | {"dst_text": corrected[c.dst0 : c.dst1], "type": rng.choice("xyz"), "op": c.op} for c in changes
    ]
    return {"corrected": corrected, "segments": segments}


def texts(text: str) -> list[str]:
    return [text[start:end] for start, end in diff.tokens(text)]


def applied(response: str, taken: list[dict]) -> list[str]:
    """The words of the answer with the segments' in their place."""
    found, at = [], 0
    for s in sorted(taken, key=lambda s: (s["src0"], s["src1"], s["dst0"])):
        found += [response[a:b] for a, b in diff.tokens(response) if at <= a and b <= s["src0"]]
        found += texts(s["dst_text"])
        at = s["src1"]
    return found + [response[a:b] for a, b in diff.tokens(response) if at <= a]


def test_a_decision_has_the_words_and_segments_of_the_sides_it_takes():
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    rng = random.Random(0)
    cases = []
    for _ in range(1500):
        response = " ".join(rng.choices(WORDS[:-2], k=rng.randint(1, 9)))
        draws = [rng.choice([0, 1, None]) for _ in range(9)]
        cases.append({"response": response, "sides": [side(rng, response) for _ in range(2)], "draws": draws})
    script = SCRIPT.format(Path(app.STATIC / "decision.js").as_uri())
    line = ["node", "--input-type=module", "-e", script]
    run = subprocess.run(line, input=json.dumps(cases), capture_output=True, text=True, check=True)
    alike = 0
    for case, made in zip(cases, json.loads(run.stdout), strict=True):
        response = case["response"]
        assert made["none"]["corrected"] == response
        assert texts(made["mixed"]["corrected"]) == applied(response, made["taken"]), case
        for wanted, result in zip(case["sides"], made["each"], strict=True):
            assert texts(result["corrected"]) == texts(wanted["corrected"]), (case, result)
            cuts = Cuts(*(tuple(map(tuple, result["cuts"][name])) for name in ("splits", "merges")))
            found = diff.segments(response, result["corrected"], cuts)
            spans = [(c.src0, c.src1, result["corrected"][c.dst0 : c.dst1]) for c in found]
            alike += spans == [(s["src0"], s["src1"], s["dst_text"]) for s in wanted["segments"]]
    assert alike >= 0.98 * 2 * len(cases)
