"""All stages of the miniature in one process, for a few steps each: the files it promises, not the numbers in them."""

import json
import subprocess
import sys

import pytest

from rlhfv_jax.miniature import corpus, evaluation, scoring, words
from rlhfv_jax.miniature.captions import NOISY


def test_a_row_of_the_corpus_follows_from_seed_split_and_row_alone():
    tokenizer = words.train_tokenizer()
    length = corpus.row_length(tokenizer, 16)
    source, again = (corpus.TextSource(3, "sft", 50, tokenizer, 16, length, NOISY, 0.3) for _ in range(2))
    rows = [source[row] for row in range(50)]
    for row in reversed(range(50)):
        for a, b in zip(again[row], rows[row], strict=True):
            assert (a == b).all()
    assert all(batch.tokens.shape == (2, length) and batch.lengths.max() <= length for batch in rows)
    other = corpus.TextSource(3, "it_vqa", 50, tokenizer, 16, length, NOISY, 0.3)
    assert (other[0].image != rows[0].image).any()


def test_every_word_of_the_world_is_one_token():
    tokenizer = words.train_tokenizer()
    for word in words.WORDS:
        ids = tokenizer.encode(word)
        assert len(ids) == 2 and tokenizer.decode(ids).strip() == word


@pytest.mark.slow
def test_the_smoke_preset_runs_every_stage_and_a_second_start_changes_nothing(tmp_path):
    command = [sys.executable, "-m", "rlhfv_jax.train", "--config=demo.py:smoke", f"--workdir={tmp_path}"]
    subprocess.run(command, check=True, timeout=600)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == {"base", "it_vqa", "dpo", "ddpo"}
    assert all(set(row) == set(evaluation.RESULTS) for row in results.values())
    scenes = corpus.scenes(0, "test", 250)
    lines = [json.loads(line) for line in (tmp_path / "answers" / "ddpo.jsonl").read_text().splitlines()]
    assert len(lines) == 250
    page = (tmp_path / "report.html").read_text()
    assert f"{results['ddpo']['response_rate']:.1f}" in page and page.count("data:image/png") >= 12
    for line, scene in zip(lines, scenes, strict=True):
        found = scoring.score(line["text"], scene)
        assert line["objects"] == [group.name for group in scene.groups]
        assert line["hallucinated"] == [error.claim.word for error in found.objects]
    before = (tmp_path / "results.json").read_bytes()
    subprocess.run(command, check=True, timeout=600)
    assert (tmp_path / "results.json").read_bytes() == before
