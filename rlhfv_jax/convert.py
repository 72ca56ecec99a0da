"""Converts weights from PyTorch to an Orbax checkpoint, and back.

    python -m rlhfv_jax.convert --direction=to_orbax --src=RLHF-V --dst=checkpoints/rlhfv --verify
    python -m rlhfv_jax.convert --direction=to_torch --src=runs/rlhfv --dst=RLHF-V-ours --dtype=bfloat16
    python -m rlhfv_jax.convert --direction=to_orbax --src=vicuna-13b --tower=beit3_large_patch16_224.pth \\
        --image_size=448 --queries=64 --dst=checkpoints/muffin-fresh
    python -m rlhfv_jax.convert --direction=to_orbax --src=keys.txt --dry_run

--src is a directory or file of PyTorch weights (.bin or .safetensors, in one piece or in shards), or for to_torch a
run's directory or checkpoint; a dry run also takes an index, or a .txt of `name (shape)` lines. One layer is in memory
at a time.
"""

import json

from absl import flags
from rich.console import Console
from rich.table import Table

from rlhfv_jax import cli
from rlhfv_jax.conversion import job
from rlhfv_jax.errors import UserError

_DIRECTION = flags.DEFINE_enum("direction", "to_orbax", ["to_orbax", "to_torch"], "Which way.")
_SRC = flags.DEFINE_string("src", "", "What to convert.")
_DST = flags.DEFINE_string("dst", "", "Directory to write; must not exist yet.")
_DTYPE = flags.DEFINE_string(
    "dtype", "", "float32, bfloat16 or float16; default: float32 to Orbax, as stored to PyTorch."
)
_VERIFY = flags.DEFINE_bool("verify", False, "Read both sides again and compare them bit for bit.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check every name and shape; read no weights, write nothing.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", "", "A sentencepiece .model or a directory; default: the one beside --src."
)
_FAST_IDS = flags.DEFINE_bool("fast_ids", False, "Token ids of the released evaluation's fast tokenizer.")
_TOWER = flags.DEFINE_string(
    "tower",
    "",
    "A bare BEiT-3 checkpoint: build a fresh Muffin from it and the LLaMA in --src. Or the CLIP of a LLaVA.",
)
_QUERIES = flags.DEFINE_integer("queries", 64, "With --tower: the number of fresh queries.")
_SEED = flags.DEFINE_integer("seed", 0, "With --tower: seed of fresh queries and projector.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 0, "Interpolate the tower's positions to this image size in pixels.")
_LAYOUT = flags.DEFINE_string(
    "layout", "", "To PyTorch: the form to write, as llava_hf; default: the original one of the model's family."
)
_MODEL = flags.DEFINE_string("model", "", f"Demand these sizes: {', '.join(job.NAMED)}.")
_HEADS = flags.DEFINE_integer("heads", 0, "Attention heads of the language model, where nothing else tells.")
_TOWER_HEADS = flags.DEFINE_integer("tower_heads", 0, "Attention heads of the tower, unless it is of a published size.")
_IGNORE = flags.DEFINE_list("ignore", [], "Regular expressions of further tensors to leave out.")
_SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest size of a written safetensors file, in GB.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print the report.")
_OPTIONS = (
    *(_DIRECTION, _SRC, _DST, _DTYPE, _VERIFY, _DRY_RUN, _TOKENIZER, _FAST_IDS, _TOWER, _QUERIES, _SEED, _IMAGE_SIZE),
    *(_LAYOUT, _MODEL, _HEADS, _TOWER_HEADS, _IGNORE, _SHARD_GB, _FORMAT),
)
_UNREAD = {  # by --direction
    "to_orbax": (_LAYOUT, _SHARD_GB),
    "to_torch": (
        *(_TOKENIZER, _FAST_IDS, _TOWER, _QUERIES, _SEED, _IMAGE_SIZE, _MODEL),
        *(_HEADS, _TOWER_HEADS, _IGNORE),
    ),
}


def main() -> None:
    """Runs the program on `sys.argv` and exits."""
    cli.run(_main, __doc__ or "", _OPTIONS)


def _main() -> None:
    if not _SRC.value:
        raise UserError("Nothing to convert: give PyTorch weights, or a checkpoint, as --src=PATH.")
    for option in _UNREAD[_DIRECTION.value]:
        if option.present:
            raise UserError(f"--{option.name} means nothing with --direction={_DIRECTION.value}; leave it out.")
    for option in (_QUERIES, _SEED):
        if option.present and not _TOWER.value:
            raise UserError(f"--{option.name} needs --tower=PATH: it is about the queries that a fresh Muffin gets.")
    options = job.Options(
        src=_SRC.value,
        dst=_DST.value,
        dtype=_DTYPE.value,
        tokenizer=_TOKENIZER.value,
        fast_ids=_FAST_IDS.value,
        tower=_TOWER.value,
        queries=_QUERIES.value,
        seed=_SEED.value,
        image_size=_IMAGE_SIZE.value,
        model=_MODEL.value,
        layout=_LAYOUT.value,
        heads=_HEADS.value,
        tower_heads=_TOWER_HEADS.value,
        ignore=tuple(_IGNORE.value),
        shard_gb=_SHARD_GB.value,
        verify=_VERIFY.value,
        dry_run=_DRY_RUN.value,
    )
    report = (job.run_to_orbax if _DIRECTION.value == "to_orbax" else job.run_to_torch)(options)
    print(json.dumps(report)) if _FORMAT.value == "json" else _print(report)


def _print(report: dict) -> None:
    table = Table(show_header=False, box=None)
    for name, value in report.items():
        if name == "ignored":
            value = f"{len(value)}" + (f" ({', '.join(value[:3])}{', ...' if len(value) > 3 else ''})" if value else "")
        elif name == "sizes":
            value = ", ".join(f"{size} {length}" for size, length in value.items())
        table.add_row(name, f"{value:,}" if type(value) is int else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
