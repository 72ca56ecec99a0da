"""Comparisons from files: what is joined, what is refused, what people marked, what a page holds, who wins."""

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import comparison_world
import numpy as np
import pytest
from PIL import Image

from rlhfv_jax.comparing import bundle, page, sets, spans, thumbnails, votes
from rlhfv_jax.comparing.thumbnails import Thumbnails
from rlhfv_jax.comparing.votes import Vote
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation.questions import Question


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(path, **texts):
    return lines(path, [{"question_id": i, "prompt": f"What is {i}?", "text": text} for i, text in texts.items()])


@pytest.fixture
def world(tmp_path):
    return comparison_world.write(tmp_path / "world", 12)


def read(world, **options):
    return sets.read([world[name] for name in comparison_world.NAMES], world["questions"], **options)


def test_answers_are_joined_by_question_and_what_lacks_is_counted(world):
    found = read(world, spans=[world["spans"]])
    assert found.names == comparison_world.NAMES  # the last part of each file's own model_id
    assert [item.id for item in found.items] == [f"q{i}" for i in range(12)]
    assert [item.answers.index(None) for item in found.items if None in item.answers] == [1, 2]  # q5, then q7
    of = found.counts["models"]
    assert (of["DPO"]["lacking"], of["DPO"]["failed"]) == (1, 0)
    assert (of["DDPO"]["lacking"], of["DDPO"]["failed"]) == (1, 1)
    assert (of["Base"]["labeled"], found.counts["complete"], found.counts["labels_unused"]) == (11, 10, 0)
    assert sets.notes(found) == ["DPO lacks 1", "DDPO lacks 1 (1 failed)"]
    for item in found.items:
        for start, end, kind in (item.answers[0].spans if item.answers[0] else None) or ():
            assert kind in ("objects", "positions", "numbers", "others")
            assert item.answers[0].text[start:end] == item.answers[0].text[start:end].strip() != ""


def test_answers_to_other_questions_and_other_wordings_are_counted(tmp_path):
    a = answers(tmp_path / "a.jsonl", x="one", y="two", z="three")
    b = answers(tmp_path / "b.jsonl", x="one")
    asked = [{"question_id": "x", "prompt": "What is x?"}, {"question_id": "y", "prompt": "Another y?"}]
    questions = lines(tmp_path / "q.jsonl", [*asked, {"question_id": "w", "prompt": "?"}])
    notes = sets.notes(sets.read([a, b], questions))
    assert notes[:3] == ["1 of 3 questions answered by nobody", "a has 1 to other questions, not shown", "b lacks 1"]
    assert notes[3:] == ["1 answers to another wording of the question"]
    own = sets.read([a, b])  # without questions: the answers' own
    assert [item.prompt for item in own.items] == ["What is x?", "What is y?", "What is z?"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: [t / "a.jsonl"], "2 to 9 answer files, found 1"),
        (lambda t: [t / "a.jsonl", t / "gone.jsonl"], "The file .*gone.jsonl does not exist"),
        (lambda t: [t / "a.jsonl", answers(t / "b.jsonl", other="x")], "share no question_id"),
        (lambda t: [t / "a.jsonl", t / "a.jsonl"], "Two models are called 'a'"),
        (lambda t: [t / "a.jsonl", lines(t / "b.jsonl", [{"question_id": 1, "text": ""}] * 2)], "line 2.*stands twice"),
        (lambda t: [t / "a.jsonl", lines(t / "b.jsonl", [{"text": ""}])], "line 1, question_id: expected a number"),
        (lambda t: [t / "a.jsonl", answers(t / "tie.jsonl", x="x")], "is not 'tie'"),
    ],
)
def test_files_that_make_no_comparison_are_refused_in_a_sentence(tmp_path, change, message):
    answers(tmp_path / "a.jsonl", x="one")
    with pytest.raises(UserError, match=message):
        sets.read(change(tmp_path))


def test_names_are_one_for_each_file(tmp_path):
    files = [answers(tmp_path / f"{name}.jsonl", x="x") for name in "ab"]
    with pytest.raises(UserError, match="--names has 1 names for 2"):
        sets.read(files, names=["A"])
    assert sets.read(files, names=["A", "B"]).names == ("A", "B")


def test_a_label_belongs_to_its_question_not_to_the_same_words_elsewhere(tmp_path):
    files = [answers(tmp_path / f"{name}.jsonl", x="A red bus.", y="A red bus.") for name in "ab"]
    row = {"question_id": "y", "prompt": "What is x?", "response": "A red bus.", "verdict": "corrected"}
    row["spans"] = [{"start": 2, "end": 5, "text": "red", "type": "Attribute"}]
    x, y = sets.read(files, spans=[lines(tmp_path / "spans.jsonl", [row])]).items
    assert [a.spans for a in x.answers] == [None, None]
    assert [a.spans for a in y.answers] == [((2, 5, "attributes"),)] * 2


def test_offsets_follow_the_text_into_composed_characters(tmp_path):
    text = unicodedata.normalize("NFD", "Café à côté.")
    files = [answers(tmp_path / f"{name}.jsonl", x=text) for name in "ab"]
    start = text.index("co")
    row = {"question_id": "x", "response": text, "spans": [{"start": start, "end": len(text) - 1, "type": "positions"}]}
    (item,) = sets.read(files, spans=[lines(tmp_path / "spans.jsonl", [row])]).items
    ((a, b, _),) = item.answers[0].spans
    assert item.answers[0].text[a:b] == "côté"
    row["spans"][0]["start"] = start + 2  # between a letter and its accent
    with pytest.raises(UserError, match="divide a composed character"):
        spans.read([lines(tmp_path / "spans.jsonl", [row])])


@pytest.mark.parametrize("span", [{"start": 3, "end": 99}, {"start": 0, "end": 1, "text": "B"}, {"start": "0"}, "red"])
def test_spans_that_are_not_what_they_say_are_refused(tmp_path, span):
    row = {"question_id": "x", "response": "A red bus.", "spans": [span]}
    with pytest.raises(UserError, match=r"spans.jsonl, line 1"):
        spans.read([lines(tmp_path / "spans.jsonl", [row])])


def test_segments_beside_pairs_mark_the_original_answer(tmp_path):
    image = base64.b64encode(noise()).decode()
    pair = {"question": "What is x?", "chosen": "A blue bus.", "rejected": "A red bus.", "image_base64": image}
    lines(tmp_path / "pairs.jsonl", [pair | {"id": "p1"}])
    sides = {"chosen": [{"start": 2, "end": 6, "type": "color"}], "rejected": [{"start": 2, "end": 5, "type": "color"}]}
    sidecar = lines(tmp_path / "pairs.segments.jsonl", [{"id": "p1"} | sides])
    files = [answers(tmp_path / "a.jsonl", x="A red bus."), answers(tmp_path / "b.jsonl", x="A blue bus.")]
    found = sets.read(files, spans=[sidecar])
    assert [a.spans for a in found.items[0].answers] == [((2, 5, "color"),), None]
    assert [(t.key, t.label, t.letter) for t in found.types] == [("color", "Color", "L")]  # C and O are taken
    with pytest.raises(UserError, match="beside each other"):
        spans.read([lines(tmp_path / "alone.segments.jsonl", [])])


def noise(size=(900, 600), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_thumbnails_keep_the_limit_and_count_what_is_no_image():
    same = [base64.b64encode(noise(seed=seed)).decode() for seed in (0, 1, 0)]
    questions = [Question(i, "?", image) for i, image in enumerate(same)]
    questions += [Question("none", "?"), Question("bad", "?", base64.b64encode(b"no image at all").decode())]
    large = thumbnails.embed(questions, 10**7)
    assert large.of == [0, 1, 0, None, None] and len(large.broken) == 1 and "bad" in large.broken[0]
    assert large.side == 480 and large.size == sum(map(len, large.urls))
    small = thumbnails.embed(questions, large.size // 3)
    assert small.size <= large.size // 3 and small.side < large.side
    picture = Image.open(io.BytesIO(base64.b64decode(small.urls[0].partition(",")[2])))
    assert max(picture.size) == small.side and picture.size[0] / picture.size[1] == pytest.approx(1.5, abs=0.02)
    with pytest.raises(UserError, match="at 96 pixels; at most 1000"):
        thumbnails.embed(questions, 1000)


class Parts(HTMLParser):
    """Scripts and styles of a page, and its policy, as an HTML parser finds them."""

    def __init__(self, text):
        super().__init__()
        self.found, self.within = [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.within = (tag, dict(attributes)) if tag in ("script", "style", "meta") else None
        if self.within:
            self.found.append([*self.within, ""])

    def handle_endtag(self, tag):
        self.within = None

    def handle_data(self, data):
        if self.within:
            self.found[-1][2] += data


def test_the_page_holds_one_script_whose_hash_is_in_its_policy(world):
    found = read(world)
    text = page.page(found, Thumbnails([], [None] * 12, 480, 0, []), "<b>Mine</b> & yours")
    parts = Parts(text).found
    (policy,) = (a["content"] for _, a, _ in parts if a.get("http-equiv") == "Content-Security-Policy")
    (data, script) = ((a, body) for tag, a, body in parts if tag == "script")
    (style,) = (body for tag, _, body in parts if tag == "style")
    hashes = re.findall(r"'sha256-([^']+)'", policy)
    assert hashes == [base64.b64encode(hashlib.sha256(b.encode()).digest()).decode() for b in (script[1], style)]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert data[0] == {"type": "application/json", "id": "data"}
    held = json.loads(data[1])
    assert held["items"][3]["prompt"] == comparison_world.HOSTILE and held["title"] == "<b>Mine</b> & yours"
    assert len(re.findall("<script", text)) == 2


def test_modules_of_other_forms_are_refused_not_broken(monkeypatch):
    sources = {
        "a.js": 'import { b as c } from "./b.js";\nexport const a = c + 1;\n',
        "b.js": "const x = 1;\nexport{x as b};",
    }
    monkeypatch.setattr(bundle, "static", sources.__getitem__)
    assert "const { b: c } = $b_js;" in bundle.bundle("a.js") and "return { b: x };" in bundle.bundle("a.js")
    for source, message in (
        ('import * as all from "./b.js";\n', "cannot put"),
        ("export default class {}\n", "cannot put"),
        ('const later = () => import("./b.js");\n', "cannot put"),
        ('import { a } from "./a.js";\n', "imports itself"),
        ('const text = "</script>";\n', "end its script"),
    ):
        sources["a.js"] = source
        with pytest.raises(UserError, match=message):
            bundle.bundle("a.js")


def vote(question, choice, voter="v", shown=("A", "B"), comparison="c"):
    return Vote(comparison, question, voter, choice, tuple(shown))


def test_win_rates_are_shares_with_ties_in_equal_parts():
    found = votes.rates([vote("1", "A"), vote("2", "A"), vote("3", "tie"), vote("3", "B", "w"), vote("4", "B")])
    assert (found["votes"], found["voters"], found["questions"], found["ties"]) == (5, 2, 4, 1)
    assert found["models"]["A"]["rate"]["value"] == pytest.approx(100 * 2.5 / 5)
    assert found["models"]["B"]["rate"]["value"] == pytest.approx(100 * 2.5 / 5)
    three = votes.rates([vote("1", "A", shown="ABC"), vote("2", "tie", shown="ABC"), vote("3", "B", shown="AB")])
    assert three["models"]["A"]["rate"]["value"] == pytest.approx(100 * (1 + 1 / 3) / 3)
    assert three["models"]["C"]["rate"]["value"] == pytest.approx(100 * (1 / 3) / 2)
    pairs = {(p["first"], p["second"]): p["rate"] for p in three["pairs"]}
    assert pairs["A", "B"]["value"] == pytest.approx(50) and pairs["A", "B"]["n"] == 3
    assert pairs["A", "C"]["value"] == pytest.approx(75) and pairs["B", "C"]["value"] == pytest.approx(50)
    assert votes.lines(three)[1].startswith("  A: 44.4 % [")


def test_intervals_of_win_rates_cover_when_voters_of_a_question_agree():
    """Votes on one question are drawn together: five voters who always agree are worth one."""
    rng, covered, widths = np.random.default_rng(0), 0, []
    for _ in range(60):
        wins = rng.random(60) < 0.6
        cast = [vote(str(q), "A" if win else "B", f"v{v}") for q, win in enumerate(wins) for v in range(5)]
        rate = votes.rates(cast)["models"]["A"]["rate"]
        covered += rate["low"] <= 60 <= rate["high"]
        widths.append(rate["high"] - rate["low"])
    assert covered >= 52  # of 60; 95 % expected, fewer than this has probability 0.02 even at 90 %
    assert np.mean(widths) == pytest.approx(100 * 2 * 1.96 * np.sqrt(0.24 / 60), rel=0.1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choice": "C"}, "choice: 'C' is none of A, B and tie"),
        ({"shown": ["A"]}, "at least two models"),
        ({"voter": 3}, "voter: expected text"),
        ({}, "voted on question '1' before, in .*line 1"),
    ],
)
def test_what_is_no_vote_is_refused_with_its_line(tmp_path, row, message):
    good = vote("1", "A").to_dict()
    with pytest.raises(UserError, match=f"line 2.*{message}"):
        votes.read([lines(tmp_path / "votes.jsonl", [good, good | row])])


def test_the_program_writes_a_page_and_counts_votes(world, tmp_path):
    files = [str(world[name]) for name in comparison_world.NAMES]
    out = tmp_path / "pages" / "compare.html"

    def run(*arguments):
        line = [sys.executable, "-m", "rlhfv_jax", "compare", *arguments]
        result = subprocess.run(line, capture_output=True, text=True, timeout=120)
        return result.returncode, result.stdout, result.stderr

    code, printed, _ = run(*files, f"--questions={world['questions']}", f"--out={out}", "--format=json")
    values = json.loads(printed)
    assert code == 0 and values["bytes"] == out.stat().st_size and values["counts"]["shown"] == 12
    assert values["images"]["different"] == 12 and values["images"]["bytes"] < 20e6
    code, printed, error = run(files[0], f"--out={out}")
    assert code == 1 and "2 to 9 answer files" in error and not printed
    cast = lines(tmp_path / "votes.jsonl", [vote("1", "A").to_dict(), vote("2", "tie", comparison="d").to_dict()])
    code, printed, _ = run(f"--votes={cast}", "--out=", "--format=text")
    assert (
        code == 0
        and printed.count("1 votes by 1 on 1 questions") == 2
        and "  A: 100.0 % [100.0, 100.0] of 1" in printed
    )


def test_the_styles_of_comparing_touch_no_other_screen():
    """The application loads them everywhere."""
    static = Path(page.__file__).parents[1] / "annotation" / "static"
    first = set(re.findall(r"^\s*\.([\w-]+)", (static / "compare.css").read_text(), re.MULTILINE))
    assert {"compared", "bar-of-tools"} <= first
    for path in static.glob("*.js"):
        named = {
            name for names in re.findall(r"class=\$?\{?\(?\"([^\"]*)\"", path.read_text()) for name in names.split()
        }
        assert path.name == "compare.js" or not named & first, path.name
