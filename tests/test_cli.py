"""Configs by bare name, presets, overrides, and what a person reads when something is wrong."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfv_jax import cli, settings
from rlhfv_jax.errors import UserError

PAPER = {"ddpo.gamma": 5.0, "ddpo.beta": 0.5, "ddpo.average": True, "optim.lr": 5e-7, "optim.batch_size": 32}
PAPER |= {
    "optim.epochs": 7.0,
    "optim.clip": 1.0,
    "optim.warmup": 0.03,
    "optim.weight_decay": 0.0,
    "data.max_length": 2048,
}
PAPER |= {
    "model.tower.image_size": 448,
    "model.tower.queries": 64,
    "model.llm.layers": 40,
    "optim.trainable": "frozen_A",
}


def train(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rlhfv_jax.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_the_default_config_is_the_papers_recipe():
    config = settings.from_dict(cli._load(str(cli.config_folder() / "ddpo.py")).to_dict())
    assert {key: settings.get(config, key) for key in PAPER} == PAPER


SHIPPED = [
    *(
        f"{name}:{preset}"
        for name in ("ddpo.py", "dpo.py")
        for preset in ("rlhfv_paper", "release_2023_12", "release_2024_02", "mini")
    ),
    *("sft_vqa.py:vqa", "sft_vqa.py:mini"),
]


@pytest.mark.parametrize("preset", SHIPPED)
def test_every_preset_resolves_to_valid_settings(preset):
    config = cli._load(f"{cli.config_folder() / preset}").to_dict()
    built = settings.from_dict(config)
    assert dataclasses.asdict(built) == config  # nothing is lost, nothing is invented


def test_dpo_differs_from_ddpo_in_its_weights_and_sums_alone():
    configs = [cli._load(str(cli.config_folder() / name)).to_dict() for name in ("ddpo.py", "dpo.py")]
    assert settings.differences(*configs) == ["ddpo.average: True against False", "ddpo.gamma: 5.0 against 1.0"]


def test_a_bare_name_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = cli.config_folder() / "ddpo.py"
    assert cli.resolve(["--config=ddpo.py:mini", "--x=1"]) == [f"--config={shipped}:mini", "--x=1"]
    assert cli.resolve(["--config", "ddpo.py"]) == [f"--config={shipped}"]
    (tmp_path / "ddpo.py").write_text("")
    assert cli.resolve(["--config=ddpo.py"]) == ["--config=ddpo.py"], "a file of that name here comes first"


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        ([], 1, "No --config was given. Try --config=ddpo.py"),
        (["--config=kto.py"], 2, "no config file 'kto.py'"),
        (
            ["--config=ddpo.py:nope"],
            2,
            "no preset 'nope'; choose one of rlhfv_paper, release_2023_12, release_2024_02, mini",
        ),
        (["--config=ddpo.py", "--config.ddpo.gama=3"], 2, "Did you mean config.ddpo.gamma?"),
        (["--config=ddpo.py", "--config.optim.steps=1.5"], 2, "--config.optim.steps=1.5: invalid literal for int()"),
        (["--config.ddpo.gamma=3"], 2, "An override needs a --config"),
        (["--config=ddpo.py", "--wrokdir=x"], 2, "Did you mean: workdir"),
        (["--config=ddpo.py"], 1, "No data: give preference pairs as --config.data.path"),
        (["--config=ddpo.py", "--config.data.path=pairs.parquet"], 1, "No checkpoint: give the model to start from"),
        (["--config=ddpo.py:mini", "--config.data.path=x.parquet"], 1, "No tokenizer: give a sentencepiece model"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence_and_a_status(arguments, status, sentence, tmp_path):
    result = train(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert sentence in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


@pytest.mark.parametrize(("told", "sentence"), [("", "error: Interrupted.\n"), ("Ask.", "error: Interrupted. Ask.\n")])
def test_an_interrupted_program_says_what_that_means_for_it(told, sentence):
    code = f"""
from rlhfv_jax import cli
def main(): raise KeyboardInterrupt
cli.run(main, "", (), interrupted={told!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 130 and result.stderr == sentence


def test_reads_that_fail_beside_the_one_that_is_told_say_nothing():
    code = """
import asyncio
from rlhfv_jax import cli
from rlhfv_jax.errors import UserError
def main():
    loop = asyncio.new_event_loop()
    kept.append(loop.create_future())
    kept[0].set_exception(ValueError("one more"))
    kept.append(Ends())
    raise UserError("It is damaged.")
class Ends:
    def __del__(self): raise RuntimeError("Event loop is closed")
kept = []
cli.run(main, "", ())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1 and result.stderr == "error: It is damaged.\n"


def test_help_names_the_flags_the_files_and_an_example():
    result = train("--help")
    assert result.returncode == 0
    for words in ("--workdir", "--resume", "--config=ddpo.py:mini", "shipped configs: ddpo.py"):
        assert words in result.stdout


def test_the_dispatcher_lists_every_program_and_suggests_near_ones():
    run = [sys.executable, "-m", "rlhfv_jax"]
    listing = subprocess.run([*run, "--help"], capture_output=True, text=True)
    assert listing.returncode == 0 and "train" in listing.stdout
    miss = subprocess.run([*run, "trian"], capture_output=True, text=True)
    assert miss.returncode == 2 and "Did you mean train?" in miss.stderr


def mini(**changes) -> dict:
    config = cli._load(f"{cli.config_folder() / 'ddpo.py'}:mini").to_dict()
    for key, value in changes.items():
        *groups, name = key.split("__")
        target = config
        for group in groups:
            target = target[group]
        target[name] = value
    return config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"ddpo__gama": 1.0}, "config.ddpo.gama is not a known setting. Did you mean gamma?"),
        ({"dtype": "float16"}, "config.dtype='float16' is not known"),
        ({"optim__trainable": "frozenA"}, "Did you mean frozen_A?"),
        ({"optim__lr": 0.0}, "config.optim.lr=0.0 must be positive"),
        ({"optim__steps": 0}, "Give the length of the run"),
        ({"optim__epochs": 2.0}, "Give the length of the run"),
        ({"ddpo__average": 1}, "config.ddpo.average=1: expected bool"),
        ({"optim__batch_size": True}, "config.optim.batch_size=True: expected int"),
        ({"model__llm__heads": 3}, "config.model.llm.width=128 is not a positive multiple of config.model.llm.heads=3"),
        ({"data": "x"}, "config.data is a group of settings"),
        (
            {"ddpo__diff_over": "row", "ddpo__unit": "word"},
            "diff_over=row compares tokens; config.ddpo.unit=word needs",
        ),
        (
            {"ddpo__label_mask": "muffin", "data__template": "words"},
            "label_mask=muffin is for config.data.template=muf",
        ),
        ({"ddpo__min_match": 0}, "config.ddpo.min_match=0 must be positive"),
        ({"ddpo__hunks": "replaced"}, "Did you mean replace?"),
        ({"data__template": "muffin_release"}, "config.data.template='muffin_release' is not known"),
        ({"data__records": "questions"}, "config.data.records=questions has no pairs"),
        ({"data__instructions": ("Answer.",)}, "config.data.instructions: 'Answer.' has no {question} in it"),
        ({"data__instructions": "{question}"}, "config.data.instructions='{question}': expected a list of str"),
        ({"workers": -1}, "config.workers=-1 must not be negative"),
        ({"ddpo__loss": "ipoo"}, "config.ddpo.loss='ipoo' is not known; choose one of sigmoid, ipo, hinge. Did you"),
        ({"ddpo__label_smoothing": 0.5}, "config.ddpo.label_smoothing=0.5 is a share in"),
        ({"ddpo__nll": -1.0}, "config.ddpo.nll=-1.0 must not be negative"),
        ({"eval_share": 1.0}, "config.eval_share=1.0 is a share of the rows"),
        (
            {"eval_share": 0.1, "data__eval_path": "x.jsonl"},
            "Evaluate on config.data.eval_path or on config.eval_share",
        ),
        ({"best": "eval/loss"}, "config.best=eval/loss needs rows to evaluate on"),
        ({"best": "loss"}, "config.best='loss' is not known; choose one of eval/loss"),
        ({"best": "eval/rewards/margins", "eval_share": 0.1, "task": "sft"}, "is a metric of preference pairs"),
        ({"lora__rank": 4}, "a random base is stored nowhere"),
        ({"lora__rank": -1}, "config.lora.rank=-1 must not be negative"),
        ({"lora__rank": 4, "lora__alpha": 0.0, "init_from": "run"}, "config.lora.alpha=0 would switch"),
        ({"lora__targets": "("}, "is no regular expression"),
        ({"reference_cache": "x.parquet", "data__reference": "stored"}, "or from the data, not from both"),
    ],
)
def test_settings_refuse_what_they_cannot_mean(changes, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        settings.from_dict(mini(**changes))


def test_a_whole_number_is_a_fine_float():
    assert settings.from_dict(mini(ddpo__gamma=3)).ddpo.gamma == 3.0
