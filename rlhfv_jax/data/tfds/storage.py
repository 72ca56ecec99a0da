"""What the builders share: preparing a folder of array_record files, and reading one row by row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from rlhfv_jax.errors import UserError


def prepare(builder: Any) -> Path:
    """Writes the builder's data set, whole or not at all, and returns its folder; refuses to reuse an older one."""
    folder = Path(builder.data_dir)
    if folder.exists():
        raise UserError(f"{folder} already holds a data set; remove it or choose another folder.")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return folder


def rows(folder: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of every row of the data set that a builder called `name` wrote, images still encoded.

    `folder` is the build's own, or one above it, as `tfds.load` takes; with several splits the training split is read.

    Raises UserError where there is no such build, or several.
    """
    found = (
        [folder] if (folder / "dataset_info.json").is_file() else sorted(folder.glob(f"**/{name}/*/dataset_info.json"))
    )
    if not found:
        raise UserError(f"{folder} holds no TFDS data set {name} (no dataset_info.json).")
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} builds of {name}; name one of them, as {found[-1].parent}.")
    build = found[0] if found[0].is_dir() else found[0].parent
    try:
        builder = tfds.builder_from_directory(build)
        if builder.name != name:
            raise UserError(f"{build} holds the TFDS data set {builder.name}, expected {name}.")
        split = "train" if "train" in builder.info.splits else next(iter(builder.info.splits))
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        for row, values in enumerate(source):
            yield f"{build}, row {row}", values
    except UserError:
        raise
    except Exception as error:  # a damaged build makes the reader raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{build} is not a readable TFDS data set ({reason}).") from error
