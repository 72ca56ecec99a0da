"""Label Studio's tasks in and out: its JSON export format, and the labeling configuration that shows them.

An answer is a Text with Labels on its words, its correction a TextArea. Offsets are written as Label Studio counts them
today, in Unicode code points (`selection-tools.js` of its editor converts); older versions wrote UTF-16 units, and are
told apart by the words that a region stores. https://labelstud.io/guide/task_format, /tags/text, /tags/textarea
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from rlhfv_jax.annotation import exchange
from rlhfv_jax.annotation.assignment import Item
from rlhfv_jax.annotation.collected import Finished
from rlhfv_jax.annotation.exchange import IMAGES, PROMPTS, RESPONSES, Notes
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.rows import Options, Row, Work
from rlhfv_jax.annotation.works import Span, type_key
from rlhfv_jax.errors import UserError

TYPE, CORRECTED, REASON, ANSWER = "type", "corrected", "skip_reason", "response"  # controls, and the Text
NOTE = "rlhfv"


def looks_alike(value: Mapping[str, Any]) -> bool:
    """Whether an object is a task."""
    return isinstance(value.get("data"), dict)


def rows(values: Sequence[Any], path: Path, options: Options, project: Project) -> Iterator[Row | UserError]:
    """An item a task, with the annotations that it has; a bad task comes as the error that names it."""
    for number, value in enumerate(values):
        try:
            if not isinstance(value, dict) or not looks_alike(value):
                raise UserError(f"{path}, task at row {number}: expected an object with data.")
            yield _row(value, f"{path}, task {value.get('id', f'at row {number}')}", path, number, options, project)
        except UserError as error:
            yield error


def _row(task: dict[str, Any], where: str, path: Path, number: int, options: Options, project: Project) -> Row:
    data = task["data"]
    ours = data.get(NOTE) if isinstance(data.get(NOTE), dict) else {}
    picture = exchange.first_of(data, IMAGES, f"{where}, data")
    raw = exchange.first_of(data, RESPONSES, f"{where}, data")
    annotations = task.get("annotations", task.get("completions", []))
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise UserError(f"{where}, annotations: expected a list of objects.")

    def works(response: str) -> list[Work]:
        notes = Notes(ours.get("annotations"), response, project, f"{where}, data.{NOTE}")
        return [
            _work(one, f"{where}, annotation {one.get('id', i)}", str(raw), response, project, notes)
            for i, one in enumerate(annotations)
        ]

    source = ours.get("source")
    return Row(
        where=where,
        ext_id=str(ours.get("id", data.get("id", task.get("id", number)))),
        image=lambda: exchange.image(picture, options, path.parent, f"{where}, data.image"),
        prompt=exchange.first_of({**data, "": ""}, (*PROMPTS, ""), where),
        response=raw,
        prefill=data.get("prefill") if data.get("prefill") not in ("", raw) else None,
        model=str(ours.get("model", data.get("model") or "")),
        source=source if isinstance(source, dict) else {},
        name=str(ours.get("image_name", "")),
        works=works,
        key=f"{where}, image",
    )


def _work(one: dict[str, Any], where: str, raw: str, response: str, project: Project, notes: Notes) -> Work:
    results = one.get("result", [])
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise UserError(f"{where}, result: expected a list of objects.")
    person = _person(one.get("completed_by"))
    if one.get("was_cancelled") is True:
        return _timed(one, exchange.skip(_area(results, REASON, where) or "", response, person, "Label Studio", notes))
    spans = [
        _span(result, f"{where}, result {result.get('id', i)}", raw, response, project)
        for i, result in enumerate(results)
        if result.get("type") == "labels"
    ]
    corrected = _area(results, CORRECTED, where) if project.kind == "correction" else None
    return _timed(one, exchange.work(response, corrected, spans, person, project, notes, where))


def _span(result: dict[str, Any], where: str, raw: str, response: str, project: Project) -> Span:
    value = result.get("value")
    labels = value.get("labels") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(labels, list) or len(labels) != 1:
        raise UserError(f"{where}, value: expected start, end and one of labels, found {str(value)[:80]}.")
    stored = value.get("text") if isinstance(value.get("text"), str) else None
    place = exchange.code_points(raw, response, value.get("start"), value.get("end"), stored, "code points", where)
    return (*place, type_key(str(labels[0]), project, where))


def _area(results: Sequence[dict[str, Any]], name: str, where: str) -> str | None:
    """The text of the TextArea of this name; of the only one there is, for the correction."""
    areas = [result for result in results if result.get("type") == "textarea"]
    named = [result for result in areas if result.get("from_name") == name]
    if not named and name == CORRECTED:
        named = [result for result in areas if result.get("from_name") != REASON]
    if not named:
        return None
    texts = named[0].get("value", {}).get("text") if isinstance(named[0].get("value"), dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if len(named) > 1 or not isinstance(texts, list) or len(texts) != 1 or not isinstance(texts[0], str):
        raise UserError(f"{where}, {name}: expected one TextArea with one text, found {len(named)} of them.")
    return texts[0]


def _person(value: Any) -> str:
    """A name: the e-mail address or name of a user, or the user's number."""
    if isinstance(value, dict):
        full = f"{value.get('first_name') or ''} {value.get('last_name') or ''}".strip()
        value = value.get("email") or full or value.get("id")
    elif value is not None:
        value = f"label-studio-{value}"
    return str(value if value is not None else "label-studio")


def _timed(one: dict[str, Any], work: Work) -> Work:
    """With the seconds and times that Label Studio measured, where the work came to be there."""
    if work.updated:
        return work
    lead = one.get("lead_time")
    seconds = float(lead) if isinstance(lead, int | float) and 0 <= lead < 1e6 else 0.0
    times = (_seconds(one.get("created_at")), _seconds(one.get("updated_at")))
    return Work(**(work.__dict__ | {"active_ms": round(1000 * seconds), "opened": times[0], "updated": times[1]}))


def _seconds(text: Any) -> float:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def task(item: Item, picture: str, image_name: str, rows_of: Sequence[Finished], project: Project) -> dict[str, Any]:
    """An item with its finished annotations; `picture` is the image as a data URL or a path.

    Annotators stand in the notes alone: Label Studio refuses a file that names somebody it does not know.
    """
    ours = {"id": item.ext_id, "model": item.model, "source": item.source, "image_name": image_name}
    data = {"image": picture, "prompt": item.prompt, "response": item.response}
    data |= {"prefill": item.prefill or item.response}
    return {
        "id": item.id,
        "data": data | {NOTE: ours | {"annotations": [exchange.note(row) for row in rows_of]}},
        "annotations": [_annotation(row, i, project) for i, row in enumerate(rows_of)],
    }


def _annotation(row: Finished, number: int, project: Project) -> dict[str, Any]:
    results: list[dict[str, Any]] = []

    def add(name: str, kind: str, value: dict[str, Any]) -> None:
        identity = f"{row.item}-{number}-{len(results)}"
        head = {"id": identity, "from_name": name, "to_name": ANSWER, "type": kind, "origin": "manual"}
        results.append(head | {"value": value})

    if row.verdict == "skipped":
        add(REASON, "textarea", {"text": [row.skip_reason]})
    else:
        for start, end, kind in exchange.spans_of(row.segments, row.response):
            add(TYPE, "labels", {"start": start, "end": end, "text": row.response[start:end], "labels": [kind]})
        if project.kind == "correction":
            add(CORRECTED, "textarea", {"text": [row.corrected]})
    return {
        "result": results,
        "was_cancelled": row.verdict == "skipped",
        "ground_truth": False,
        "created_at": _iso(row.opened),
        "updated_at": _iso(row.updated),
        "lead_time": row.active_ms / 1000,
    }


def config(project: Project) -> str:
    """The labeling configuration, XML, that shows our tasks: Settings, Labeling Interface, Code."""
    labels = "\n".join(
        f"    <Label value={quoteattr(one.key)} hotkey={quoteattr(one.shortcut)} background={quoteattr(one.color)}/>"
        for one in project.types
    )
    area = (
        f'  <TextArea name="{CORRECTED}" toName="{ANSWER}" value="$prefill" rows="6" editable="true" '
        'maxSubmissions="1" required="true"/>\n'
        if project.kind == "correction"
        else ""
    )
    return f"""<View>
  <Style>.htx-text {{ white-space: pre-wrap; }}</Style>
  <Image name="image" value="$image" zoom="true"/>
  <Text name="prompt" value="$prompt" selectionEnabled="false"/>
  <Labels name="{TYPE}" toName="{ANSWER}">
{labels}
  </Labels>
  <Text name="{ANSWER}" value="$response" saveTextResult="yes"/>
{area}  <TextArea name="{REASON}" toName="{ANSWER}" placeholder="Why it is skipped, if it is"/>
</View>
"""
