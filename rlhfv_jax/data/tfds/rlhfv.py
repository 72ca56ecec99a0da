"""Preference data as a TFDS data set: any file that `data.sources` reads becomes array_record, and comes back equal."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rlhfv_jax.data.records import SIDES, PreferenceRecord, Segment
from rlhfv_jax.data.tfds import storage


class Rlhfv(tfds.core.GeneratorBasedBuilder):
    """Pairs of answers about an image, the encoded bytes of images kept as they are."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, records: Sequence[PreferenceRecord] = (), **kwargs: Any):
        self._records = records
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text, segments = tfds.features.Text(), {"start": np.int32, "end": np.int32, "type": tfds.features.Text()}
        features: dict[str, Any] = dict.fromkeys(("id", "question", *SIDES, "origin"), text)
        features |= {"image": tfds.features.Image(), "segmented": np.bool_}
        for side in SIDES:
            features[f"{side}_segments"] = tfds.features.Sequence(segments)
            features[f"{side}_logps"] = tfds.features.Tensor(shape=(None,), dtype=np.float32)
        features["history"] = tfds.features.Sequence({"question": text, "answer": text})
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, record in enumerate(self._records):
            fields: dict[str, Any] = {name: getattr(record, name) for name in ("id", "question", *SIDES, "origin")}
            fields |= {"image": io.BytesIO(record.image), "segmented": record.segments is not None}
            for side, segments, logps in zip(SIDES, record.segments or ((), ()), record.logps or ((), ()), strict=True):
                fields[f"{side}_segments"] = [segment.__dict__ for segment in segments]
                fields[f"{side}_logps"] = np.asarray(logps, np.float32)
            fields["history"] = [{"question": question, "answer": answer} for question, answer in record.history]
            yield row, fields


def prepare(records: Sequence[PreferenceRecord], folder: str | Path) -> Path:
    """Writes the records as array_record under `folder` and returns the data set's own folder, rlhfv/1.0.0 in it."""
    return storage.prepare(Rlhfv(records, data_dir=str(folder), file_format="array_record"))


def read(folder: Path) -> list[PreferenceRecord]:
    """The records of a build, in the order in which they were written."""
    return [_record(where, values) for where, values in storage.rows(folder, "rlhfv")]


def _record(where: str, values: dict[str, Any]) -> PreferenceRecord:
    texts = {name: values[name].decode() for name in ("id", "question", *SIDES, "origin")}
    segments = [_segments(values[f"{side}_segments"]) for side in SIDES]
    logps = [tuple(values[f"{side}_logps"].tolist()) for side in SIDES]
    turns = zip(values["history"]["question"], values["history"]["answer"], strict=True)
    return PreferenceRecord(
        image=values["image"],
        segments=(segments[0], segments[1]) if values["segmented"] else None,
        where=where,
        history=tuple((question.decode(), answer.decode()) for question, answer in turns),
        logps=(logps[0], logps[1]) if any(logps) else None,
        **texts,
    )


def _segments(columns: dict[str, Any]) -> tuple[Segment, ...]:
    rows = zip(columns["start"], columns["end"], columns["type"], strict=True)
    return tuple(Segment(int(start), int(end), name.decode()) for start, end, name in rows)
