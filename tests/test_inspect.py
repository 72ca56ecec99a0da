"""The inspector shows what the loss sees: the goldens' numbers, the words that were corrected, a set's own counts."""

import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import shared
from rich.console import Console

from rlhfv_jax import checkpoint, prepare
from rlhfv_jax.data import buckets, encoding, sources
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.data.records import AnsweredRecord, PreferenceRecord, Segment
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.errors import UserError
from rlhfv_jax.inspection import page, summary, terminal, view
from rlhfv_jax.models import vlm
from rlhfv_jax.structs import IGNORE, TrainState


@pytest.fixture(scope="module")
def llama(fixtures) -> MuffinTokenizer:
    return MuffinTokenizer.from_file(fixtures / "tiny-muffin/tokenizer.model")


@pytest.fixture(scope="module")
def record(fixtures) -> PreferenceRecord:
    image = (fixtures / "images/img0_120x90_rgb.png").read_bytes()
    segments = ((Segment(2, 5, "attribute"),), (Segment(2, 6, "attribute"),))
    return PreferenceRecord(
        "7", image, "What <is> it?", "A red bus.", "A blue bus.", segments, "VQAv2", "a.jsonl, row 0"
    )


@pytest.fixture(scope="module")
def shown(record, llama) -> dict:
    pair = encoding.encode_pairs([record], llama, MUFFIN, 8, gamma=5.0)[0][0]
    return view.row_view(pair, 0, llama)


def inspect(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhfv_jax.inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def printed(shown: dict, monkeypatch, color: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=color, width=400, color_system="standard" if color else None)
    monkeypatch.setattr(terminal, "_console", lambda: console)
    terminal.print_view(shown)
    return stream.getvalue()


# One row.


def test_the_program_prints_the_golden_numbers(fixtures, tmp_path):
    """Under release_2024_02 every token id, label and weight of two golden pairs, through file, config and JSON."""
    pairs = json.loads((fixtures / "ddpo.json").read_text())["pairs"]
    arrays = np.load(fixtures / "ddpo.npz")
    records = [
        PreferenceRecord(
            str(i), (fixtures / "images" / p["image"]).read_bytes(), p["question"], p["chosen"], p["rejected"]
        )
        for i, p in enumerate(pairs)
        if p["chosen"] != p["rejected"]
    ]
    sources.write_parquet(records, tmp_path / "pairs.parquet")
    row = next(i for i, record in enumerate(records) if pairs[int(record.id)]["autojunk_active"])
    result = inspect(
        "--config=ddpo.py:release_2024_02",
        f"--config.data.path={tmp_path / 'pairs.parquet'}",
        f"--config.tokenizer={fixtures / 'tiny-muffin/tokenizer.model'}",
        "--config.model.tower.queries=8",
        f"--index={row}",
        "--format=json",
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    for side, word in (("chosen", "win"), ("rejected", "rej")):
        name = f"pair{found['id']}_{word}"
        labels = arrays[f"{name}_labels"][1:]
        assert found[side]["tokens"] == arrays[f"{name}_input_ids"].tolist()
        assert found[side]["labels"] == labels.tolist()
        factor = np.where(arrays[f"{name}_token_weight"] == 5, 1.1, 1.0)
        np.testing.assert_allclose(found[side]["weights"], np.where(labels == IGNORE, 0, factor), atol=1e-6)


def test_rows_have_the_image_tokens_of_the_checkpoint(tiny_config, llama, coco_records, tmp_path):
    sources.write_parquet(coco_records[:2], tmp_path / "pairs.parquet")
    with checkpoint.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        state = TrainState(np.int32(3), {"weight": np.zeros(2, np.float32)}, {"count": np.zeros(2, np.int32)})
        checkpoints.save(state, prepare.checkpoint_meta(vlm.Vlm(tiny_config), llama, "muffin"))
    path = f"--config.data.path={tmp_path / 'pairs.parquet'}"
    result = inspect("--config=ddpo.py", path, f"--config.init_from={tmp_path}", "--format=json")
    assert result.returncode == 0, result.stderr
    tokens = json.loads(result.stdout)["chosen"]["tokens"]
    assert tokens.count(llama.image_token) == tiny_config.image_tokens != 64


def test_a_pipe_gets_plain_text_and_a_page_is_written(coco_records, tmp_path):
    sources.write_jsonl(coco_records[:4], tmp_path / "pairs.jsonl")
    result = inspect(
        "--config=ddpo.py",
        f"--config.data.path={tmp_path / 'pairs.jsonl'}",
        f"--config.tokenizer={shared('fixtures/tiny-muffin/tokenizer.model')}",
        "--index=3",
        f"--html={tmp_path / 'row.html'}",
    )
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert "A [cloudy] dusky evening" in result.stdout and "<im_patch>×64" in result.stdout
    assert re.search(r'class="corrected"[^>]*> cloud<', (tmp_path / "row.html").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.jsonl", "row.html"}


def test_a_terminal_gets_color_and_no_brackets(shown, monkeypatch):
    text = printed(shown, monkeypatch, color=True)
    assert "\x1b[1;4;32m red" in text and "\x1b[1;4;31m blue" in text
    assert "[ red" not in re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_plain_text_names_counts_words_and_types(shown, monkeypatch):
    text = printed(shown, monkeypatch, color=False)
    assert "chosen: 6" in text.replace(str(len(shown["chosen"]["tokens"])), "6", 1)
    for words in ("A [red] bus.", "A [blue] bus.", "1 corrected with weight 5", "'red' (attribute)", "origin VQAv2"):
        assert words in text
    assert "120 x 90 pixels" in text and "row 0, id 7, a.jsonl, row 0" in text


def test_shapes_are_those_of_the_contract(shown):
    for side in ("chosen", "rejected"):
        row = shown[side]
        assert len(row["tokens"]) == len(row["pieces"]) == len(row["labels"]) + 1 == len(row["weights"]) + 1
    json.dumps(shown)


def test_a_page_holds_the_picture_and_escapes_what_people_write(shown, record):
    text = page.page(shown, record.image)
    HTMLParser().feed(text)
    assert base64.b64encode(record.image).decode() in text and "image/png" in text
    assert "What &lt;is&gt; it?" in text and "<is>" not in text
    assert text.count('class="corrected"') == 2
    assert "http" not in text


def test_a_row_with_an_unreadable_image_is_refused_by_name(record, llama):
    pair = encoding.encode_pairs([dataclasses.replace(record, image=b"x")], llama, MUFFIN, 8, gamma=5.0)[0][0]
    with pytest.raises(UserError, match=r"a\.jsonl, row 0, image: not a readable image"):
        view.row_view(pair, 0, llama)


# A set.


def test_a_summary_counts_what_an_oracle_counts(coco_records, llama):
    """Against a count over the arrays, with one broken image, one pair without a corrected token and typed segments."""
    records = list(coco_records[:30])
    records[4] = dataclasses.replace(records[4], image=b"broken")
    records[5] = dataclasses.replace(records[5], segments=((), ()))
    records[6] = dataclasses.replace(records[6], segments=((Segment(0, 1, "object"),), ()), origin="GQA")
    pairs, _ = encoding.encode_pairs(records, llama, MUFFIN, 8, gamma=5.0)
    lengths = [pair.longest for pair in pairs]
    bounds, limit = buckets.choose(lengths, 2), sorted(lengths)[20]
    found = summary.summary(pairs, limit, bounds)
    assert found["rows"] == 30 and found["origins"] == {"(none)": 29, "GQA": 1}
    assert found["lengths"]["max"] == max(lengths) and found["lengths"]["mean"] == pytest.approx(np.mean(lengths))
    assert found["too_long"]["rows"] == sum(length > limit for length in lengths)
    corrected = [[int((weights == 5).sum()) for weights in pair.weights] for pair in pairs]
    assert found["corrected"]["rejected"] == pytest.approx(np.mean([side[1] for side in corrected]))
    assert found["without_corrected_tokens"]["rows"] == sum(not any(side) for side in corrected) >= 1
    assert (found["with_segments"], found["types"]) == (2, {"object": 1})
    assert found["images"]["failed"] == 1 and "row 4, image" in found["images"]["messages"][0]
    assert sum(bucket["rows"] for bucket in found["padding"]) == 30
    for name, value in summary.lines(found, limit):
        assert name or "row 4" in value


def test_padding_shares_are_what_batches_hold(coco_records, llama):
    pairs, _ = encoding.encode_pairs(coco_records, llama, MUFFIN, 8, gamma=5.0)
    bounds = buckets.choose([pair.longest for pair in pairs], 3)
    for bucket in summary.summary(pairs, 2048, bounds)["padding"]:
        below = [bound for bound in bounds if bound < bucket["length"]]
        members = [pair for pair in pairs if max([0, *below]) < pair.longest <= bucket["length"]]
        tokens = sum(len(row.tokens) for pair in members for row in pair.rows)
        assert bucket["rows"] == len(members)
        assert bucket["share"] == pytest.approx(1 - tokens / (2 * len(members) * bucket["length"]))


def test_answered_questions_are_summed_up_too(llama, coco_records):
    records = [AnsweredRecord(str(i), coco_records[0].image, (("Is it?", "yes"),)) for i in range(3)]
    examples, stats = encoding.encode_examples(records, llama, MUFFIN, 8)
    found = summary.summary(examples, 2048, [buckets.rounded(stats.longest_row)])
    assert found["targets"] == {"example": len(llama.encode("yes\n###")) - 1}
    assert "corrected" not in found and found["images"]["failed"] == 0


def test_a_wrong_row_gets_one_sentence():
    result = inspect(
        "--config=ddpo.py",
        f"--config.data.path={shared('data/coco_pairs/pairs.jsonl')}",
        f"--config.tokenizer={shared('fixtures/tiny-muffin/tokenizer.model')}",
        "--index=130",
    )
    assert result.returncode == 1 and "pairs.jsonl has rows 0 to 129" in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_summary_is_json_and_help_has_an_example(tmp_path):
    result = inspect(
        "--config=ddpo.py",
        f"--config.data.path={shared('data/coco_pairs/pairs.jsonl')}",
        f"--config.tokenizer={shared('fixtures/tiny-muffin/tokenizer.model')}",
        "--config.data.count=20",
        "--config.data.buckets=2",
        "--summary",
        "--format=json",
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["rows"] == 20 and len(found["padding"]) == 2
    text = inspect("--help").stdout
    assert "python -m rlhfv_jax.inspect --config=ddpo.py" in text and "--summary" in text
