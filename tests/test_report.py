"""`report`: what the page says is what the scores files hold and what the paper prints; nothing on it loads or runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
from conftest import shared

from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import llava_bench, mhumaneval, mmhal, vqa
from rlhfv_jax.evals.answers import Answer
from rlhfv_jax.evals.judge import Judgment
from rlhfv_jax.evals.scores import Metric, Scores, write_scores
from rlhfv_jax.reporting import published
from rlhfv_jax.reporting.evaluation_page import page
from rlhfv_jax.reporting.examples import locate
from rlhfv_jax.reporting.paper import SCENES_BENCHMARK, TABLE_1, TABLE_3, scene_metrics
from rlhfv_jax.reporting.runs import Run, read_points, read_run, read_runs

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&</td>\u202e\ud800"
OURS, THEIRS = "Measured here", f"Published: {published.SOURCE}"


class Reader(HTMLParser):
    """Tables by caption, each a list of rows of (text, small texts), and every tag with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.marks, self.words = {}, [], [], []
        self._open, self._row, self._cell, self._small, self._caption = [], None, None, None, None
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        if tag == "tr":
            self._row = []
        if tag in ("td", "th"):
            self._cell, self._small = "", []
        if tag == "small":
            self._small.append("")
        if tag == "mark":
            self.marks.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag == "caption":
            self.tables[self._caption] = self._rows = []
        if tag in ("td", "th"):
            self._row.append((self._cell, *self._small))
            self._cell = None
        if tag == "tr":
            self._rows.append(self._row)

    def handle_data(self, data):
        self.words.append(data)
        if self._open[-1:] == ["caption"]:
            self._caption += data
        elif self._open[-1:] == ["small"] and self._cell is not None:
            self._small[-1] += data
        elif self._open[-1:] == ["mark"]:
            self.marks[-1] += data
        elif self._cell is not None:
            self._cell += data

    def rows(self, caption):
        """The rows under each band, by the row's head."""
        found, band = {}, None
        for row in self.tables[caption]:
            if len(row) == 1:
                band = row[0][0]
            elif band is not None:
                found[band, row[0][0]] = row[1:]
        return found


def metric(value, half=1.25, n=146):
    return Metric(value, value - half, value + half, n)


def full_run(name, start):
    """Every figure of the three tables, no two alike."""
    values = iter(start + 1.7 * i for i in range(100))
    scores = {}
    for column in (*TABLE_1, *TABLE_3):
        scores.setdefault(column.benchmark, {}).setdefault(column.metric, metric(next(values), n=int(start) + 7))
    scores[SCENES_BENCHMARK] = {
        key: metric(next(values) - 60) for scene in published.SCENES for key in scene_metrics(scene)
    } | {"mean_delta": metric(-4.25)}
    settings = {"object_halbench": {"path": "lexical"}, SCENES_BENCHMARK: {"path": "lexical", "definition": "D"}}
    built = {name: Scores(name, metrics, settings.get(name, {})) for name, metrics in scores.items()}
    return Run(name, built)


def shown(value, signed=False):
    return (f"{value:+.1f}" if signed else f"{value:.1f}").replace("-", "−")


def cell(metric, remark="", signed=False):
    between = " to " if signed or metric.low < 0 else "–"
    interval = shown(metric.low, signed) + between + shown(metric.high, signed)
    return (shown(metric.value, signed), interval, f"n = {metric.n}", *([remark] if remark else []))


@pytest.fixture(scope="module")
def runs():
    return [full_run("ddpo", 10.3), full_run("base", 31.1)]


@pytest.fixture(scope="module")
def read(runs):
    return Reader(page(runs, [], "Evaluation report", 6))


@pytest.mark.parametrize(
    ("caption", "columns"),
    [("Table 1: hallucination and helpfulness", TABLE_1), ("Table 3: ablations", TABLE_3)],
)
def test_our_rows_are_the_scores_files_figures_with_interval_and_count(read, runs, caption, columns):
    rows = read.rows(caption)
    remarks = {"object_halbench": "lexical", "vqav2": "val"}
    for run in runs:
        expected = [
            cell(run.scores[column.benchmark].metrics[column.metric], remarks.get(column.benchmark, ""))
            for column in columns
        ]
        assert rows[OURS, run.name] == expected


def test_each_column_is_the_metric_that_equals_the_papers():
    found = [(f"{column.benchmark}:{column.metric}", column.higher) for column in TABLE_1]
    assert found == [
        ("object_halbench:resp", False),  # percent of answers that name objects, and of mentions
        ("object_halbench:mention", False),
        *((f"mhumaneval:{kind}", False) for kind in ("object", "position", "number", "all")),
        ("mmhal:informativeness", True),
        ("mhumaneval:mmhal_resp", False),  # of people, as the paper's
        *((f"llava_bench:{kind}", True) for kind in ("conv", "detail", "complex")),
        ("vqav2:processed/accuracy", True),
    ]
    assert [column for column in TABLE_1 if column in TABLE_3] == list(TABLE_3)
    labels = mhumaneval.score([mhumaneval.Label("1", ("object",), "mmhal")])
    reviews = llava_bench.score(
        [llava_bench.Question(str(i), "", kind, "", "", (), ()) for i, kind in enumerate(llava_bench.CATEGORIES)],
        {str(i): Answer(str(i), "") for i in range(3)},
        Judgment({str(i): (8.0, 6.0) for i in range(3)}, {}, {}, {"served": ["m"], "parse": "strict"}),
    )
    record = {
        "question_id": "1",
        "answers": [{"answer": "a", "answer_id": i} for i in range(10)],
        "answer_type": "other",
        "question_type": "what",
    }
    accuracy = vqa.score_records([Answer("1", "A.")], [record])
    known = {"object_halbench": ("resp", "mention"), "mmhal": mmhal.measures(3)}
    known |= {scores.benchmark: scores.metrics for scores in (labels, reviews, accuracy)}
    assert [column for column in TABLE_1 if column.metric not in known[column.benchmark]] == []


def test_over_generalization_is_shown_by_scene_with_signed_differences(read, runs):
    rows = read.rows("Table 2: over-generalization, by scene")
    metrics = runs[0].scores[SCENES_BENCHMARK].metrics
    names = [key for scene in published.SCENES for key in scene_metrics(scene)] + ["mean_delta"]
    expected = [cell(metrics[name], "lexical", signed=name.endswith("delta")) for name in names]
    assert rows[OURS, "ddpo"] == expected
    assert "Measured by definition D" in "".join(read.words)


def test_every_metric_of_every_file_stands_under_all_figures(read, runs):
    for name in runs[0].scores:
        table = {row[0][0]: row[1:] for row in read.tables[name]}
        for key in runs[0].scores[name].metrics:
            found = [run.scores[name].metrics[key] for run in runs]
            assert [one[0] for one in table[key]] == [f"{metric.value:.3f}".replace("-", "−") for metric in found]
            assert [one[-1] for one in table[key]] == [f"n = {metric.n}" for metric in found]


# What stands in the paper's text, read anew here: a tab between cells, citations and marks beside the numbers.
def printed(first, last):
    text = shared("reference/rlhf-v-paper.txt").read_text()
    rows = {}
    for line in text[text.index(first) : text.index(last)].split("\n"):
        name, *cells = [re.sub(r"<[^>]*>|\[\d+\]|\*", "", one).strip() for one in line.split("\t")]
        if cells and all(re.fullmatch(r"[-+]?[\d.]+|-|", one) for one in cells) and any(cells):
            rows[name] = [None if one == "-" else float(one) for one in cells if one]
    return rows


def test_the_published_figures_are_those_in_the_papers_text(read):
    one = printed("Model\tObject HalBench", "Table 1. Main experimental")
    assert {name: list(row) for name, row in published.TABLE_1.items()} == one and len(one) == 9
    two = printed("Model\tLiving Room", "Table 2. Experimental results")
    flat = {
        name: [value for scene in scenes for value in scene] + [mean]
        for name, (scenes, mean) in published.TABLE_2.items()
    }
    assert flat == two and len(two) == 5
    three = printed("Model\t\tMHum", "Table 3. Ablation")
    ours = {name.replace("untrust.", "untrust"): list(row) for name, row in published.TABLE_3.items()}
    assert ours == three and len(three) == 5
    for caption, rows in (
        ("Table 1: hallucination and helpfulness", one),
        ("Table 2: over-generalization, by scene", two),
    ):
        for name, values in rows.items():
            cells = [one[0] for one in read.rows(caption)[THEIRS, name]]
            assert [cell.lstrip("+") for cell in cells] == ["–" if v is None else shown(v) for v in values]


def test_what_was_not_measured_is_a_dash_and_a_zero_is_a_zero():
    metrics = {"object": Metric(0.0, 0.0, 0.0, 146), "number": Metric(None, None, None, 0)}
    read = Reader(page([Run("ours", {"mhumaneval": Scores("mhumaneval", metrics)})], [], "t", 6))
    row = read.rows("Table 3: ablations")[OURS, "ours"]
    assert row == [("0.0", "0.0–0.0", "n = 146"), ("–",), ("–", "n = 0"), ("–",), ("–",), ("–",)]
    assert ("span", {"title": "not measured", "role": "img", "aria-label": "not measured"}) in read.tags
    assert (OURS, "ours") not in read.rows("Table 2: over-generalization, by scene")
    assert "No run here has these figures." in "".join(read.words)


def hostile_run():
    item = {"question_id": HOSTILE, "image_id": HOSTILE, "text": "a dog " + HOSTILE, "truth": [HOSTILE]}
    item |= {"mentioned": [["dog", HOSTILE]], "hallucinated": [["dog", HOSTILE]]}
    rated = {"question_id": 1, "text": HOSTILE, "rating": 0, "review": HOSTILE, "question": HOSTILE, "truth": HOSTILE}
    compared = {"low": 0, "high": 1, "difference": 0.5, "p": 0.01, "n": 3}
    settings = {HOSTILE: HOSTILE, "compared": {"answers_file": HOSTILE, "differences": {HOSTILE: compared}}}
    return Run(
        HOSTILE,
        {
            HOSTILE: Scores(HOSTILE, {HOSTILE: metric(1.0)}, settings, HOSTILE, [item]),
            "mmhal": Scores("mmhal", {"rating": metric(1.0)}, {}, HOSTILE, [rated]),
        },
    )


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path):
    from rlhfv_jax.reporting import document

    document.write(tmp_path / "r.html", page([hostile_run()], [], HOSTILE, 6))
    text = (tmp_path / "r.html").read_bytes().decode("utf-8")
    assert HOSTILE[:25] not in text
    read = Reader(text)
    assert {tag for tag, _ in read.tags}.isdisjoint({"script", "img", "iframe", "link", "object", "embed", "base"})
    names = {name for _, attrs in read.tags for name in attrs}
    assert not [name for name in names if name.startswith("on")]
    links = {attrs[name] for _, attrs in read.tags for name in ("href", "src", "action") if name in attrs}
    assert links and all(link.startswith("#") for link in links)
    assert "".join(read.words).count("<script>alert('x')</script>") > 15  # as words, wherever it was put in


def test_the_page_loads_nothing_and_scrolls_only_its_tables(tmp_path, runs):
    """In a browser: no request but its own, no dialog, no error; at both widths only boxes of their own scroll."""
    sync_api = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium here")
    (tmp_path / "r.html").write_bytes(page([*runs, hostile_run()], [], "t", 6).encode("utf-8", "replace"))
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        for width in (1280, 390):
            opened = chromium.new_page(viewport={"width": width, "height": 800})
            seen, said = [], []
            opened.on("request", lambda request, seen=seen: seen.append(request.url))
            opened.on("dialog", lambda dialog, said=said: said.append(dialog.message))
            opened.on("pageerror", lambda error, said=said: said.append(str(error)))
            opened.goto(f"file://{tmp_path / 'r.html'}")
            assert len(seen) == 1 and said == []
            root = "document.documentElement"
            assert opened.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
            # By keyboard alone: a folded table opens, and a wide one scrolls.
            opened.focus("summary")
            opened.keyboard.press("Enter")
            assert opened.evaluate("document.querySelector('details').open")
            opened.focus(".scroll")
            opened.keyboard.press("ArrowRight")
            wide = opened.evaluate("(b => b.scrollWidth > b.clientWidth)(document.querySelector('.scroll'))")
            # The page's own policy forbids waiting by a function inside it.
            moved = "document.querySelector('.scroll').scrollLeft > 0"
            deadline = time.monotonic() + 20
            while wide and not opened.evaluate(moved) and time.monotonic() < deadline:
                opened.wait_for_timeout(100)
                opened.keyboard.press("ArrowRight")  # a busy browser may have lost the first one
            assert opened.evaluate(moved) if wide else width == 1280
        chromium.close()


def test_words_are_found_where_they_stand():
    text = "A man's two dogs, on a Train Track. The hot dog; a train, wine glasses and DOG."
    words = ["man", "dog", "hot dog", "train", "wine glass", "dog", "cat"]
    found = [text[place[0] : place[1]] if place else None for place in locate(text, words)]
    assert found == ["man", "dogs", "hot dog", "train", "wine glasses", "DOG", None]
    assert text[locate(text, ["train"])[0][0] - 2 :].startswith("a train, wine")


@pytest.mark.parametrize("name", ["objhal300_minicpm_beam", "opera_instructblip_greedy"])
def test_every_mention_in_real_answers_is_found_in_its_text_and_in_order(name):
    for line in shared(f"data/benchmarks/chair/{name}.jsonl").read_text().split("\n"):
        if line:
            row = json.loads(line)
            places = locate(row["answer"], [word for word, _ in row["expected"]["generated"]])
            assert None not in places and places == sorted(places)


def test_the_worst_answers_come_first_with_all_their_wrong_words_marked():
    def item(name, wrong):
        pairs = [["dog", "dog"], *[["cup", "cup"]] * wrong]
        text = "a dog" + " and cups" * wrong
        return {
            "question_id": name,
            "text": text,
            "mentioned": pairs,
            "hallucinated": pairs[1:],
            "truth": ["dog"],
        }

    items = [item("fine", 0), item("few", 1), item("most", 3), item("more", 2)]
    html = page([Run("r", {"object_halbench": Scores("object_halbench", {}, items=items)})], [], "t", 2)
    assert html.index("Question most") < html.index("Question more")
    assert "Question few" not in html and "Question fine" not in html
    assert Reader(html).marks == ["cups"] * 5


def labeled(folder, rate, segments):
    metrics = {"all": metric(rate), "segments": metric(segments, 10)}
    write_scores(Scores("mhumaneval", metrics, {}, "people"), folder)
    return folder


def test_fig_2_is_drawn_from_the_scores_of_each_point(tmp_path):
    named = [
        f"Ours:1400={labeled(tmp_path / 'b', 55.5, 140.0)}",
        f"Ours:200={labeled(tmp_path / 'a', 62.5, 170.0)}",
        f"Rankings:2200={labeled(tmp_path / 'c', 63.0, 180.0)}",
    ]
    html = page([], read_points(named), "t", 0)
    read = Reader(html)
    assert "Hallucination rate, %: Ours: 62.5 at 200, 55.5 at 1400; Rankings: 63.0 at 2200." in html
    rows = [[one[0] for one in row] for row in read.tables["The numbers behind Fig. 2"][1:]]
    assert rows == [
        ["Ours", "200", "62.5", "170"],
        ["Ours", "1400", "55.5", "140"],
        ["Rankings", "2200", "63.0", "180"],
    ]
    circles = [attrs for tag, attrs in read.tags if tag == "circle"]
    assert len(circles) == 6
    rate, bars = circles[:3], [attrs["d"] for tag, attrs in read.tags if attrs.get("class", "").startswith("bar ")][:3]
    ys = [float(one["cy"]) for one in rate]
    # The same scale for points and bars: the axis's zero is 226 and 63.0 + 1.25 tops it at 1 / 1.05 of 192 above.
    assert ys == pytest.approx([226 - value / (64.25 * 1.05) * 192 for value in (62.5, 55.5, 63.0)], abs=0.06)
    assert float(re.search(r"V([\d.]+)", bars[2])[1]) == pytest.approx(226 - 192 / 1.05, abs=0.06)
    assert float(rate[2]["cx"]) > float(rate[1]["cx"]) > float(rate[0]["cx"])


def run_report(*options, status=0):
    command = [sys.executable, "-m", "rlhfv_jax", "report", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return done


def test_the_program_writes_the_same_page_each_time_and_says_what_is_on_it(tmp_path, runs):
    for run in runs:
        for name, scores in run.scores.items():
            write_scores(scores, tmp_path / run.name / name)
    options = [f"--runs=ours={tmp_path / 'ddpo'}", f"--runs={tmp_path / 'base'}", f"--out={tmp_path / 'r.html'}"]
    said = json.loads(run_report(*options, "--format=json").stdout)
    assert said["runs"] == {name: sorted(runs[0].scores) for name in ("ours", "base")}
    named = [Run("ours", read_run("", tmp_path / "ddpo").scores), runs[1]]
    expected = page([named[0], read_run("base", tmp_path / "base")], [], "Evaluation report", 6)
    assert (tmp_path / "r.html").read_text() == expected
    done = run_report(f"--runs=a={tmp_path / 'none'}", f"--out={tmp_path / 'r2.html'}", status=1)
    assert "There is no folder of scores" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "r2.html").exists()


GOOD = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not a scores file"),
        ("[" * 100_000, "is not a scores file"),
        ('{"benchmark": "pope"}', "is not a scores file"),
        ("[]", "is not a scores file"),
        ({"benchmark": 3}, "benchmark: expected a name"),
        ({"settings": []}, "expected settings by name"),
        ({"judge": 3}, "a judge's name or null"),
        ({"metrics": {"m": {**GOOD, "value": "1"}}}, "m, value: expected a number"),
        ({"metrics": {"m": {**GOOD, "value": True}}}, "m, value: expected a number"),
        ({"metrics": {"m": {**GOOD, "value": float("nan")}}}, "m, value: expected a number"),
        ({"metrics": {"m": {**GOOD, "low": None}}}, "expected low and high"),
        ({"metrics": {"m": {**GOOD, "n": -1}}}, "n: expected the number of items"),
        ({"metrics": {"m": {"value": 1.0}}}, "is not a scores file"),
    ],
)
def test_a_damaged_scores_file_is_one_sentence_that_names_it(tmp_path, text, says):
    whole = {"benchmark": "pope", "metrics": {"m": GOOD}, "settings": {}, "judge": None}
    (tmp_path / "scores.json").write_text(text if isinstance(text, str) else json.dumps(whole | text))
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read_run("ours", tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_runs_and_points_that_cannot_be_told_apart_or_drawn_are_refused(tmp_path):
    write_scores(Scores("pope", {"m": metric(1.0)}), tmp_path / "a")
    write_scores(Scores("pope", {"m": metric(1.0)}), tmp_path / "b")
    folder = tmp_path / "a"
    for call, says in (
        (lambda: read_runs([f"x={folder}", f"x={folder}"]), "Two runs are named 'x'"),
        (lambda: read_run("x", tmp_path), "holds two scores of pope"),
        (lambda: read_runs(["=scores"]), "expected NAME=DIR"),
        (lambda: read_points([f"x={folder}"]), "expected SERIES:SAMPLES=DIR"),
        (lambda: read_points([f"x:1={folder}", f"x:1={folder}"]), "two points at 1 samples"),
        (lambda: page([], read_points([f"x:1={folder}"]), "t", 0), "has no 'all' of mhumaneval"),
        (
            lambda: page([Run("x", {"o": Scores("o", {}, items=[{"text": "", "hallucinated": [3]}])})], [], "t", 1),
            "o, h",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(says)):
            call()
    (tmp_path / "a" / "items.jsonl").write_text("3\n")
    with pytest.raises(UserError, match=r"items.jsonl, row 0: expected a JSON object"):
        read_run("x", folder)
