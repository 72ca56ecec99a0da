"""Answers questions about images with a checkpoint, or with any OpenAI-compatible endpoint; one JSON line a question.

    python -m rlhfv_jax.generate --checkpoint=runs/rlhfv --questions=questions.jsonl --answers=answers.jsonl

    python -m rlhfv_jax.generate --checkpoint=checkpoints/rlhfv --preset=muffin_release \\
        --questions=qa90_questions.jsonl --image_dir=val2014 --answers=answers.jsonl

    python -m rlhfv_jax.generate --endpoint=http://127.0.0.1:8000/v1 --model=llava-1.5-7b \\
        --questions=questions.jsonl --answers=answers.jsonl

Answers are written as they come, in the questions' order. The same command started again continues where it stopped and
asks again what failed; the exit status is 1 as long as any question has no answer.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from rlhfv_jax import cli
from rlhfv_jax.data.chat import TEMPLATES, Template, find_template
from rlhfv_jax.decoding.settings import LENGTH_NORMS, PRESETS, GenerationSettings
from rlhfv_jax.endpoint import Endpoint
from rlhfv_jax.errors import UserError
from rlhfv_jax.generation import questions, remote
from rlhfv_jax.generation.answer_file import AnswerFile
from rlhfv_jax.generation.questions import Question
from rlhfv_jax.generation.sink import Sink
from rlhfv_jax.metrics import Reporter

_QUESTIONS = flags.DEFINE_string("questions", "", "The questions' file; docs/generate.md has the layouts.")
_IMAGE_DIR = flags.DEFINE_string("image_dir", "", "Where image names are looked up; default: beside the questions.")
_ANSWERS = flags.DEFINE_string("answers", "", "The JSONL file to write or to continue.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "A run, or a converted checkpoint.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of parameters and computation.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Rows (questions times beams or answers) decoded together.")
_FSDP = flags.DEFINE_integer("fsdp", 1, "Devices that share one copy of the parameters; rows go over the others.")
_ENDPOINT = flags.DEFINE_string("endpoint", "", "Ask this server instead, as http://127.0.0.1:8000/v1.")
_MODEL = flags.DEFINE_string("model", "", "The model to ask the endpoint for; or a checkpoint's name in the answers.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", 8, "Requests under way at once.")
_PER_MINUTE = flags.DEFINE_float("requests_per_minute", 0.0, "The endpoint's rate limit; 0 for none.")
_PRESET = flags.DEFINE_enum("preset", None, sorted(PRESETS), "Settings and template to start from; flags override.")
_STYLE = flags.DEFINE_enum("prompt_style", None, sorted(TEMPLATES), "The template; default: the checkpoint's own.")
_STOP = flags.DEFINE_multi_string("stop", None, "Where an answer ends; may be repeated. Default: the template's end.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print the summary.")
# One flag for each of these fields of GenerationSettings, None where it was not given.
_DECODING: dict[str, flags.FlagHolder] = {
    "max_new_tokens": flags.DEFINE_integer("max_new_tokens", None, "The most tokens of an answer; 256 if not given."),
    "num_beams": flags.DEFINE_integer("num_beams", None, "Beams of a search; 1 if not given."),
    "length_penalty": flags.DEFINE_float("length_penalty", None, "Of a beam search; 1 if not given."),
    "length_norm": flags.DEFINE_enum("length_norm", None, LENGTH_NORMS, "Lengths that beams are divided by."),
    "repetition_penalty": flags.DEFINE_float("repetition_penalty", None, "Above 1: fewer repetitions; 1 if not given."),
    "temperature": flags.DEFINE_float("temperature", None, "0, if not given, is greedy."),
    "top_p": flags.DEFINE_float("top_p", None, "Sample from this much of the probability; 1 if not given."),
    "top_k": flags.DEFINE_integer("top_k", None, "Sample from this many tokens; 0, if not given, for all."),
    "num_answers": flags.DEFINE_integer("num_answers", None, "Answers to each question; 1 if not given."),
    "seed": flags.DEFINE_integer("seed", None, "Of the samples; 0 if not given."),
    "log_probs": flags.DEFINE_bool("log_probs", None, "Store the log-probs of the tokens."),
}
_OPTIONS = (
    *(_QUESTIONS, _IMAGE_DIR, _ANSWERS, _CHECKPOINT, _DTYPE, _BATCH_SIZE, _FSDP, _ENDPOINT, _MODEL, _CONCURRENCY),
    *(_PER_MINUTE, _PRESET, _STYLE, _STOP, *_DECODING.values(), _FORMAT),
)
# GenerationSettings' names that endpoints know by another name, or as they are. The last two are no part of OpenAI's
# own interface, but open servers (vLLM, SGLang) take them.
ENDPOINT_NAMES = {
    **{"max_new_tokens": "max_tokens", "num_answers": "n", "temperature": "temperature", "top_p": "top_p"},
    **{"stop": "stop", "top_k": "top_k", "repetition_penalty": "repetition_penalty"},
}


def main() -> None:
    cli.run(_main, __doc__ or "", _OPTIONS, interrupted="The same command continues where this one stopped.")


def _main() -> None:
    _check()
    asked = questions.read(_QUESTIONS.value, _IMAGE_DIR.value or None)
    if _ENDPOINT.value:
        _with_endpoint(asked)
    else:
        _with_checkpoint(asked)


def _check() -> None:
    if not _QUESTIONS.value or not _ANSWERS.value:
        raise UserError("Give the questions as --questions=FILE and where answers go as --answers=FILE.jsonl.")
    if bool(_CHECKPOINT.value) == bool(_ENDPOINT.value):
        raise UserError("Give either --checkpoint=PATH or --endpoint=URL with --model=NAME.")
    if Path(_ANSWERS.value).resolve() == Path(_QUESTIONS.value).resolve():
        raise UserError("--answers names the file of the questions; choose another one.")
    if _BATCH_SIZE.value < 1:
        raise UserError(f"--batch_size={_BATCH_SIZE.value}: expected at least 1.")


def _given() -> dict[str, Any]:
    """The decoding flags of the command line."""
    given = {name: flag.value for name, flag in _DECODING.items() if flag.value is not None}
    return given | ({"stop": tuple(_STOP.value)} if _STOP.value is not None else {})


def _settings(own: Template) -> tuple[GenerationSettings, Template]:
    """Preset, then flags; the template's end of turn is the stop string where neither names one."""
    given = _given()
    if _PRESET.value:
        preset = PRESETS[_PRESET.value](**given)
        return preset.settings, TEMPLATES[_STYLE.value or preset.template]
    template = TEMPLATES[_STYLE.value] if _STYLE.value else own
    return GenerationSettings(**({"stop": (template.end_of_turn.strip(),)} | given)), template


def _with_checkpoint(asked: questions.Questions) -> None:
    from rlhfv_jax import checkpoint, sharding  # an endpoint's questions need no JAX
    from rlhfv_jax.decoding.engine import Engine
    from rlhfv_jax.generation import local

    folder = checkpoint.find(_CHECKPOINT.value)
    settings, template = _settings(find_template(checkpoint.read_meta(folder).get("template", "muffin")))
    model = _MODEL.value or _CHECKPOINT.value
    facts = {
        "questions": asked.digest,
        "checkpoint": digest(folder),
        "model": model,
        "template": template.name,
        "dtype": _DTYPE.value,
        "settings": dataclasses.asdict(settings),
    }

    def ask(missing: Sequence[Question], sink: Sink) -> None:
        mesh = sharding.make_mesh(data=-1, fsdp=_FSDP.value)
        engine = Engine.load(folder, _DTYPE.value, mesh, _BATCH_SIZE.value)
        local.ask(engine, template, settings, missing, model, sink)

    _answer(asked, facts, ask)


def _with_endpoint(asked: questions.Questions) -> None:
    if choice := next((question for question in asked.rows if question.options), None):
        raise UserError(
            f"Question {choice.id!r} has options, whose likelihood endpoints do not tell; put them in the prompt."
        )
    where = Endpoint(_ENDPOINT.value, _MODEL.value, _CONCURRENCY.value, _PER_MINUTE.value)
    body, seed = _body()
    facts = {"questions": asked.digest, "model": where.model, "settings": body, "seed": seed}
    _answer(asked, facts, lambda missing, sink: remote.ask(where, body, missing, sink, seed))


def _body() -> tuple[dict[str, Any], int | None]:
    """What requests carry: the flags that were given, and the most tokens of an answer."""
    given = _given()
    seed = given.pop("seed", None)
    if _PRESET.value or _STYLE.value:
        raise UserError("An endpoint has its model's own template; leave --preset and --prompt_style out.")
    if other := sorted(given.keys() - ENDPOINT_NAMES.keys()):
        raise UserError(f"Endpoints do not take --{other[0]}; leave it out.")
    if given.get("num_answers", 1) > 1 and given.get("temperature") == 0:
        raise UserError("Several answers at temperature 0 would all be the same; give a temperature.")
    unchecked = {name: value for name, value in given.items() if name != "num_answers"}
    settings = GenerationSettings(**unchecked, seed=seed or 0)  # checks the values
    body = {ENDPOINT_NAMES[name]: list(value) if name == "stop" else value for name, value in given.items()}
    return {"max_tokens": settings.max_new_tokens} | body, seed


def _answer(asked: questions.Questions, facts: dict[str, Any], ask: Callable[[Sequence[Question], Sink], None]) -> None:
    """Calls `ask(questions without an answer, sink)`; raises UserError at the end where some failed."""
    path, total = Path(_ANSWERS.value), len(asked.rows)
    with AnswerFile(path, facts, [str(question.id) for question in asked.rows]) as file:
        missing = set(file.missing)
        rest = [question for question in asked.rows if str(question.id) in missing]
        with Reporter("generate", total, total - len(rest), unit="questions") as reporter:
            sink = Sink(file, reporter, total)
            if rest:
                ask(rest, sink)
    _summarize(path, sink, total, len(rest))
    if failures := sink.failures:
        first = failures[0]
        raise UserError(
            f"{len(failures)} of {total} questions have no answer; the first is {first['question_id']!r}: "
            f"{first['error']} The same command asks them again."
        )


def _summarize(path: Path, sink: Sink, total: int, asked: int) -> None:
    values = {
        "answers": str(path),
        "questions": total,
        "asked": asked,
        "failed": len(sink.failures),
        "tokens": sink.tokens,
        "tokens_per_second": round(sink.tokens_per_second, 1),
    }
    if _FORMAT.value == "json":
        print(json.dumps(values))
    else:
        speed = f", {sink.tokens} tokens, {values['tokens_per_second']} tokens/s" if sink.tokens else ""
        print(f"{path}: {total - len(sink.failures)} of {total} answered, {asked} of them asked now{speed}")
    sys.stdout.flush()


def digest(folder: Path) -> str:
    """SHA-256 of a checkpoint's record and of its parameter files' names and sizes; the weights are not read.

    Orbax names the files of parameters at random, so that no two checkpoints written agree.
    """
    found = hashlib.sha256()
    for part in ("meta", "params"):
        for file in sorted(path for path in (folder / part).rglob("*") if path.is_file()):
            found.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
            if part == "meta":
                found.update(file.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
