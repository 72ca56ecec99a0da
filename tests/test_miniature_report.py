"""The report says what its input says: numbers, verdicts, marks; and nothing in it loads, runs or leaks."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest

from rlhfv_jax.miniature.page.exhibits import TYPES
from rlhfv_jax.miniature.page.findings import Headline, findings, headline
from rlhfv_jax.miniature.page.readings import METRICS, VQA, Difference
from rlhfv_jax.miniature.report import page, write
from rlhfv_jax.reporting.charts import Series, lines_chart, points_chart, smooth, ticks
from rlhfv_jax.reporting.marked import marked
from rlhfv_jax.reporting.markup import Markup, element
from rlhfv_jax.reporting.numbers import number

PNG = b"\x89PNG\r\n\x1a\n not really"
HOSTILE = "<script>alert('x')</script>\"'&<b>"
VOID = {"meta", "img"}


def interval(value: float, half: float = 2.0) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def rates(start: float) -> dict[str, dict[str, float]]:
    # No two rates are equal, so that a swapped column shows.
    return {metric.key: interval(start + 3.1 * at) for at, metric in enumerate(METRICS)}


def model(start: float, vqa: float, delta: float) -> dict:
    kinds = {
        "street": {"h_a": 2.5, "h_s": 2.5 + delta, "delta": delta},
        "kitchen": {"h_a": 1.5, "h_s": 0.25, "delta": -1.25},
    }
    return {
        "temperatures": {"0.0": rates(start / 2), "0.7": rates(start)},
        "vqa": interval(vqa, 0.5),
        "overgeneralization": {"kinds": kinds, "mean_delta": interval(delta / 2, 0.25)},
    }


@pytest.fixture
def details() -> dict:
    models = {"ddpo": model(31.04, 98.4, 2.5), "own_idea": model(50.0, 97.0, 4.0), "dpo": model(33.0, 97.4, 3.0)}
    models |= {"base": model(62.0, 98.7, 6.2), "it_vqa": model(60.0, 99.2, 6.0)}
    steps = [{"step": at, "loss": 0.7 - at / 200, "rewards/margins": at / 50} for at in range(1, 60)]
    return {
        "seed": 7,
        "versions": {"jax": "0.10.2"},
        "settings": {"images": 16000, "preference": {"beta": 10.0, "schedule": {"warmup": 0.05}}},
        "stages": [
            {"name": "vision", "seconds": 10.25, "cpu_seconds": 20.5},
            {"name": "tuning", "seconds": 80.5, "cpu_seconds": 140.25},
        ],
        "models": models,
        "differences": {
            "ddpo-base": {"response_rate": interval(-30.96), "all_rate": interval(-20.0), "coverage": interval(1.0)},
            "ddpo-dpo": {"response_rate": interval(-1.0), "all_rate": interval(-1.5)},
        },
        "scaling": [
            {"pairs": pairs, "response_rate": interval(rate), "coverage": interval(70.5)}
            for pairs, rate in ((0, 62.0), (200, 37.0), (400, 36.5), (1400, 28.0))
        ],
        "curves": {"ddpo": steps, "dpo": [{**row, "rewards/accuracies": 0.75} for row in steps]},
        "pairs": {
            "pairs": 1400,
            "sampled": 2600,
            "segments_per_pair": 1.875,
            "types": {"object": 48.5, "attribute": 51.5},
        },
    }


@pytest.fixture
def gallery() -> list[dict]:
    text = "this street has person two red top-left , car one blue top-left ."
    errors = [
        {"start": 16, "end": 22, "type": "object", "expected": ["bus", "dog"]},
        {"start": text.index("blue"), "end": text.index("blue") + 4, "type": "attribute", "expected": ["green"]},
    ]
    return [
        {
            "id": "eval-1",
            "image_png": PNG,
            "truth": "street: car one green top-left",
            "answers": {"ddpo": {"text": "fine .", "errors": []}, "base": {"text": text, "errors": errors}},
        }
    ]


@pytest.fixture
def corrections() -> list[dict]:
    return [
        {
            "id": "pair-1",
            "image_png": PNG,
            "rejected": "this street has dog one red top-left .",
            "chosen": "this street has bus two red top-left .",
            "rejected_segments": [{"start": 16, "end": 36, "type": "object"}],
            "chosen_segments": [{"start": 16, "end": 36, "type": "object"}],
        }
    ]


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects tables by caption, texts by tag, attributes and headings."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
            self.texts.append((tag, ""))
        if tag == "tr":
            self.tables[self.caption].append([])
        if tag in ("td", "th"):
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        names = [name for name, _ in self.open]
        if names and names[-1] == "caption":
            self.caption = data
            self.tables[data] = []
        if {"td", "th"} & set(names):
            cell = self.tables[self.caption][-1]
            cell[-1] = f"{cell[-1]} {data}".strip()
        self.texts.append((names[-1] if names else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag and text]


def plain(html: str) -> str:
    return "".join(data for _, data in Reader(html).texts)


def verdict(details: dict, claim: str) -> str:
    return next(one.verdict for one in findings(details) if claim in one.claim)


def test_every_rate_in_the_tables_equals_the_input(details):
    tables = Reader(page(details, [], [])).tables
    for temperature in ("0.7", "0.0"):
        head, *rows = tables[f"Hallucination by model at T = {temperature}"]
        assert [row[0] for row in rows] == ["Base", "IT-VQA", "DPO", "DDPO", "own idea"]
        assert len(head) == len(rows[0]) == (12 if temperature == "0.7" else 10)
        for name, row in zip(("base", "it_vqa", "dpo", "ddpo", "own_idea"), rows, strict=True):
            given = details["models"][name]["temperatures"][temperature]
            for metric, cell in zip(METRICS, row[1:10], strict=True):
                one = given[metric.key]
                value, low, high = (f"{one[key]:.{metric.digits}f}" for key in ("value", "low", "high"))
                assert cell == f"{value} {low}–{high}", (name, metric.key)
        if temperature == "0.7":
            assert [row[10].split()[0] for row in rows] == ["98.7", "99.2", "97.4", "98.4", "97.0"]
            assert [row[11].split()[0] for row in rows] == ["3.10", "3.00", "1.50", "1.25", "2.00"]


def test_heads_name_the_columns_they_stand_over(details):
    head = Reader(page(details, [], [])).tables["Hallucination by model at T = 0.7"][0]
    words = [
        "Model",
        "Response",
        "Mention",
        "All",
        "Number",
        "Position",
        "Color",
        "Coverage",
        "Mentions",
        "Repeats",
        "VQA",
        "Over",
    ]
    assert all(cell.startswith(word) for cell, word in zip(head, words, strict=True))


def test_the_best_value_of_a_column_is_marked_ties_included(details):
    for name in ("dpo", "ddpo"):
        details["models"][name]["temperatures"]["0.7"]["response_rate"] = interval(30.0)
        details["models"][name]["temperatures"]["0.7"]["coverage"] = interval(99.0)
    reader = Reader(page(details, [], []))
    marked_values = reader.of("strong")
    assert marked_values.count("30.0") == 2
    assert marked_values.count("99.0") == 2
    for metric in METRICS:
        if metric.better is None:
            values = [details["models"][name]["temperatures"]["0.7"][metric.key]["value"] for name in details["models"]]
            assert not {f"{value:.2f}" for value in values} & set(marked_values)


def test_scenes_scaling_differences_and_stages_equal_the_input(details):
    tables = Reader(page(details, [], [])).tables
    base = tables["Over-generalization per kind of place"][2]
    assert base == ["Base", "2.5", "8.7", "+6.2", "1.5", "0.2", "−1.2", "+3.1"]
    assert tables["Rates by number of pairs"][2] == ["200", "37.0 35.0–39.0", "70.5 68.5–72.5"]
    noise = tables["Paired differences, in points"][2]
    assert noise[:2] == ["DDPO − DPO", "−1.0 −3.0 to +1.0 within noise"]
    assert noise[-1] == "–"
    assert tables["Stage times"][-1] == ["Total", "90.8", "160.8"]


def test_the_paper_figures_are_the_papers_and_kept_apart(details):
    text = page(details, [], [])
    tables = Reader(text).tables
    assert tables["The paper's Tables 1 and 3"][-1][:3] == ["RLHF-V (DDPO)", "12.2 −75.8%", "7.5 −69.4%"]
    assert tables["The paper's Tables 1 and 3"][3][1:5] == ["–", "–", "21.9 −34.8%", "57.5 −23.0%"]
    assert tables["The paper's Table 2"][-2][-4:] == ["2.3", "4.6", "+2.3", "+1.7"]
    assert "not comparable" in text


def told(details: dict) -> Headline:
    found = headline(details)
    assert found is not None
    return found


def test_headline_arithmetic(details):
    found = told(details)
    assert found.text == "DDPO lowers the response-level hallucination rate from 62.0% to 31.0% (−49.9%)"
    assert found.interval == "At T = 0.7: −31.0 points; 95% interval of the paired difference: −33.0 to −29.0"
    details["differences"]["ddpo-base"]["response_rate"] = interval(4.0)
    assert "raises" in told(details).text
    details["differences"]["ddpo-base"]["response_rate"] = interval(-1.0)
    assert told(details).text.endswith("within noise")


def test_headline_survives_a_base_that_never_hallucinates(details):
    details["models"]["base"]["temperatures"]["0.7"]["response_rate"] = interval(0.0)
    assert "from 0.0% to 31.0%" in told(details).text


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [(-3.0, -0.1, "better"), (-3.0, 0.0, "within noise"), (-1.0, 2.0, "within noise"), (0.1, 2.0, "worse")],
)
def test_within_noise_is_an_interval_that_contains_zero(low, high, reading):
    assert Difference((low + high) / 2, low, high).reading(METRICS[0]) == reading


def test_ddpo_against_dpo_is_judged_by_its_interval(details):
    claim = "vanilla DPO"
    assert verdict(details, claim) == "within noise"
    both = details["differences"]["ddpo-dpo"]
    both["all_rate"] = interval(-2.5)
    assert verdict(details, claim) == "partly shown"
    both["response_rate"] = interval(-4.0)
    assert verdict(details, claim) == "shown"
    both["response_rate"] = interval(4.0)
    assert verdict(details, claim) == "mixed"
    both["all_rate"] = interval(4.0)
    assert verdict(details, claim) == "opposite"


def test_without_a_paired_difference_two_intervals_must_not_meet(details):
    assert verdict(details, "IT-VQA") == "within noise"  # 62 ± 2 and 60 ± 2
    details["models"]["it_vqa"]["temperatures"]["0.7"]["response_rate"] = interval(57.9)
    assert verdict(details, "IT-VQA") == "partly shown"


def test_saying_less_is_not_called_helpful(details):
    claim = "as helpful"
    for one in details["models"].values():
        for given in one["temperatures"].values():
            given |= {"coverage": interval(70.0), "mentions": interval(4.0, 0.1), "repeats": interval(0.1, 0.05)}
    assert verdict(details, claim) == "no loss found"
    details["differences"]["ddpo-base"]["coverage"] = interval(5.0)
    assert verdict(details, claim) == "shown"
    details["models"]["ddpo"]["temperatures"]["0.0"]["mentions"] = interval(3.0, 0.1)
    assert verdict(details, claim) == "mixed"
    details["models"]["ddpo"]["temperatures"]["0.0"]["mentions"] = interval(4.0, 0.1)
    assert verdict(details, claim) == "shown"
    details["differences"]["ddpo-base"]["repeats"] = interval(0.3, 0.05)
    assert verdict(details, claim) == "mixed"  # the same thing twice is no help


def test_scaling_says_which_steps_are_noise(details):
    found = next(one for one in findings(details) if "More preference pairs" in one.claim)
    assert found.verdict == "shown"
    assert found.evidence[1] == "The first 200 pairs bring 74% of that change"
    assert found.evidence[2] == "Within noise, one step against the next: 200 → 400"
    details["scaling"][-1]["response_rate"] = interval(64.0)
    assert verdict(details, "More preference pairs") == "within noise"


def test_overgeneralization_is_judged_by_its_interval(details):
    found = next(one for one in findings(details) if "over-generalization" in one.claim)
    assert found.verdict == "shown" and found.evidence[0].startswith("Over-generalization Δ: 3.10 → 1.25, −1.85")
    details["differences"]["ddpo-base"]["overgeneralization_delta"] = interval(-1.85, 2.0)
    assert verdict(details, "over-generalization") == "within noise"
    details["differences"]["ddpo-base"]["overgeneralization_delta"] = interval(1.85, 1.0)
    assert verdict(details, "over-generalization") == "opposite"


def test_the_ablations_are_judged_where_they_were_run(details):
    assert not any("cropping" in one.claim for one in findings(details))
    details["models"] |= {"full": model(25.0, 99.0, 2.0), "full_crop": model(35.0, 95.0, 2.0)}
    assert verdict(details, "cropping") == "shown"
    assert verdict(details, "DDPO after IT-VQA") == "shown"


def test_marks_are_the_declared_characters_and_nothing_else_changes():
    text = "a <b> & two  three"
    spans = [{"start": 8, "end": 11, "type": "number"}, {"start": 2, "end": 5, "type": "object"}]
    html = marked(text, spans, "mark", TYPES)
    assert plain(html) == text
    assert re.findall(r"<mark[^>]*>(.*?)</mark>", html) == ["&lt;b&gt;", "two"]


def test_gallery_and_corrections_mark_what_they_declare(details, gallery, corrections):
    text = page(details, gallery, corrections)
    reader = Reader(text)
    assert reader.of("mark")[-2:] == ["person", "blue"]
    assert reader.of("del") == ["dog one red top-left"]
    assert reader.of("ins") == ["bus two red top-left"]
    for said in (gallery[0]["answers"]["base"]["text"], corrections[0]["rejected"], corrections[0]["chosen"]):
        assert said in plain(text)
    assert text.index("<h3>Base") < text.index("<h3>DDPO")
    assert "person is not there (left unmentioned: bus, dog); color blue should be green" in plain(text)


@pytest.mark.parametrize(("start", "end"), [(3, 3), (4, 2), (0, 9), (-1, 2)])
def test_a_span_that_does_not_fit_is_refused(start, end):
    with pytest.raises(ValueError, match="Span"):
        marked("a text", [{"start": start, "end": end, "type": "object"}], "mark", TYPES)


def test_overlapping_spans_are_refused():
    spans = [{"start": 0, "end": 3, "type": "object"}, {"start": 2, "end": 5, "type": "number"}]
    with pytest.raises(ValueError, match="overlaps"):
        marked("a text", spans, "mark", TYPES)


def poisoned(value: Any) -> Iterator[Any]:
    """Yield copies of a nested value with one string, or one free key, replaced by hostile text."""
    if isinstance(value, str):
        yield HOSTILE
    elif isinstance(value, dict):
        for key, inner in value.items():
            for bad in poisoned(inner):
                yield {**value, key: bad}
            if key in ("own_idea", "ddpo", "images", "jax", "beta", "street", "object", "ddpo-dpo"):
                yield {(HOSTILE if other == key else other): given for other, given in value.items()}
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            for bad in poisoned(inner):
                yield [*value[:at], bad, *value[at + 1 :]]


def test_no_text_can_bring_markup_along(details, gallery, corrections):
    short = [
        {**gallery[0], "answers": {"base": {"text": HOSTILE, "errors": [{"start": 0, "end": 8, "type": "object"}]}}}
    ]
    pages = [page(bad, [], []) for bad in poisoned(details)]
    pages += [
        page({}, [item], []) for item in (*short, {**gallery[0], "id": HOSTILE}, {**gallery[0], "truth": HOSTILE})
    ]
    typed = copy.deepcopy(gallery)
    typed[0]["answers"]["base"]["errors"][0] |= {"type": HOSTILE, "expected": [HOSTILE]}
    pages += [page({}, typed, []), page({}, [], [{**corrections[0], "id": HOSTILE}])]
    assert len(pages) > 15
    assert sum("&lt;script&gt;" in text for text in pages) > 15
    for text in pages:
        reader = Reader(text)
        assert not any(tag == "script" or any(name.startswith("on") for name in given) for tag, given in reader.tags)


def test_nothing_on_the_page_loads_or_runs(details, gallery, corrections):
    text = page(details, gallery, corrections)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", re.sub(r"base64,[^\"]*", "", text))
    for tag, given in Reader(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "a")
        assert (given.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        assert not {"href", "srcset", "poster", "data", "action"} & set(given)
    assert "default-src &#x27;none&#x27;" in text


@pytest.mark.parametrize(
    ("part", "heading"),
    [
        ("models", "Hallucination by model"),
        ("scaling", "More pairs"),
        ("curves", "Preference training"),
    ],
)
def test_a_missing_part_leaves_its_section_out(details, part, heading):
    assert heading in Reader(page(details, [], [])).of("h2")
    del details[part]
    assert heading not in Reader(page(details, [], [])).of("h2")


def test_every_single_part_and_none_at_all_make_a_page(details, gallery, corrections):
    bare = Reader(page({}, [], []))
    assert bare.of("h2") == []
    assert bare.of("h1") == ["RLHF-V in miniature"]
    for key, value in details.items():
        Reader(page({key: value}, [], []))
    assert Reader(page({}, gallery, [])).of("h2") == ["Answers, before and after"]
    assert Reader(page({}, [], corrections)).of("h2") == ["Corrected pairs"]


def test_models_may_lack_a_temperature_a_rate_or_everything(details):
    details["models"]["own_idea"] = {}
    del details["models"]["dpo"]["temperatures"]["0.0"]
    del details["models"]["it_vqa"]["temperatures"]["0.7"]["coverage"]
    tables = Reader(page(details, [], [])).tables
    assert [row[0] for row in tables["Hallucination by model at T = 0.0"][1:]] == ["Base", "IT-VQA", "DDPO"]
    assert tables["Hallucination by model at T = 0.7"][2][7] == "–"


def test_accessible_tables_images_and_charts(details, gallery, corrections):
    reader = Reader(page(details, gallery, corrections))
    assert all(given.get("alt") for tag, given in reader.tags if tag == "img")
    assert all(given.get("scope") for tag, given in reader.tags if tag == "th")
    charts = [given for tag, given in reader.tags if tag == "svg" and given.get("role") == "img"]
    assert len(charts) == 5
    assert len(reader.of("caption")) == sum(tag == "table" for tag, _ in reader.tags)
    names = [given["id"] for _, given in reader.tags if "id" in given]
    assert len(names) == len(set(names)) > 5


def test_colors_are_readable_on_their_grounds():
    style = files("rlhfv_jax.reporting").joinpath("style.css").read_text(encoding="utf-8")
    for block in style.split("prefers-color-scheme")[:2]:
        color = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        texts = ["ink", "muted", "accent", "good", "bad", "object", "number", "attribute", "position", "misc"]
        for ground in ("page", "card", "tint"):
            assert all(contrast(color[name], color[ground]) >= 4.5 for name in texts), ground
        assert all(contrast(color[f"s{at}"], color["card"]) >= 3 for at in range(6))
        assert contrast(color["ink"], color["best"]) >= 4.5


def contrast(one: str, other: str) -> float:
    def luminance(color: str) -> float:
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_points_lie_where_their_values_say():
    svg = points_chart("t", Series("r", [0, 100], [20.0, 40.0], [10.0, 30.0], [30.0, 50.0]), "pairs", top=80.0)
    heights = [float(y) for y in re.findall(r'<circle[^>]*cy="([\d.]+)"', svg)]
    grid = {
        float(value): float(y) for y, value in re.findall(r'y="([\d.]+)" class="tick" text-anchor="end">(\d+)<', svg)
    }
    assert heights == [pytest.approx(grid[value] - 4, abs=0.11) for value in (20.0, 40.0)]


@pytest.mark.parametrize("ys", [[0.5], [0.0, 0.0], [-3.0, 2.0], [1e-9, 2e-9], [1e4, 3e5]])
def test_a_chart_of_any_values_can_be_drawn(ys):
    svg = lines_chart("t", [Series("r", list(range(len(ys))), ys)], "step")
    assert "nan" not in svg and Reader(svg).open == []


def test_round_ticks_and_centered_means():
    assert ticks(0.0, 80.0) == [0.0, 20.0, 40.0, 60.0, 80.0]
    assert smooth([1.0, 2.0]) == [1.0, 2.0]
    ramp = [float(at) for at in range(100)]
    assert smooth(ramp)[10:90] == pytest.approx(ramp[10:90])


def test_numbers_have_true_signs_and_no_signed_zero():
    assert [number(-1.25), number(-0.04, signed=True), number(2, 0, True), number(None)] == ["−1.2", "0.0", "+2", "–"]


def test_joining_markup_with_text_by_plus_is_escaped_rather_than_trusted():
    assert element("p", Markup("<i>") + "x") == "<p>&lt;i&gt;x</p>"


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path, details, gallery):
    path = tmp_path / "report.html"
    write(path, details, gallery, [])
    before = path.read_text(encoding="utf-8")
    assert before == page(details, gallery, [])
    gallery[0]["answers"]["base"]["errors"][0]["end"] = 999
    with pytest.raises(ValueError):
        write(path, details, gallery, [])
    assert path.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [path]


def test_vqa_is_judged_by_its_own_entry_of_a_model(details):
    assert VQA.key not in details["differences"]["ddpo-base"]
    assert "VQA accuracy: 98.7 → 98.4, −0.3 points (bounds −1.3 to +0.7): within noise" in plain(page(details, [], []))
