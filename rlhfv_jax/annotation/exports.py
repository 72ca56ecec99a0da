"""Finished work to files: training data in the published schema, MHumanEval's spans and scores, a table.

The same store gives the same bytes. Files are written under a temporary name and renamed once they are on the disk.
"""

import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhfv_jax.annotation import outgoing, statistics
from rlhfv_jax.annotation.collected import Finished, Outcome, outcomes
from rlhfv_jax.annotation.pictures import Pictures
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.store import Store, now
from rlhfv_jax.data.records import PreferenceRecord, Segment, segments_path
from rlhfv_jax.data.writers import write_jsonl, write_parquet
from rlhfv_jax.errors import UserError

FORMATS = {
    "correction": ("parquet", "jsonl", "csv", "tfds", *outgoing.KINDS),
    "mhumaneval": ("spans", "csv", *outgoing.KINDS),
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a cell that starts with one of these


def export(store: Store, identity: int, project: Project, kind: str, path: Path, gold: bool = False) -> dict[str, Any]:
    """Writes an export and its record in the store: {"files": [{"name", "folder", "bytes", "sha256"}], "counts"}.

    `path` is the folder for spans and tfds, else the file. Of an item that several people do, what they agree on or
    what was adjudicated counts; items that still need either are left out and counted. Gold items are left out too,
    unless `gold`. Other tools' files and the archive hold everybody's work. Raises UserError where there is nothing to
    write, the format does not fit the project, or a file cannot be written.
    """
    if kind not in FORMATS[project.kind]:
        raise UserError(f"A {project.kind} project exports {', '.join(FORMATS[project.kind])}, not {kind!r}.")
    with _snapshot(store) as c:
        if kind in outgoing.KINDS:
            files, counts = outgoing.write(c, identity, project, Pictures(store.folder), kind, path)
            return _recorded(store, identity, kind, files, counts)
        every = outcomes(c, identity)
        if not every:
            raise UserError("Nothing is finished yet, so there is nothing to export.")
        taken = [outcome for outcome in every if gold or outcome.state != "gold"]
        if kind in ("parquet", "jsonl"):
            files, counts = _pairs(store, taken, _numbers(every), path, kind)
        elif kind == "tfds":
            files, counts = outgoing.tfds_build(
                path, lambda file: _pairs(store, taken, _numbers(every), file, "parquet")[1]
            )
        elif kind == "csv":
            lines = _lines(taken)
            rows = sum(max(1, len(row.segments)) for row, _, _ in lines)
            files, counts = [write(path, _table(lines))], {"rows": rows}
        else:
            files, counts = _spans(taken, project, path)
        counts |= _left_out(every, taken)
    return _recorded(store, identity, kind, files, counts)


def _recorded(store: Store, identity: int, kind: str, files: Sequence[Path], counts: dict[str, int]) -> dict[str, Any]:
    """The export's files with their SHA-256, kept in the store too."""
    values = {"files": [_fingerprint(file) for file in files], "counts": counts}
    record = (identity, now(), kind, json.dumps(values["files"]), json.dumps(counts))
    store.write(
        lambda c: (
            c.execute("INSERT INTO export(project, at, format, files_json, counts_json) VALUES (?, ?, ?, ?, ?)", record)
            and None
        )
    )
    return values


class _snapshot:
    """A connection whose reads all see the store as of one moment."""

    def __init__(self, store: Store):
        self.connection = store.connect()

    def __enter__(self) -> sqlite3.Connection:
        self.connection.execute("BEGIN")
        return self.connection

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def _left_out(every: Sequence[Outcome], taken: Sequence[Outcome]) -> dict[str, int]:
    """How many items do not count yet, by why, and how many gold ones are not written."""
    left = {state: sum(one.state == state for one in taken) for state in ("open", "needs_adjudication")}
    return {state: n for state, n in (left | {"gold_left_out": len(every) - len(taken)}).items() if n}


def _lines(taken: Sequence[Outcome]) -> list[tuple[Finished, str, bool]]:
    """(annotation, its item's state, whether it is the one that counts)."""
    return [(row, one.state, row is one.counts) for one in taken for row in one.every()]


def _pairs(
    store: Store, taken: Sequence[Outcome], numbers: dict[int, int], path: Path, kind: str
) -> tuple[list[Path], dict[str, int]]:
    """Training pairs with their segments, and every annotation in annotations.jsonl beside them."""
    pictures = Pictures(store.folder)
    once = [one.counts for one in taken if one.counts is not None]
    kept = sorted((row for row in once if row.verdict == "corrected"), key=lambda row: numbers[row.item])
    records = [_record(row, str(numbers[row.item]), pictures) for row in kept]
    if not records:
        left = ", ".join(f"{n} {state.replace('_', ' ')}" for state, n in _left_out(taken, taken).items())
        raise UserError(
            "No answer that counts was corrected, so there is no pair to train on"
            + (f" (items left out: {left})." if left else ".")
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "parquet":
        write_parquet(
            records,
            path,
            splits={str(numbers[row.item]): _split(row) for row in kept},
            image_names={str(numbers[row.item]): row.image_name for row in kept if row.image_name},
        )
    else:
        write_jsonl(records, path)
    lines = [_annotation(row, numbers[row.item], state, counts) for row, state, counts in _lines(taken)]
    sidecar = write(path.with_name(f"{path.stem}.annotations.jsonl"), json_lines(lines))
    counts = {
        "pairs": len(records),
        "clean": sum(row.verdict == "clean" for row in once),
        "skipped": sum(row.verdict == "skipped" for row in once),
        "segments": sum(len(row.segments) for row in kept),
    }
    return [path, segments_path(path), sidecar], counts


def _numbers(every: Sequence[Outcome]) -> dict[int, int]:
    """The schema's whole-number id of every item: the imported one where all are such, else the store's own."""
    rows = [one.rows[0] for one in every]
    whole = all(row.ext_id.isascii() and row.ext_id.isdecimal() and str(int(row.ext_id)) == row.ext_id for row in rows)
    return {row.item: int(row.ext_id) if whole and int(row.ext_id) < 2**63 else row.item for row in rows}


def _record(row: Finished, identity: str, pictures: Pictures) -> PreferenceRecord:
    """Corrected text, answer, and the typed stretches of each side; an insertion has none in the answer."""
    sides = tuple(
        tuple(Segment(start, end, s.type) for s in row.segments for start, end in [side(s.change)] if start < end)
        for side in (lambda at: (at.dst0, at.dst1), lambda at: (at.src0, at.src1))
    )
    return PreferenceRecord(
        id=identity,
        image=pictures.original(row.image_sha256),
        question=row.prompt,
        chosen=row.corrected,
        rejected=row.response,
        segments=(sides[0], sides[1]),
        origin=str(row.source.get("origin", "")),
    )


def _split(row: Finished) -> dict[str, str]:
    return {"model": row.model, "type": str(row.source.get("type", ""))}


def _annotation(row: Finished, number: int, state: str, counts: bool) -> dict[str, Any]:
    """`origin` says whose this is (submission, adjudication, gold), `counts` whether the item's pair is made of it."""
    return {
        "id": str(number),
        "ext_id": row.ext_id,
        "annotator": row.pseudonym,
        "origin": row.origin,
        "item_state": state,
        "counts": counts,
        "reason": row.reason,
        "revision": row.rev,
        "verdict": row.verdict,
        "skip_reason": row.skip_reason,
        "active_ms": row.active_ms,
        "model": row.model,
        "source": row.source,
        "image_sha256": row.image_sha256,
        "prompt": row.prompt,
        "response": row.response,
        "corrected": row.corrected,
        "segments": [segment.to_dict() for segment in row.segments],
    }


def _spans(taken: Sequence[Outcome], project: Project, folder: Path) -> tuple[list[Path], dict[str, int]]:
    """spans.jsonl, a line a labeled response that counts, and summary.json, MHumanEval's columns of each model.

    annotations.jsonl has every annotation, those of the other annotators too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [one.counts for one in taken if one.counts is not None]
    lines = [
        {
            "id": row.ext_id,
            "question_id": row.source.get("question_id", row.ext_id),
            "benchmark": row.source.get("benchmark", ""),
            "model": row.model,
            "annotator": row.pseudonym,
            "revision": row.rev,
            "verdict": row.verdict,
            "skip_reason": row.skip_reason,
            "prompt": row.prompt,
            "response": row.response,
            "spans": [
                {"start": s.change.src0, "end": s.change.src1, "text": s.src_text, "type": s.type} for s in row.segments
            ],
        }
        for row in rows
    ]
    models = statistics.mhumaneval(rows, project)
    every = [_annotation(row, row.item, state, counts) for row, state, counts in _lines(taken)]
    summary = {"types": list(project.type_keys), "models": models}
    counts = {"responses": len(rows), "models": len(models), "spans": sum(len(row.segments) for row in rows)}
    return [
        write(folder / "spans.jsonl", json_lines(lines)),
        write(folder / "annotations.jsonl", json_lines(every)),
        write(folder / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n"),
    ], counts


def _table(rows: Sequence[tuple[Finished, str, bool]]) -> str:
    """A line a segment, and one for every annotation without any; no cell is a formula."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(
        [
            *(
                "id",
                "annotator",
                "verdict",
                "skip_reason",
                "active_seconds",
                "model",
                "prompt",
                "response",
                "corrected",
                "origin",
                "item_state",
                "counts",
            ),
            *("segment", "type", "op", "src_start", "src_end", "dst_start", "dst_end", "src_text", "dst_text"),
        ]
    )
    for row, state, counts in rows:
        first = [row.ext_id, row.pseudonym, row.verdict, row.skip_reason, f"{row.active_ms / 1000:.1f}", row.model]
        first += [row.prompt, row.response, row.corrected, row.origin, state, "yes" if counts else "no"]
        for i, s in enumerate(row.segments):
            table.writerow(map(cell, [*first, str(i + 1), s.type, s.op, *map(str, s.change), s.src_text, s.dst_text]))
        if not row.segments:
            table.writerow([cell(value) for value in first] + [""] * 9)
    return out.getvalue()


def cell(value: str) -> str:
    """The value as text that no spreadsheet computes."""
    return f"'{value}" if value.startswith(FORMULA) else value


def json_lines(lines: Sequence[dict[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)


def write(path: Path, text: str) -> Path:
    """Writes a text, whole or not at all; raises UserError where it cannot be written."""
    return outgoing.whole(path, lambda file: file.write_text(text, encoding="utf-8", newline="\n"))


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "folder": path.parent.name, "bytes": path.stat().st_size, "sha256": sha256}
