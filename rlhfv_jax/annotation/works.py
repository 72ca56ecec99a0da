"""Finished work from files: texts and labeled words to segments, and segments into the store."""

import json
import sqlite3
import uuid
from collections.abc import Sequence

from rlhfv_jax.annotation import checks, diff
from rlhfv_jax.annotation.checks import Save, Typed
from rlhfv_jax.annotation.diff import Change, Cuts
from rlhfv_jax.annotation.faults import Fault
from rlhfv_jax.annotation.people import ensured
from rlhfv_jax.annotation.project import Project
from rlhfv_jax.annotation.rows import Decision, Work
from rlhfv_jax.annotation.store import now
from rlhfv_jax.errors import UserError

Span = tuple[int, int, str]  # code points [start, end) of the answer, and a type


def type_key(name: str, project: Project, where: str) -> str:
    """The project's type of this name, by its key or its label in any case; raises UserError."""
    for one in project.types:
        if name.strip().casefold() in (one.key.casefold(), one.label.casefold()):
            return one.key
    raise UserError(f"{where}: {name!r} is no type of this project; known are {', '.join(project.type_keys)}.")


def from_spans(
    response: str, corrected: str | None, spans: Sequence[Span], project: Project, where: str
) -> tuple[str, str, tuple[Typed, ...], Cuts]:
    """(verdict, corrected text, segments, cuts) of an answer with labeled words, as another tool holds them.

    In a correction the words that differ are the segments, and each takes the type of the label on it; an insertion
    that of the label on a word beside it. Raises UserError where a change has no label or a label no change, where two
    types lie in one change that does not divide evenly, and for whatever a submission in the browser is refused for.
    """
    if project.kind != "correction":
        given = tuple((Change(a, b, a, b), kind) for a, b, kind in spans)
        save = _save("clean" if not spans else "corrected", response, given, Cuts())
        find = checks.labels
    else:
        corrected = diff.normalized(response if corrected is None else corrected)
        cuts, given = _typed(response, corrected, spans, where)
        save = _save("clean" if corrected == response and not spans else "corrected", corrected, given, cuts)
        find = checks.corrections
    try:
        segments = find(save, response, project)
        checks.submission(save, segments, response, project, ())
    except Fault as fault:
        raise UserError(f"{where}: {fault.detail}") from fault
    return save.verdict, save.corrected, tuple(segments), save.cuts


def _save(verdict: str, corrected: str, segments: tuple[tuple[Change, str], ...], cuts: Cuts) -> Save:
    return Save(0, "", "submitted", verdict, corrected, segments, cuts, 0, confirm=True)


def _typed(
    response: str, corrected: str, spans: Sequence[Span], where: str
) -> tuple[Cuts, tuple[tuple[Change, str], ...]]:
    """Where changes divide between two labels, and every change with its type."""
    splits: list[diff.Cut] = []
    for change in diff.segments(response, corrected):
        splits += _divided(response, corrected, change, [span for span in spans if _on(span, change)], where)
    cuts = Cuts(splits=tuple(splits))
    changes = diff.segments(response, corrected, cuts)
    found, used = [], set()
    for change in changes:
        over = [span for span in spans if _on(span, change)] or _beside(response, change, spans)
        if not over:
            texts = f"{response[change.src0 : change.src1]!r} → {corrected[change.dst0 : change.dst1]!r}"
            raise UserError(f"{where}: the change {texts} has no label.")
        best = max(over, key=lambda span: min(span[1], change.src1) - max(span[0], change.src0))
        found.append((change, best[2]))
        used |= set(over)
    if unused := [span for span in spans if span not in used]:
        start, end, kind = unused[0]
        raise UserError(f"{where}: {response[start:end]!r} is labeled {kind}, and the correction leaves it as it is.")
    return cuts, tuple(found)


def _on(span: Span, change: Change) -> bool:
    return span[0] < change.src1 and change.src0 < span[1]


def _beside(response: str, change: Change, spans: Sequence[Span]) -> list[Span]:
    """Of an insertion the labels on the word before it, else on the word after it."""
    if change.src0 != change.src1:
        return []
    before, after = neighbors(response, change.src0)
    for word in (before, after):
        if word and (found := [span for span in spans if span[0] < word[1] and word[0] < span[1]]):
            return found
    return []


def neighbors(response: str, place: int) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """The words before and after a place between two of them."""
    words = diff.tokens(response)
    before = [word for word in words if word[1] <= place]
    after = [word for word in words if word[0] >= place]
    return (before[-1] if before else None, after[0] if after else None)


def _divided(response: str, corrected: str, change: Change, spans: Sequence[Span], where: str) -> list[diff.Cut]:
    """Where to divide a change under labels of several types: word for word, if both sides have as many."""
    if len({kind for _, _, kind in spans}) < 2:
        return []
    source = [word for word in diff.tokens(response) if change.src0 <= word[0] and word[1] <= change.src1]
    target = [word for word in diff.tokens(corrected) if change.dst0 <= word[0] and word[1] <= change.dst1]
    if len(source) != len(target):
        texts = f"{response[change.src0 : change.src1]!r} → {corrected[change.dst0 : change.dst1]!r}"
        kinds = ", ".join(sorted({kind for _, _, kind in spans}))
        raise UserError(f"{where}: one change, {texts}, is labeled {kinds}, and where it divides is not clear.")
    cuts: list[diff.Cut] = []
    kinds_of = [next((kind for a, b, kind in spans if a < word[1] and word[0] < b), "") for word in source]
    last = kinds_of[0]
    for i in range(1, len(source)):
        if kinds_of[i] and last and kinds_of[i] != last:
            cuts.append((source[i - 1][1], target[i - 1][1]))
        last = kinds_of[i] or last
    return cuts


def exact(
    response: str,
    corrected: str,
    segments: Sequence[tuple[Change, str]],
    project: Project,
    where: str,
    whole: bool = True,
) -> tuple[Typed, ...]:
    """The very segments that a file of ours names; raises UserError where they are not what changed between the texts.

    `whole` False allows changes outside the segments, as in an item that was put aside. Labels of an MHumanEval
    project have the same offsets on both sides, and both texts are the answer.
    """
    labels = project.kind != "correction"
    found: list[Typed] = []
    at = (0, 0)
    for change, kind in [*segments, (Change(len(response), len(response), len(corrected), len(corrected)), "")]:
        ordered = at[0] <= change.src0 <= change.src1 <= len(response)
        if not (ordered and at[1] <= change.dst0 <= change.dst1 <= len(corrected)):
            raise UserError(f"{where}: the segment {tuple(change)} leaves the text or lies out of order.")
        kept, new = response[at[0] : change.src0], corrected[at[1] : change.dst0]
        if whole and [kept[a:b] for a, b in diff.tokens(kept)] != [new[a:b] for a, b in diff.tokens(new)]:
            raise UserError(f"{where}: {kept!r} became {new!r}, and no segment says so.")
        at = (change.src1, change.dst1)
        if len(found) < len(segments):
            kind = type_key(kind, project, where) if kind else ""
            source, target = response[change.src0 : change.src1], corrected[change.dst0 : change.dst1]
            found.append(Typed(change, source, target, "span" if labels else change.op, kind))
    return tuple(found)


def cuts_of(response: str, corrected: str, changes: Sequence[Change]) -> Cuts:
    """What an annotator must have divided and joined for the words that differ to become these segments."""
    plain = {(change.src1, change.dst1) for change in diff.segments(response, corrected)}
    ends = [(change.src1, change.dst1) for change in changes]
    joined = [
        end
        for end in sorted(plain)
        if any(one.src0 <= end[0] <= one.src1 and one.dst0 <= end[1] <= one.dst1 for one in changes) and end not in ends
    ]
    return Cuts(splits=tuple(end for end in ends if end not in plain), merges=tuple(joined))


def decide(c: sqlite3.Connection, item: int, decision: Decision, people: dict[tuple[str, int], int]) -> None:
    """Stores an adjudication of an item that has none."""
    who = (decision.reviewer, decision.number)
    if who not in people:
        people[who] = ensured(c, *who)
    result = json.dumps(decision.result, ensure_ascii=False)
    c.execute(
        "INSERT OR IGNORE INTO adjudication(item, reviewer, result_json, reason, at) VALUES (?, ?, ?, ?, ?)",
        (item, people[who], result, decision.reason, decision.at),
    )


def is_known(c: sqlite3.Connection, item: int, work: Work) -> bool:
    """Whether the work came from this very item: its pseudonym is of somebody who did the item, and just so."""
    number = work.person.removeprefix("annotator-")
    if number == work.person or not number.isdecimal():
        return False
    row = c.execute(
        "SELECT rev, verdict, skip_reason, corrected FROM annotation WHERE item = ? AND annotator = ?",
        (item, int(number)),
    ).fetchone()
    if row is None or (row["rev"], row["verdict"], row["skip_reason"]) != (work.rev, work.verdict, work.skip_reason):
        return False
    return work.verdict == "skipped" or row["corrected"] == work.corrected


def insert(c: sqlite3.Connection, item: int, work: Work, people: dict[tuple[str, int], int]) -> bool:
    """Stores a person's work on an item with an event for the history; False where the person has some already.

    `people` remembers who is who between calls.
    """
    who = (work.person, work.number)
    if who not in people:
        people[who] = ensured(c, *who)
    known = c.execute("SELECT 1 FROM annotation WHERE item = ? AND annotator = ?", (item, people[who])).fetchone()
    if known:
        return False
    at = now()
    cuts = {"splits": work.cuts.splits, "merges": work.cuts.merges}
    identity = c.execute(
        "INSERT INTO annotation(item, annotator, rev, state, corrected, cuts_json, verdict, skip_reason, active_ms, "
        "opened, updated) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(item, people[who], work.rev, work.state, work.corrected, json.dumps(cuts), work.verdict),
            *(work.skip_reason, work.active_ms, work.opened or at, work.updated or at),
        ),
    ).lastrowid
    c.executemany(
        "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(identity, i, *s.change, s.src_text, s.dst_text, s.op, s.type) for i, s in enumerate(work.segments)],
    )
    payload = {
        "state": work.state,
        "verdict": work.verdict,
        "skip_reason": work.skip_reason,
        "corrected": work.corrected,
        "cuts": cuts,
        "segments": [segment.to_dict() for segment in work.segments],
        "active_ms": work.active_ms,
    }
    c.execute(
        "INSERT INTO event(annotation, rev, kind, payload_json, at, op_id) VALUES (?, ?, ?, ?, ?, ?)",
        (identity, work.rev, "imported", json.dumps(payload, ensure_ascii=False), at, uuid.uuid4().hex),
    )
    return True
