"""Scores a file of answers on a benchmark as its official script does, with intervals and counts.

    python -m rlhfv_jax.evaluate --benchmark=pope --answers=pope.jsonl --references=benchmarks --out=scores/pope

    python -m rlhfv_jax.evaluate --benchmark=mmhal --answers=mmhal.jsonl --references=benchmarks --out=scores/mmhal \\
        --judge_url=https://host/v1 --judge_model=NAME

    python -m rlhfv_jax.evaluate --benchmark=all --answers=answers --references=benchmarks --out=scores

Writes scores.json and items.jsonl. The official files are yours to download into --references; what is missing is
named, with its source. --benchmark=all scores answers/NAME.jsonl of every benchmark that is there.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from rlhfv_jax import cli
from rlhfv_jax.endpoint import Endpoint
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import benchmarks, judge, vqa
from rlhfv_jax.evals.answers import read_answers
from rlhfv_jax.evals.scores import Metric, Scores, summary, write_scores

ALL = "all"
NAMES = (*benchmarks.BENCHMARKS, ALL)

_BENCHMARK = flags.DEFINE_string("benchmark", "", f"One of {', '.join(NAMES)}.")
_ANSWERS = flags.DEFINE_string("answers", "", "The answers, one JSON object a line; with all, a folder of NAME.jsonl.")
_REFERENCES = flags.DEFINE_string("references", "", "The folder with the official files of the benchmarks.")
_OUT = flags.DEFINE_string("out", "", "The folder to write to; with all, one folder a benchmark in it.")
_COMPARE = flags.DEFINE_string("compare", "", "Other answers to the same questions: adds the paired difference.")
_PARTIAL = flags.DEFINE_bool("partial", False, "Score a file that answers only a part of the questions.")
_SUBMISSION = flags.DEFINE_string("submission", "", "vqav2: write the test server's file instead of scoring.")
_ANNOTATOR = flags.DEFINE_string("annotator", "", "mhumaneval: whose labels, where several people labeled an answer.")
_SCENES = flags.DEFINE_string("scenes", "", "over_generalization: JSON with other scenes, phrases or objects.")
_RANKING = flags.DEFINE_enum("ranking", "instances", ["instances", "images"], "What a scene's objects are ranked by.")
_LABELED = flags.DEFINE_string("model", "", "mhumaneval: whose answers, where the labels are of several models'.")
_JUDGE = flags.DEFINE_enum("judge", "endpoint", ["endpoint", "none"], "none: write the prompts, or read the replies.")
_URL = flags.DEFINE_string("judge_url", "", "The judge's OpenAI-compatible endpoint; its key is in OPENAI_API_KEY.")
_MODEL = flags.DEFINE_string("judge_model", "", "The model that judges.")
_CONCURRENCY = flags.DEFINE_integer("concurrency", 8, "Requests to the judge under way at once.")
_PER_MINUTE = flags.DEFINE_float("requests_per_minute", 0.0, "Limit of requests to the judge; 0 for none.")
_ASKS = flags.DEFINE_integer("judge_asks", 3, "Times that an item is asked at most until its verdict can be read.")
_OFFICIAL = flags.DEFINE_bool("official_parse", False, "Ask once; count unreadable verdicts as officially.")
_UNJUDGED = flags.DEFINE_float("max_unjudged", 0.05, "Share of items without a verdict above which there is no score.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print.")

OPTIONS = (
    *(_BENCHMARK, _ANSWERS, _REFERENCES, _OUT, _COMPARE, _PARTIAL, _SUBMISSION, _ANNOTATOR, _LABELED, _SCENES),
    *(_RANKING, _JUDGE, _URL, _MODEL),
    *(_CONCURRENCY, _PER_MINUTE, _ASKS, _OFFICIAL, _UNJUDGED, _FORMAT),
)


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(
        _main,
        __doc__ or "",
        OPTIONS,
        interrupted="A judge's replies so far are kept; the same command asks for the rest.",
    )


def _main() -> None:
    name = _BENCHMARK.value
    if name not in NAMES:
        raise UserError(f"--benchmark={name} is none of {', '.join(NAMES)}.")
    if not _ANSWERS.value:
        raise UserError("Name the answers to score with --answers=FILE.jsonl.")
    if _SUBMISSION.value:
        _submit(name)
        return
    if not _OUT.value:
        raise UserError("Name the folder for scores.json with --out=DIR.")
    if name == ALL:
        _all(Path(_ANSWERS.value), Path(_OUT.value))
        return
    scores = _score(name, Path(_ANSWERS.value), _COMPARE.value, Path(_OUT.value))
    if scores is not None:
        print(json.dumps(summary(scores), indent=2) if _FORMAT.value == "json" else _table(scores))


def _submit(name: str) -> None:
    if name != vqa.NAME:
        raise UserError(f"--submission writes VQAv2's file for the test server; say --benchmark={vqa.NAME}.")
    count, empty = vqa.write_submission(read_answers(_ANSWERS.value).answers, _REFERENCES.value, _SUBMISSION.value)
    values = {"submission": _SUBMISSION.value, "questions": count, "without_answer": empty}
    text = f"{_SUBMISSION.value}: {count} questions, {empty} of them without an answer."
    print(json.dumps(values) if _FORMAT.value == "json" else text)


def _all(answers: Path, out: Path) -> None:
    """Scores what is there; one benchmark that cannot be scored does not keep the others from it, but fails the run."""
    if not answers.is_dir():
        raise UserError(f"--benchmark=all reads a folder of answers, NAME.jsonl each; {answers} is none.")
    reads = {name: benchmark.reads or name for name, benchmark in benchmarks.BENCHMARKS.items()}
    names = [name for name in reads if (answers / f"{reads[name]}.jsonl").is_file()]
    if not names:
        raise UserError(
            f"{answers} holds no answers; expected one of {', '.join(dict.fromkeys(reads.values()))}.jsonl in it."
        )
    printed: dict[str, Any] = {}
    failures = []
    for name in names:
        other = str(Path(_COMPARE.value) / f"{reads[name]}.jsonl") if _COMPARE.value else ""
        try:
            scores = _score(name, answers / f"{reads[name]}.jsonl", other, out / name, out / reads[name])
        except UserError as error:
            failures.append(name)
            print(f"error: {name}: {error}", file=sys.stderr)
            continue
        if scores is not None:
            printed[name] = summary(scores)
            if _FORMAT.value == "text":
                print(f"{_table(scores)}\n")
    if _FORMAT.value == "json":
        print(json.dumps(printed, indent=2))
    absent = [name for name in benchmarks.BENCHMARKS if name not in names]
    if absent:
        print(f"no answers to {', '.join(absent)}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} of {len(names)} benchmarks were not scored: {', '.join(failures)}.")


def _score(name: str, answers: Path, other: str, out: Path, judged: Path | None = None) -> Scores | None:
    """Scores and writes; None where prompts were written for a judge elsewhere. `judged`: where replies are."""
    judged = judged or out
    ours, theirs = (
        benchmarks.Way(
            Path(_REFERENCES.value or "."),
            partial=_PARTIAL.value,
            judge=_judge(),
            replies=judged / "judge_replies.jsonl",
            prompts=judged / f"judge_prompts{end}.jsonl",
            annotator=_ANNOTATOR.value,
            scenes=Path(_SCENES.value) if _SCENES.value else None,
            ranking=_RANKING.value,
            model=_LABELED.value,
        )
        for end in ("", "_compare")
    )
    try:
        scores = benchmarks.score(name, answers, ours)
        if other:
            scores = benchmarks.compared(name, scores, benchmarks.score(name, Path(other), theirs))
    except judge.Waiting as waiting:
        print(f"{name}: {waiting}", file=sys.stderr)
        return None
    write_scores(scores, out)
    return scores


def _judge() -> judge.Judge | None:
    if _JUDGE.value == "endpoint" and not _URL.value:
        return None
    if not _MODEL.value:
        raise UserError("Name the model that judges with --judge_model.")
    if _ASKS.value < 1:
        raise UserError(f"--judge_asks={_ASKS.value}: expected 1 or more.")
    endpoint = None
    if _JUDGE.value == "endpoint":
        endpoint = Endpoint(_URL.value, _MODEL.value, _CONCURRENCY.value, _PER_MINUTE.value)
    return judge.Judge(_MODEL.value, endpoint, _ASKS.value, _OFFICIAL.value, _UNJUDGED.value)


def _table(scores: Scores) -> str:
    """The metrics with intervals and counts, then what was left out, the judge and the paired difference."""
    rows = [("metric", "value", "95 % interval", "n")]
    rows += [_row(name, metric) for name, metric in scores.metrics.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [f"{scores.benchmark}{f', judged by {scores.judge}' if scores.judge else ''}"]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    for name, value in scores.settings.items():
        if isinstance(value, str | int):
            lines.append(f"{name}: {value}")
    for name, found in scores.settings.get("compared", {}).get("differences", {}).items():
        lines.append(
            f"{name} less that of {scores.settings['compared']['answers_file']}: {found['difference']:+.2f} "
            f"[{found['low']:+.2f}, {found['high']:+.2f}], p = {found['p']:.3g}, n = {found['n']}"
        )
    return "\n".join(lines)


def _row(name: str, metric: Metric) -> tuple[str, str, str, str]:
    known = metric.low is not None and metric.high is not None
    interval = f"{metric.low:.3f} to {metric.high:.3f}" if known else "-"
    return name, "-" if metric.value is None else f"{metric.value:.3f}", interval, str(metric.n)


if __name__ == "__main__":
    main()
