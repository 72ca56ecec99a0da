"""Argilla 2's records in and out, as `Dataset.records.to_json` and `from_json` have them, and the dataset's settings.

A record's answer is a field with a SpanQuestion on it, the correction a TextQuestion. Offsets are written as Argilla's
server checks them, in Unicode code points (Python's `len`); its browser counts UTF-16 units, so where an answer has
emoji the ends that lie between two words tell which. https://docs.argilla.io/latest/how_to_guides/record
"""

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation import exchange
from rlhfv_jax.annotation.assignment import Item
from rlhfv_jax.annotation.collected import Finished
from rlhfv_jax.annotation.exchange import IMAGES, PROMPTS, RESPONSES, Notes
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.rows import Options, Row, Work
from rlhfv_jax.annotation.works import Span, type_key
from rlhfv_jax.errors import UserError

SEGMENTS, CORRECTED, REASON = "segments", "corrected", "skip_reason"  # questions
NOTE = "rlhfv"  # of the metadata, JSON as text
PEOPLE = uuid.UUID("6f3d2a0e-8d2b-4f0e-9c56-3f0b4f0c1a77")  # names to Argilla's user ids


def looks_alike(value: Mapping[str, Any]) -> bool:
    """Whether an object is a record."""
    return isinstance(value.get("fields"), dict)


def rows(values: Sequence[Any], path: Path, options: Options, project: Project) -> Iterator[Row | UserError]:
    """An item a record, with everybody's responses; a bad record comes as the error that names it."""
    for number, value in enumerate(values):
        try:
            if not isinstance(value, dict) or not looks_alike(value):
                raise UserError(f"{path}, record at row {number}: expected an object with fields.")
            yield _row(value, f"{path}, record {value.get('id') or f'at row {number}'}", path, number, options, project)
        except UserError as error:
            yield error


def _row(record: dict[str, Any], where: str, path: Path, number: int, options: Options, project: Project) -> Row:
    fields, metadata = record["fields"], record.get("metadata") or {}
    ours = _note(metadata, where)
    picture = exchange.first_of(fields, IMAGES, f"{where}, fields")
    raw = exchange.first_of(fields, RESPONSES, f"{where}, fields")
    by_user = _people(record.get("responses") or {}, where)
    source = ours.get("source")
    suggestion = (record.get("suggestions") or {}).get(CORRECTED)
    prefill = suggestion.get("value") if isinstance(suggestion, dict) else None

    def works(response: str) -> list[Work]:
        notes = Notes(ours.get("annotations"), response, project, f"{where}, metadata.{NOTE}")
        every = [
            _work(answers, user, f"{where}, responses of {user}", str(raw), response, project, notes)
            for user, answers in by_user.items()
        ]
        return [work for work in every if work is not None]

    return Row(
        where=where,
        ext_id=str(ours.get("id", record.get("id") or number)),
        image=lambda: exchange.image(picture, options, path.parent, f"{where}, fields.image"),
        prompt=exchange.first_of({**fields, "": ""}, (*PROMPTS, ""), where),
        response=raw,
        prefill=prefill if prefill not in ("", raw) else None,
        model=str(ours.get("model", metadata.get("model") or "")),
        source=source if isinstance(source, dict) else {},
        name=str(ours.get("image_name", "")),
        works=works,
        key=f"{where}, image",
    )


def _note(metadata: Any, where: str) -> dict[str, Any]:
    text = metadata.get(NOTE) if isinstance(metadata, dict) else None
    try:
        value = json.loads(text) if isinstance(text, str) else {}
    except ValueError as error:
        raise UserError(f"{where}, metadata.{NOTE}: not valid JSON ({error}).") from error
    return value if isinstance(value, dict) else {}


def _people(responses: Any, where: str) -> dict[str, dict[str, dict[str, Any]]]:
    """user id -> question -> {"value", "status"?}; the file has them by question."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    if not isinstance(responses, dict):
        raise UserError(f"{where}, responses: expected an object of lists by question.")
    for question, answers in responses.items():
        if not isinstance(answers, list) or not all(isinstance(one, dict) for one in answers):
            raise UserError(f"{where}, responses.{question}: expected a list of objects with value and user_id.")
        for one in answers:
            found.setdefault(str(one.get("user_id")), {})[question] = one
    return found


def _work(
    answers: dict[str, dict[str, Any]], user: str, where: str, raw: str, response: str, project: Project, notes: Notes
) -> Work | None:
    """A user's answers to a record's questions; None for a draft.

    The files that Argilla writes do not have a response's status. Without it a reason to skip means that the record
    was discarded, and so does a correction that is missing, since its question is required.
    """
    states = {one.get("status") for one in answers.values()}
    if "draft" in states:
        return None
    person = f"argilla-{user}"
    reason = str(answers.get(REASON, {}).get("value") or "")
    missing = project.kind == "correction" and answers.get(CORRECTED, {}).get("value") is None
    if "discarded" in states or ("submitted" not in states and (reason.strip() or missing)):
        return exchange.skip(reason, response, person, "Argilla", notes)
    spans = answers.get(SEGMENTS, {}).get("value")
    found = [
        _span(one, f"{where}, {SEGMENTS} {i}", raw, response, project) for i, one in enumerate(_list(spans, where))
    ]
    corrected = answers.get(CORRECTED, {}).get("value") if project.kind == "correction" else None
    if corrected is not None and not isinstance(corrected, str):
        raise UserError(f"{where}, {CORRECTED}: expected text, found {type(corrected).__name__}.")
    return exchange.work(response, corrected, found, person, project, notes, where)


def _list(value: Any, where: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise UserError(f"{where}, {SEGMENTS}: expected a list of spans, found {type(value).__name__}.")
    return value or []


def _span(value: Any, where: str, raw: str, response: str, project: Project) -> Span:
    if not isinstance(value, dict) or not isinstance(value.get("label"), str):
        raise UserError(f"{where}: expected start, end and label, found {str(value)[:80]}.")
    place = exchange.code_points(raw, response, value.get("start"), value.get("end"), None, "code points", where)
    return (*place, type_key(value["label"], project, where))


def record(item: Item, picture: str, image_name: str, rows_of: Sequence[Finished], project: Project) -> dict[str, Any]:
    """An item with its finished annotations, as a record; `picture` is the image as a data URL."""
    ours: dict[str, Any] = {"id": item.ext_id, "model": item.model, "source": item.source, "image_name": image_name}
    ours |= {"annotations": [exchange.note(row) for row in rows_of]}
    responses: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of:
        for question, value in _answers(row, project).items():
            status = "discarded" if row.verdict == "skipped" else "submitted"
            user = str(uuid.uuid5(PEOPLE, row.pseudonym))
            responses.setdefault(question, []).append({"value": value, "user_id": user, "status": status})
    start = {"value": item.prefill or item.response, "score": None, "agent": item.model or None}
    return {
        "id": item.ext_id,
        "fields": {"image": picture, "prompt": item.prompt, "response": item.response},
        "metadata": {"model": item.model, NOTE: json.dumps(ours, ensure_ascii=False, sort_keys=True)},
        "suggestions": {CORRECTED: start} if project.kind == "correction" else {},
        "responses": responses,
        "vectors": {},
        "status": "completed" if len(rows_of) >= item.n_annotators else "pending",
        "_server_id": None,
    }


def _answers(row: Finished, project: Project) -> dict[str, Any]:
    if row.verdict == "skipped":
        return {REASON: row.skip_reason}
    places = exchange.spans_of(row.segments, row.response)
    shown: dict[str, Any] = {SEGMENTS: [{"label": kind, "start": start, "end": end} for start, end, kind in places]}
    return shown | ({CORRECTED: row.corrected} if project.kind == "correction" else {})


def settings(project: Project) -> dict[str, Any]:
    """The dataset's settings, as `Settings.from_json` reads them."""
    texts = [("prompt", True, {"type": "text"}), ("response", True, {"type": "text"})]
    fields = [("image", True, {"type": "image"}), *texts]
    options = [{"value": one.key, "text": one.label, "description": None} for one in project.types]
    spans = {"type": "span", "allow_overlapping": True, "field": "response", "options": options}
    questions = [(SEGMENTS, False, spans | {"visible_options": max(3, len(options))})]
    if project.kind == "correction":
        questions.append((CORRECTED, True, {"type": "text", "use_markdown": False}))
    questions.append((REASON, False, {"type": "text", "use_markdown": False}))
    return {
        "guidelines": project.guideline,
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": 1},
        "fields": [_property(*field) for field in fields],
        "questions": [_property(*question) for question in questions],
        "metadata": [],
        "vectors": [],
        "mapping": None,
    }


def _property(name: str, required: bool, kind: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": name.replace("_", " ").capitalize(), "required": required, "settings": kind}
