"""Stands in for people on the miniature, to try the loop of answers, corrections and training: docs/loop.md.

    python -m rlhfv_jax.oracle --questions=asked/questions.jsonl --count=400
    python -m rlhfv_jax.oracle --server=http://127.0.0.1:8300 --token=TOKEN
    python -m rlhfv_jax.oracle --score=before.jsonl,after.jsonl

--questions writes drawn scenes as questions for `generate`, the images beside them. --server corrects every item of a
running `annotate` through its HTTP interface. --score holds answers of `generate` against their scenes.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from rlhfv_jax import cli
from rlhfv_jax.data.records import json_object, text_lines
from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import corpus, evaluation, rates, scoring, typist

_QUESTIONS = flags.DEFINE_string("questions", "", "The JSONL file to write questions to.")
_SPLIT = flags.DEFINE_enum("split", "prompts", list(corpus.SPLITS), "With --questions: which scenes; test is held out.")
_COUNT = flags.DEFINE_integer("count", 400, "With --questions: how many scenes.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "With --questions: which world.", 0)
_SERVER = flags.DEFINE_string("server", "", "The address of a running annotate.")
_TOKEN = flags.DEFINE_string("token", "", "With --server: the token that --add_person printed.")
_SCORE = flags.DEFINE_list("score", [], "Files of answers to the same questions, the one to compare with first.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print.")
_OPTIONS = (_QUESTIONS, _SPLIT, _COUNT, _SEED, _SERVER, _TOKEN, _SCORE, _FORMAT)
SHOWN = ("response_rate", "mention_rate", "all_rate", "coverage", "mentions", "repeats")


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", _OPTIONS)


def _main() -> None:
    tasks = [flag for flag in (_QUESTIONS, _SERVER, _SCORE) if flag.value]
    if len(tasks) != 1:
        raise UserError("Give one of --questions=FILE, --server=ADDRESS with --token, and --score=FILE,FILE.")
    if _QUESTIONS.value:
        _write_questions(Path(_QUESTIONS.value))
    elif _SERVER.value:
        done = typist.Typist(_SERVER.value, _TOKEN.value).work()
        print(json.dumps(done) if _FORMAT.value == "json" else ", ".join(f"{n} {name}" for name, n in done.items()))
    else:
        _score([Path(name) for name in _SCORE.value])


def _write_questions(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = typist.questions(_SEED.value, _SPLIT.value, _COUNT.value)
    for asked, picture in found:
        (path.parent / asked["image"]).write_bytes(picture)
    lines = "".join(json.dumps(asked) + "\n" for asked, _ in found)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(lines)
    temporary.replace(path)
    print(f"{path}: {len(found)} questions")


def _score(paths: list[Path]) -> None:
    scored = {str(path): _scores(path) for path in paths}
    first = next(iter(scored.values()))
    for name, scores in scored.items():
        if list(scores) != list(first):
            raise UserError(f"{name} does not answer the questions of {paths[0]}, in their order.")
    values: dict[str, Any] = {
        name: evaluation.intervals(rates.summarize(list(scores.values()))) for name, scores in scored.items()
    }
    differences = {
        name: evaluation.intervals(rates.paired_difference(list(first.values()), list(scores.values())))
        for name, scores in list(scored.items())[1:]
    }
    if _FORMAT.value == "json":
        print(json.dumps({"answers": len(first), "rates": values, "differences": differences}))
        return
    table = Table("", *SHOWN, box=None, padding=(0, 2, 0, 0))
    for name, row in values.items():
        table.add_row(name, *(_cell(row[key]) for key in SHOWN))
    for name, row in differences.items():
        table.add_row(f"{name} − {paths[0]}", *(_cell(row[key], "+") for key in SHOWN))
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def _cell(entry: dict[str, float], sign: str = "") -> str:
    return f"{entry['value']:{sign}.2f} ({entry['low']:{sign}.2f} to {entry['high']:{sign}.2f})"


def _scores(path: Path) -> dict[str, scoring.AnswerScore]:
    """question id -> its answer against its scene."""
    found = {}
    for row, line in text_lines(path):
        value = json_object(line, f"{path}, row {row}")
        identity, text = value.get("question_id"), value.get("text")
        if not isinstance(identity, str) or not isinstance(text, str):
            raise UserError(f"{path}, row {row}: expected question_id and text, as `generate` writes them.")
        found[identity] = scoring.score(text, typist.scene_of(identity)[0])
    if not found:
        raise UserError(f"{path} has no answers.")
    return found


if __name__ == "__main__":
    main()
