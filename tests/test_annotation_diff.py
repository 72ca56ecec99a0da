"""The annotation diff: one algorithm in two languages."""

import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

regex = pytest.importorskip("regex")

from rlhfv_jax.annotation import diff  # noqa: E402

STATIC = Path(diff.__file__).parent / "static"
WORDS = [
    *(
        "the",
        "a",
        "red",
        "blue",
        "bus",
        "two",
        "3.5",
        "1,000",
        "well-known",
        "it's",
        "日本",
        "語",
        "カ",
        "é",
        "e\u0301",
    ),
    *("👩‍👩‍👧", "🇫🇷", "👍🏽", "❤️", ",", ".", "!", "\n", "_x", "नमस्ते", "ไทย", "  "),
]


def texts_of(source: str, corrected: str, **cuts):
    found = diff.segments(source, corrected, diff.Cuts(**cuts))
    return [(source[s.src0 : s.src1], corrected[s.dst0 : s.dst1]) for s in found]


@pytest.mark.parametrize(
    ("source", "corrected", "expected"),
    [
        ("A red bus.", "A blue bus.", [("red", "blue")]),
        ("A bus.", "A big bus.", [("", "big")]),
        ("A big bus.", "A bus.", [("big", "")]),
        ("A  bus.", "A bus.", []),  # white space is never compared
        ("two red dogs", "three red cats", [("two red dogs", "three red cats")]),  # one word between
        ("Two. Red", "Three. Blue", [("Two", "Three"), ("Red", "Blue")]),  # an end of sentence between
        ("👩‍👩‍👧 x", "👩 x", [("👩‍👩‍👧", "👩")]),
        ("日本語", "日木語", [("本", "木")]),
    ],
)
def test_segments_are_the_changed_words(source, corrected, expected):
    assert texts_of(source, corrected) == expected


def test_an_annotator_divides_and_joins_segments():
    assert texts_of("on two x", "under three x", splits=((2, 5),)) == [("on", "under"), ("two", "three")]
    assert texts_of("a one b c d two", "a 1 b c d 2", merges=((5, 3),)) == [("one b c d two", "1 b c d 2")]


def generated(count: int) -> list[tuple]:
    rng, cases = random.Random(0), []
    for _ in range(count):
        a = rng.choices(WORDS, k=rng.randint(0, 40))
        b = list(a)
        for _ in range(rng.randint(0, 6)):
            at = rng.randint(0, len(b))
            b[at : at + rng.randint(0, 1)] = rng.choices(WORDS, k=rng.randint(0, 1))
        space = rng.choice([" ", " ", ""])
        source, corrected = diff.normalized(space.join(a)), diff.normalized(space.join(b))
        splits = [[rng.randint(0, len(source)), rng.randint(0, len(corrected))] for _ in range(4)]
        merges = [[s.src1, s.dst1] for s in diff.segments(source, corrected) if rng.random() < 0.2]
        cases.append((source, corrected, {"splits": splits, "merges": merges}))
    return cases


@pytest.mark.slow
def test_python_and_javascript_agree_on_4000_texts(tmp_path):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    cases = generated(4000)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    script = f"""
        import {{segments}} from {json.dumps((STATIC / "diff.js").as_uri())};
        import fs from "fs";
        const cases = JSON.parse(fs.readFileSync({json.dumps(str(tmp_path / "cases.json"))}));
        const list = (s) => [s.src0, s.src1, s.dst0, s.dst1];
        console.log(JSON.stringify(cases.map(([a, b, cuts]) => segments(a, b, cuts).map(list))));
    """
    run = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    cuts = [diff.Cuts(*(tuple(map(tuple, c[name])) for name in ("splits", "merges"))) for *_, c in cases]
    ours = [[list(s) for s in diff.segments(a, b, c)] for (a, b, _), c in zip(cases, cuts, strict=True)]
    assert json.loads(run.stdout) == ours
    assert sum(map(len, ours)) > 4000


def test_text_of_ascii_alone_has_the_words_of_any_other():
    """The quick pattern against the full one, on every pair of signs between letters or digits and on random texts."""
    signs = [chr(k) for k in range(128)]
    texts = [f"a{x}{y}b 1{x}{y}2" for x in signs for y in signs]
    chance = random.Random(0)
    texts += ["".join(chance.choices(signs + list("ab12.,'-") * 20, k=60)) for _ in range(2000)]
    assert {diff.tokens("a" + text) == [m.span() for m in diff._TOKEN.finditer("a" + text)] for text in texts} == {True}
    assert len({len(diff.tokens(text)) for text in texts}) > 20
