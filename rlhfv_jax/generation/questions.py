"""Questions with images, from our own files and from the layouts in which benchmarks publish theirs.

    ours              JSONL: question_id, prompt, image (a path, base64 or a data URL; absent: no image), image_id?,
                      options? (an object from letters to texts: multiple choice)
    LLaVA-Bench       JSONL: question_id, text, image (a file name)
    Object HalBench   JSONL: question, image (base64), image_id; question_id is the row where absent
    MMHal-Bench       a JSON list: question, image_src (its last part is the file's name), image_id
    VQAv2             a JSON object whose `questions` have question_id, image_id, question; COCO's file names

File names are relative to the image folder, by default the question file's own. Images are opened when they are asked
about, so that one that cannot be read costs no other question.
"""

import base64
import binascii
import hashlib
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax import textfiles
from rlhfv_jax.data import coco
from rlhfv_jax.errors import UserError

TEXTS = ("prompt", "text", "question")  # the question's field: ours, LLaVA-Bench's, the others'
# How base64 of JPEG, PNG, GIF and WebP begins; names of files are shorter than any such image.
BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
SHORTEST_BASE64 = 48


@dataclass(frozen=True)
class Question:
    """One question. `id` and `image_id` are as the file has them; `image` is a file, or base64 text, or None.

    `options` are a multiple choice's by their letters or names: the likeliest is the answer, and nothing is generated.
    """

    id: str | int
    text: str
    image: Path | str | None = None
    image_id: str | int | None = None
    options: Mapping[str, str] | None = None

    def image_bytes(self) -> bytes | None:
        """The encoded image, not decoded yet. Raises UserError where there is no such file or it is no base64."""
        if self.image is None:
            return None
        if isinstance(self.image, Path):
            try:
                return self.image.read_bytes()
            except OSError as error:
                raise UserError(f"Cannot read the image {self.image} ({error.strerror}).") from error
        try:
            data = base64.b64decode(self.image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(f"The image is not base64 ({error}).") from error
        if not data:
            raise UserError("The image is empty.")
        return data


@dataclass(frozen=True)
class Questions:
    """The questions in the file's order, and the file's SHA-256."""

    rows: tuple[Question, ...]
    digest: str


def read(path: str | Path, image_dir: str | Path | None = None) -> Questions:
    """Reads any of the layouts above; which one it is shows in the file.

    Raises UserError, naming file and row, where a row is damaged, lacks a field or repeats a question_id.
    """
    path = Path(path)
    data = textfiles.read_bytes(path)
    text = textfiles.decoded(data, path, "utf-8-sig")
    folder = Path(image_dir) if image_dir else path.parent
    if not folder.is_dir():
        raise UserError(f"There is no folder of images {folder}.")
    whole = _whole(text)
    if isinstance(whole, dict) and "questions" in whole:
        rows = _vqa_rows(whole, path, folder)
    elif isinstance(whole, list):
        rows = [_row(value, i, f"{path}, row {i}", folder) for i, value in enumerate(whole)]
    else:
        # Not splitlines(): a question may hold U+2028, which JSON leaves as it is.
        lines = [(f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [_row(_json(line, where), i, where, folder) for i, (where, line) in enumerate(lines)]
    if not rows:
        raise UserError(f"{path} has no questions.")
    return Questions(tuple(_unique(rows)), hashlib.sha256(data).hexdigest())


def _whole(text: str) -> Any:
    """The file as one JSON value; None where it is lines of JSON, or damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _json(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}).") from error


def _unique(rows: list[tuple[str, Question]]) -> Iterator[Question]:
    seen: dict[str, str] = {}
    for where, question in rows:
        if (first := seen.setdefault(str(question.id), where)) != where:
            raise UserError(f"{where}: question_id {question.id!r} stands in {first} already; expected one of each.")
        yield question


def _row(values: Any, index: int, where: str, folder: Path) -> tuple[str, Question]:
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(values).__name__}.")
    name = next((name for name in TEXTS if name in values), None)
    if name is None:
        raise UserError(f"{where}: expected the question as one of {', '.join(TEXTS)}; found {', '.join(values)}.")
    # The benchmarks that ask with `question` number their rows.
    identity = _identifier(values, "question_id", where) if name != "question" or "question_id" in values else index
    image_id = _identifier(values, "image_id", where) if values.get("image_id") is not None else None
    text, image = _text(values, name, where), _image(values, where, folder)
    return where, Question(identity, text, image, image_id, _options(values, where))


def _options(values: Mapping[str, Any], where: str) -> dict[str, str] | None:
    options = values.get("options")
    if options is None:
        return None
    if not isinstance(options, dict) or len(options) < 2 or not all(isinstance(o, str) and o for o in options.values()):
        raise UserError(f"{where}, options: expected an object of at least two names with their texts.")
    return options


def _image(values: Mapping[str, Any], where: str, folder: Path) -> Path | str | None:
    name = next((name for name in ("image", "image_src") if values.get(name) is not None), None)
    if name is None:
        return None
    image = _text(values, name, where)
    if name == "image_src":
        file = urllib.parse.unquote(urllib.parse.urlsplit(image).path).rsplit("/", 1)[-1]
        if not file:
            raise UserError(f"{where}, image_src: {image!r} names no file.")
        return folder / file
    if image.startswith("data:"):
        header, comma, content = image.partition(",")
        if not comma or not header.endswith(";base64"):
            raise UserError(f"{where}, image: expected a data URL in base64, found {image[:40]!r}.")
        return "".join(content.split())
    if len(image) >= SHORTEST_BASE64 and image.startswith(BASE64):
        return "".join(image.split())
    return folder / image


def _vqa_rows(whole: Mapping[str, Any], path: Path, folder: Path) -> list[tuple[str, Question]]:
    if not isinstance(whole["questions"], list):
        raise UserError(f"{path}, questions: expected a list, as VQAv2's official file has it.")
    subtype = str(whole.get("data_subtype", ""))
    rows = []
    for row, values in enumerate(whole["questions"]):
        where = f"{path}, question {row}"
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(values).__name__}.")
        image = values.get("image_id")
        if type(image) is not int:
            raise UserError(f"{where}, image_id: expected a whole number, found {image!r}.")
        names = coco.file_names(image, subtype)
        file = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
        identity = _identifier(values, "question_id", where)
        rows.append((where, Question(identity, _text(values, "question", where), file, image)))
    return rows


def _identifier(values: Mapping[str, Any], name: str, where: str) -> str | int:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UserError(f"{where}, {name}: expected a number or text, found {value!r}.")
    return value


def _text(values: Mapping[str, Any], name: str, where: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}, {name}: expected text, found {value!r}.")
    return value
