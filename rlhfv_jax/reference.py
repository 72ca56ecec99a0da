"""Computes the reference's log-probs of preference pairs, for `train` to reuse and for anyone to read.

    python -m rlhfv_jax.reference --config=ddpo.py --out=reference.parquet \\
        --config.init_from=CHECKPOINT --config.data.path=RLHF-V-Dataset.parquet

    python -m rlhfv_jax.train --config=ddpo.py ... --config.reference_cache=reference.parquet

One row a pair: id, sha256 of the image, and for chosen and rejected `_tokens` (T, unpadded), `_labels`, `_weights` and
`_logps` (T-1). A file that is already there is checked, and its log-probs are kept: only weights are written anew.
"""

import json
import time
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console
from rich.table import Table

from rlhfv_jax import cli, experiment, prepare, refcache, settings, steps, trees
from rlhfv_jax.data import buckets
from rlhfv_jax.data.encoding import EncodedPair
from rlhfv_jax.errors import UserError

_CONFIG = cli.define_config()
_OUT = flags.DEFINE_string("out", "", "The parquet file to write.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print the report.")


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", (_CONFIG, _OUT, _FORMAT))


def _main() -> None:
    if not _OUT.value:
        raise UserError("No destination: give the file to write as --out=FILE.parquet.")
    report = write(cli.get_config(_CONFIG), Path(_OUT.value))
    if _FORMAT.value == "json":
        print(json.dumps(report))
        return
    table = Table(show_header=False, box=None)
    for name, value in report.items():
        table.add_row(name, f"{value:,}" if type(value) is int else str(value))
    Console().print(table)


def write(config: dict[str, Any], out: Path) -> dict[str, Any]:
    """Writes the file for the pairs of `config.data.path`, held-out ones included; returns what was done.

    Raises UserError where the data brings its own log-probs.
    """
    started = time.perf_counter()
    neutral = {"task": "ddpo", "data": config["data"] | {"eval_path": ""}, "eval_share": 0.0, "best": ""}
    s = settings.from_dict(config | neutral)
    if s.data.reference == "stored":
        raise UserError("config.data.reference=stored takes log-probs from the data; there is nothing to compute.")
    job = experiment.prepare_job(s)
    encoded = typing.cast(Sequence[EncodedPair], job.rows.encoded)
    with jax.set_mesh(job.mesh):
        params = prepare.init_params(s, job.model, job.mesh)
        facts = prepare.reference_facts(s, job.model, job.tokenizer, trees.digest(params))
        length = buckets.rounded(job.rows.stats.longest_row)
        reused = out.exists()
        if reused:
            logps = refcache.load(out, facts, encoded, length)
        else:
            forward = steps.reference(prepare.reference_model(s, job.model))
            logps = prepare.compute_reference(job.rows, s, job.tokenizer, job.mesh, forward, params)
        refcache.save(out, facts, encoded, logps)
    scored = [pair.weights[side] > 0 for pair in encoded for side in range(2)]
    return {
        "pairs": len(encoded),
        "scored_tokens": int(sum(mask.sum() for mask in scored)),
        "mean_logp": float(logps.sum() / sum(mask.sum() for mask in scored)),
        "parameters_digest": facts["params"],
        "reused": reused,
        "seconds": round(time.perf_counter() - started, 2),
        "out": str(out),
    }


if __name__ == "__main__":
    main()
