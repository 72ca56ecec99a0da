"""Statistics and exports against counts made by hand; the front end's files against the rules they promise to keep."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("regex")
from annotation_world import CORRECTED, RESPONSE

from rlhfv_jax.annotation import diff, exports, project, statistics
from rlhfv_jax.annotation.checks import Typed
from rlhfv_jax.annotation.collected import Finished, one_each

STATIC = Path(exports.__file__).parent / "static"


def finished(item: int, types: list[str], response: str = RESPONSE, corrected: str = CORRECTED, **more) -> Finished:
    """A response with as many segments as types; none: no hallucination."""
    changes = diff.segments(response, corrected)[: len(types)]
    segments = tuple(
        Typed(c, response[c.src0 : c.src1], corrected[c.dst0 : c.dst1], c.op, t)
        for c, t in zip(changes, types, strict=True)
    )
    values = {
        **{"item": item, "ext_id": str(item), "image_sha256": "0" * 64, "image_name": "", "prompt": "p"},
        **{"response": response, "model": "m", "source": {}, "annotator": 1, "rev": 1, "skip_reason": ""},
        **{"verdict": "corrected" if types else "clean", "corrected": corrected if types else response},
        **{"active_ms": 30_000, "opened": 0.0, "updated": float(item), "segments": segments},
    }
    return Finished(**(values | more))


def test_the_papers_row_is_counted_as_by_hand():
    rows = [finished(1, ["objects", "positions"]), finished(2, ["objects"]), finished(3, []), finished(4, ["numbers"])]
    found = statistics._corrections(rows, project.new("correction"))
    assert found["segments"]["value"] == 1.0 and found["segments_of_corrected"]["value"] == pytest.approx(4 / 3)
    assert found["words"]["value"] == 10.0 and found["segments"]["n"] == 4
    assert {key: share["value"] for key, share in found["types"].items()} == {
        **{"objects": 50.0, "positions": 25.0, "numbers": 25.0, "attributes": 0.0, "actions": 0.0, "misc": 0.0}
    }
    assert found["clean"]["count"] == 1 and found["segments_histogram"] == {0: 1, 1: 2, 2: 1}
    assert all(share["low"] <= share["value"] <= share["high"] for share in found["types"].values())
    assert [share["paper"] for share in found["types"].values()] == [41.2, 20.3, 16.5, 10.0, 5.3, 6.8]
    assert (found["words"]["paper"], found["segments"]["paper"]) == (64.4, 2.65)


def test_wilsons_interval_is_the_textbooks():
    found = statistics.wilson(15, 20)  # the score equation's roots for 15 of 20
    assert (found["low"], found["high"]) == (pytest.approx(53.13, abs=0.01), pytest.approx(88.81, abs=0.01))
    assert statistics.wilson(0, 0)["value"] is None


def test_an_item_counts_once_by_its_earliest_work_and_skips_only_alone():
    rows = [
        finished(1, [], verdict="skipped", updated=1.0),
        finished(1, ["objects"], updated=2.0, annotator=2),
        finished(1, [], updated=3.0, annotator=3),
        finished(2, [], verdict="skipped"),
    ]
    assert [(row.item, row.annotator, row.verdict) for row in one_each(rows)] == [
        (1, 2, "corrected"),
        (2, 1, "skipped"),
    ]


def test_no_cell_of_the_table_is_a_formula():
    row = finished(1, ["objects"], prompt='=HYPERLINK("http://x")', model="+1", ext_id="@a")
    (head, cells) = csv.reader(exports._table([(row, "single", True)]).splitlines())
    assert cells[head.index("prompt")] == '\'=HYPERLINK("http://x")'
    assert not [cell for cell in cells if cell.startswith(exports.FORMULA)]


def test_the_front_end_makes_no_html_of_text_and_names_no_other_place():
    for path in STATIC.glob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
            assert not [url for url in re.findall(r"https?://\S+", text) if "w3.org/2000/svg" not in url], path
            assert not re.search(r"\son\w+=[\"']|<script>|style=\"", text), path  # the policy would refuse them
            assert len(text.splitlines()) <= 300 or path.suffix != ".js"


def test_the_vendored_file_is_the_one_its_readme_names():
    readme = (STATIC / "vendor" / "README").read_text()
    wanted, name = re.search(r"sha256 (\w{64})  (\S+)", readme).groups()
    assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == wanted
    assert {"htm.LICENSE.txt", "preact.LICENSE.txt"} <= {path.name for path in (STATIC / "vendor").iterdir()}


def test_a_projects_keys_may_change_but_not_collide():
    values = json.loads(json.dumps(project.to_dict(project.new("correction"))))
    assert project.from_dict(values | {"keys": {"clean": "c"}}).keys["clean"] == "c"
    with pytest.raises(project.UserError, match="would be both"):
        project.from_dict(values | {"keys": {"clean": "1"}})
