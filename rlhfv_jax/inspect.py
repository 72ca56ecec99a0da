"""Shows one row of a data set as the loss sees it, or sums up the whole set, before anything is trained.

    python -m rlhfv_jax.inspect --config=ddpo.py --config.data.path=pairs.parquet \\
        --config.tokenizer=tokenizer.model --index=3

    python -m rlhfv_jax.inspect --config=ddpo.py --config.data.path=pairs.parquet \\
        --config.tokenizer=tokenizer.model --summary

Gray tokens are the prompt, plain ones are targets with weight 1, colored ones were corrected and weigh gamma. In a pipe
corrected tokens stand in [brackets].
"""

import dataclasses
import json
import os
from pathlib import Path

from absl import flags

from rlhfv_jax import checkpoint, cli, prepare, settings
from rlhfv_jax.errors import UserError
from rlhfv_jax.inspection import page, summary, terminal, view
from rlhfv_jax.models.vlm import VlmConfig

_CONFIG = cli.define_config()
_INDEX = flags.DEFINE_integer("index", 0, "Which row of the selected ones, from 0.")
_SUMMARY = flags.DEFINE_bool("summary", False, "Sum up the whole set instead; reads every image.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print.")
_HTML = flags.DEFINE_string("html", "", "Also write the row as a page with its picture to this file.")

UNLIMITED = 2**31


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", (_CONFIG, _INDEX, _SUMMARY, _FORMAT, _HTML))


def _main() -> None:
    s = settings.from_dict(cli.get_config(_CONFIG))
    if s.tokenizer and not s.init_from:
        s = dataclasses.replace(s, init_from=prepare.RANDOM)  # rows need no weights
    prepare.check_inputs(s)
    tokenizer = prepare.load_tokenizer(s)
    if s.init_from != prepare.RANDOM:
        stored = settings.model_of(checkpoint.read_meta(s.init_from))
        if isinstance(stored, VlmConfig):
            s = dataclasses.replace(s, model=stored)  # a row has its image tokens
    if _SUMMARY.value:
        if _HTML.value:
            raise UserError("--html shows one row; leave --summary out.")
        whole = dataclasses.replace(s, data=dataclasses.replace(s.data, max_length=UNLIMITED))
        rows = prepare.load_rows(s.data.path, whole, tokenizer, selected=True)
        values = summary.summary(rows.encoded, s.data.max_length, rows.bounds(s.data.buckets))
        if _FORMAT.value == "json":
            print(json.dumps(values, indent=2))
        else:
            terminal.print_table(summary.lines(values, s.data.max_length))
        return
    rows = prepare.load_rows(s.data.path, s, tokenizer, selected=True)
    if not 0 <= _INDEX.value < len(rows.encoded):
        raise UserError(f"--index={_INDEX.value}: {s.data.path} has rows 0 to {len(rows.encoded) - 1}.")
    row = rows.encoded[_INDEX.value]
    shown = view.row_view(row, _INDEX.value, tokenizer)
    if _HTML.value:
        path = Path(_HTML.value)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(page.page(shown, row.record.image), encoding="utf-8")
        os.replace(temporary, path)
    if _FORMAT.value == "json":
        print(json.dumps(shown, ensure_ascii=False))
    else:
        terminal.print_view(shown)


if __name__ == "__main__":
    main()
