"""VQAv2 as a TFDS data set, from its official question, annotation and image files; for training and evaluation."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from rlhfv_jax.data import coco
from rlhfv_jax.data.records import AnsweredRecord, text_field
from rlhfv_jax.data.tfds import storage
from rlhfv_jax.errors import UserError

FIELDS = ("question_id", "image_id", "question", "answer", "question_type", "answer_type")


class VqaV2(tfds.core.GeneratorBasedBuilder):
    """Questions with the answers of ten people and the most frequent one; encoded image bytes kept as they are."""

    VERSION = tfds.core.Version("2.0.0")

    def __init__(self, rows: Any = (), **kwargs: Any):
        self._rows = rows
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features: dict[str, Any] = {name: tfds.features.Text() for name in FIELDS}
        features |= {"image": tfds.features.Image(), "answers": tfds.features.Sequence(tfds.features.Text())}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, fields in enumerate(self._rows):
            yield row, fields | {"image": io.BytesIO(fields["image"])}


def prepare(questions: str | Path, annotations: str | Path, images: str | Path, folder: str | Path) -> Path:
    """Writes one split as array_record under `folder` and returns the data set's own folder, vqa_v2/2.0.0 in it.

    Args:
      questions: v2_OpenEnded_mscoco_train2014_questions.json or another split's.
      annotations: v2_mscoco_train2014_annotations.json, of the same split.
      images: the folder of COCO_train2014_000000000001.jpg and so on; files without the prefix are taken too.

    Raises UserError naming file and row.
    """
    found = list(_rows(Path(questions), Path(annotations), Path(images)))
    if not found:
        raise UserError(f"{questions} has no questions.")
    return storage.prepare(VqaV2(found, data_dir=str(folder), file_format="array_record"))


def read(folder: Path) -> list[AnsweredRecord]:
    """The questions of a build in their files' order, each with its most frequent answer as the turn's."""
    return [
        AnsweredRecord(
            id=values["question_id"].decode(),
            image=values["image"],
            turns=((values["question"].decode(), values["answer"].decode()),),
            origin=values["answer_type"].decode(),
            where=where,
            answers=tuple(answer.decode() for answer in values["answers"]),
        )
        for where, values in storage.rows(folder, "vqa_v2")
    ]


def _rows(questions: Path, annotations: Path, images: Path) -> Iterator[dict[str, Any]]:
    asked, header = _load(questions, "questions")
    answered = {}
    for row, value in enumerate(_load(annotations, "annotations")[0]):
        answered[_number(value, "question_id", f"{annotations}, annotation {row}")] = (row, value)
    subtype = str(header.get("data_subtype", ""))
    for row, value in enumerate(asked):
        where = f"{questions}, question {row}"
        identity, image = _number(value, "question_id", where), _number(value, "image_id", where)
        if identity not in answered:
            raise UserError(f"{where}, question_id: {identity} has no annotation in {annotations}.")
        place, annotation = answered[identity]
        noted = f"{annotations}, annotation {place}"
        fields = {
            "question_id": str(identity),
            "image_id": str(image),
            "question": text_field(value, "question", where),
        }
        fields |= {"answer": text_field(annotation, "multiple_choice_answer", noted)}
        fields |= {name: str(annotation.get(name, "")) for name in ("question_type", "answer_type")}
        yield fields | {"answers": _answers(annotation, noted), "image": _image(images, subtype, image, where)}


def _answers(annotation: Mapping[str, Any], where: str) -> list[str]:
    answers = annotation.get("answers")
    if not isinstance(answers, list) or not all(
        isinstance(a, dict) and isinstance(a.get("answer"), str) for a in answers
    ):
        raise UserError(f"{where}, answers: expected a list of objects with an answer, found {str(answers)[:80]}.")
    return [answer["answer"] for answer in answers]


def _load(path: Path, name: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {path} as JSON ({getattr(error, 'strerror', None) or error}).") from error
    if not isinstance(values, dict) or not isinstance(values.get(name), list):
        raise UserError(f"{path}: expected a JSON object with a list {name!r}, as VQAv2's official file.")
    for row, value in enumerate(values[name]):
        if not isinstance(value, dict):
            raise UserError(f"{path}, {name} {row}: expected a JSON object, found {type(value).__name__}.")
    return values[name], values


def _number(value: Mapping[str, Any], name: str, where: str) -> int:
    if type(value.get(name)) is not int:
        raise UserError(f"{where}, {name}: expected a whole number, found {value.get(name)!r}.")
    return value[name]


def _image(folder: Path, subtype: str, number: int, where: str) -> bytes:
    names = coco.file_names(number, subtype)
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{where}, image_id: there is no {' or '.join(names)} in {folder}.")
    return path.read_bytes()
