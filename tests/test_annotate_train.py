"""From an annotator's keys to the optimizer: what training weighs are the typed segments, and nothing else."""

import json
import subprocess
import sys
import uuid

import httpx
import numpy as np
import pytest
import sentencepiece
from annotation_world import CORRECTED, RESPONSE, add, served
from browser import chromium, expect, page, press, sign_in  # noqa: F401  (two are fixtures)
from conftest import SMALL_RUN, shared

from rlhfv_jax import cli, experiment, settings
from rlhfv_jax.annotation import diff, exports, project
from rlhfv_jax.structs import IGNORE

ITEMS = [  # (answer, its correction, types in order): replaced, inserted, deleted, and two that were divided
    (RESPONSE, CORRECTED, ["attributes", "positions"]),
    ("Two men walk with a dog. It is raining.", "Two old men walk with a dog.", ["attributes", "misc"]),
    ("The cat sits on two mats.", "The cat sits under three mats.", ["positions", "numbers"]),
    ("A child is eating a green apple.", "A child is holding a green apple.", ["actions"]),
]
CUTS = {2: {"splits": [[len("The cat sits on"), len("The cat sits under")]]}}


def annotate(world, answers) -> None:
    """Types every correction into the HTTP interface and submits it."""
    with httpx.Client(base_url=world.url, headers={"X-Requested-With": "rlhfv"}) as client:
        client.post("/api/session", json={"token": world.tokens["ada"]}).raise_for_status()
        for answer, corrected, types in answers:
            item = client.post("/api/projects/1/next").json()["item"]
            assert client.get(f"/api/items/{item}").json()["response"] == answer
            cuts = CUTS.get(item - 1, {})
            found = client.post("/api/diff", json={"source": answer, "corrected": corrected, "cuts": cuts}).json()
            segments = [s | {"type": t} for s, t in zip(found["segments"], types, strict=True)]
            body = {
                "base_rev": 0,
                "op_id": uuid.uuid4().hex,
                "state": "submitted",
                "verdict": "corrected",
                "cuts": cuts,
            }
            body |= {"corrected": corrected, "segments": segments, "active_ms": 9000, "confirm": True}
            client.put(f"/api/items/{item}/annotation", json=body).raise_for_status()


def small_config(path) -> dict:
    config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini")
    tokenizer = str(shared("data/stories260K/tok512.model"))
    config.update_from_flattened_dict(SMALL_RUN | {"tokenizer": tokenizer, "data.path": str(path)})
    return config.to_dict()


def spelled(pieces: list[str], answer: str) -> list[tuple[int, int]]:
    """Where each piece stands in the answer, from the pieces' own letters: a word without the space before it, a
    space that is a piece of its own, nothing for the end of the row."""
    spans, at = [], 0
    for piece in pieces:
        if piece == "▁":
            text = answer[at : at + 1] if answer[at : at + 1] == " " else ""
        else:
            text = "" if piece.startswith("<") else piece.removeprefix("▁")
        start = answer.find(text, at)
        assert start >= 0 and not answer[at:start].strip(), (piece, answer[at:])
        spans.append((start, start + len(text)))
        at = start + len(text)
    assert at == len(answer)
    return spans


def check(rows, answers, gamma: float) -> None:
    """γ on tokens that spell a typed segment, 1 on the rest of the answer, 0 elsewhere, in every one of the rows
    (number, tokens, labels, weights), each of these for both answers; every answer occurs."""
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(shared("data/stories260K/tok512.model")))
    seen = set()
    for number, tokens, labels, weights in rows:
        answer, corrected, _ = answers[number]
        seen.add(number)
        places = [[answer_and_correction(change, k) for change in changes_of(number)] for k in (0, 1)]
        for side, text in enumerate((corrected, answer)):
            scored = labels[side] != IGNORE
            assert np.array_equal(tokens[side][1:][scored], labels[side][scored])
            spans = spelled([tokenizer.id_to_piece(int(i)) for i in labels[side][scored]], text)
            expected = [gamma if any(a < stop and start < b for a, b in places[side]) else 1.0 for start, stop in spans]
            assert weights[side][scored].tolist() == expected, (text, spans)
            assert not weights[side][~scored].any()
            assert (gamma in expected) == any(a < b for a, b in places[side])
    assert seen == set(range(len(answers)))


def changes_of(number: int) -> list[diff.Change]:
    answer, corrected, _ = ITEMS[number]
    splits = CUTS.get(number, {}).get("splits", [])
    return diff.segments(answer, corrected, diff.Cuts(splits=tuple(map(tuple, splits))))


def answer_and_correction(change: diff.Change, side: int) -> tuple[int, int]:
    return (change.dst0, change.dst1) if side == 0 else (change.src0, change.src1)


@pytest.fixture
def exported(tmp_path):
    """The corrections of ITEMS, annotated and exported."""
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": answer} for answer, _, _ in ITEMS])
        annotate(world, ITEMS)
        exports.export(world.store, 1, project.new("correction"), "parquet", tmp_path / "pairs.parquet")
    return small_config(tmp_path / "pairs.parquet")


def test_what_was_typed_and_nothing_else_has_gamma_when_training_reads_it(exported):
    job = experiment.prepare_job(settings.from_dict(exported))
    rows = [
        (i, [row.tokens for row in pair.rows], [row.labels for row in pair.rows], pair.weights)
        for i, pair in enumerate(job.rows.encoded)
    ]
    check(rows, ITEMS, exported["ddpo"]["gamma"])


@pytest.mark.slow
def test_the_optimizer_steps_on_gamma_exactly_on_the_segments_that_were_typed(exported, tmp_path, monkeypatch):
    batches = []  # what goes to the step
    put = experiment.sharding.put
    monkeypatch.setattr(experiment.sharding, "put", lambda batch, mesh: (batches.append(batch), put(batch, mesh))[1])
    experiment.train(exported, tmp_path / "run")
    pairs = [batch for batch in batches if hasattr(batch, "weights")]
    assert len(pairs) >= exported["optim"]["steps"]
    rows = [row for b in pairs for row in zip(map(int, b.row), b.tokens, b.labels, b.weights, strict=True)]
    check(rows, ITEMS, exported["ddpo"]["gamma"])


@pytest.mark.slow
def test_keys_in_the_browser_become_weights_of_the_training_program(page, tmp_path):  # noqa: F811
    with served(tmp_path) as world:
        add(world.store, tmp_path, "correction", [{"response": RESPONSE}])
        sign_in(page, world, "ada")
        press(page, "Enter")
        editor = page.get_by_label("Answer, corrected in place")
        expect(editor).to_be_visible()
        press(page, "Enter", "Control+a")
        page.keyboard.type(CORRECTED, delay=30)
        press(page, "Escape")
        while page.locator(".row").nth(0).get_attribute("aria-current") != "true":
            press(page, "k")
        press(page, "4", "2")
        page.wait_for_timeout(3000)
        press(page, "Control+Enter")
        expect(page.get_by_text("Nothing is left for you here")).to_be_visible()
        page.context.close()
    program = [sys.executable, "-m"]
    parquet, workdir = tmp_path / "pairs.parquet", tmp_path / "run"
    subprocess.run(
        [*program, "rlhfv_jax.annotate", f"--project={tmp_path / 'work'}", f"--export={parquet}"], check=True
    )
    given = ["--config=ddpo.py:mini", "--config.optim.batch_size=1", f"--config.data.path={parquet}"]
    given += [f"--config.{key}={value}" for key, value in SMALL_RUN.items() if key != "optim.batch_size"]
    given += [f"--config.tokenizer={shared('data/stories260K/tok512.model')}"]
    subprocess.run([*program, "rlhfv_jax.train", *given, f"--workdir={workdir}"], check=True)
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    shown = subprocess.run(
        [*program, "rlhfv_jax.inspect", *given, "--index=0", "--format=json"],
        check=True,
        capture_output=True,
        text=True,
    )
    pair = json.loads(shown.stdout)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(shared("data/stories260K/tok512.model")))
    for side, words in (("chosen", ["blue", "right"]), ("rejected", ["red", "left"])):
        tokens, weights = pair[side]["tokens"][1:], pair[side]["weights"]
        runs, last = [], None
        for i, (token, weight) in enumerate(zip(tokens, weights, strict=True)):
            if weight > 1:
                runs = [*runs[:-1], runs[-1] + [token]] if last == i - 1 and runs else [*runs, [token]]
                last = i
        assert [tokenizer.decode(run).strip() for run in runs] == words
        assert set(weights) == {0.0, 1.0, 5.0}
