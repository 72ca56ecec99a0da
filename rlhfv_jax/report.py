"""Builds one self-contained HTML page from scores: the paper's tables with your rows beside the published ones.

    python -m rlhfv_jax.report --runs=Base=scores/base --runs=DDPO=scores/ddpo --out=report.html

    python -m rlhfv_jax.report --runs=DDPO=scores/ddpo --out=report.html \\
        --scaling=RLHF-V:200=scores/200 --scaling=RLHF-V:1400=scores/ddpo

DIR is what `evaluate` wrote to --out: a folder with scores.json, or (--benchmark=all) a folder of such folders. The
page needs no network and runs no script.
"""

import json
from pathlib import Path

from absl import flags

from rlhfv_jax import cli
from rlhfv_jax.errors import UserError
from rlhfv_jax.reporting import document
from rlhfv_jax.reporting.evaluation_page import page
from rlhfv_jax.reporting.runs import read_points, read_runs

_RUNS = flags.DEFINE_multi_string("runs", [], "NAME=DIR, a model's scores; once for each model.")
_SCALING = flags.DEFINE_multi_string("scaling", [], "SERIES:SAMPLES=DIR, a point of Fig. 2; once for each point.")
_OUT = flags.DEFINE_string("out", "", "The HTML file to write.")
_TITLE = flags.DEFINE_string("title", "Evaluation report", "The page's heading.")
_EXAMPLES = flags.DEFINE_integer("examples", 6, "Worst answers to show of each run and benchmark; 0 for none.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print what the page holds.")


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", (_RUNS, _SCALING, _OUT, _TITLE, _EXAMPLES, _FORMAT))


def _main() -> None:
    if not _RUNS.value and not _SCALING.value:
        raise UserError("Name the scores to report as --runs=NAME=DIR, once for each model.")
    if not _OUT.value:
        raise UserError("Name the page to write as --out=FILE.html.")
    if _EXAMPLES.value < 0:
        raise UserError(f"--examples={_EXAMPLES.value}: expected 0 or more.")
    out, runs, points = Path(_OUT.value), read_runs(_RUNS.value), read_points(_SCALING.value)
    html = page(runs, points, _TITLE.value, _EXAMPLES.value)
    try:
        document.write(out, html)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error
    held = {run.name: list(run.scores) for run in runs}
    if _FORMAT.value == "json":
        print(json.dumps({"out": str(out), "runs": held, "points": len(points)}))
    else:
        print(f"{out}: " + "; ".join(f"{name} ({', '.join(scores)})" for name, scores in held.items()))


if __name__ == "__main__":
    main()
