"""Annotated projects for tests of the formats: texts of many scripts, several annotators, skips, clean answers."""

import io
import json
import random
import uuid
from pathlib import Path

from PIL import Image

from rlhfv_jax.annotation import assignment, checks, collected, diff, imports, people, project, saving
from rlhfv_jax.annotation.people import Person
from rlhfv_jax.annotation.store import Store

WORDS = [
    "A",
    "red",
    "bus",
    "two",
    "3.5",
    "it's",
    "日本",
    "カ",
    "é",
    "👩‍👩‍👧",
    "🇫🇷",
    "👍🏽",
    "❤️",
    "नमस्ते",
    "ไทย",
    ",",
    ".",
    "𝔘",
]
GAPS = [" ", " ", " ", "  ", "\n", " 👀 "]


def image(seed: int) -> bytes:
    """A small PNG, another for every seed."""
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (seed % 256, seed // 256 % 256, 7)).save(out, "PNG")
    return out.getvalue()


def sentence(rng: random.Random, words: int) -> str:
    return "".join(rng.choice(WORDS) + rng.choice(GAPS) for _ in range(words)).strip()


def changed(rng: random.Random, text: str) -> str:
    """The text with some words replaced, deleted, inserted, neighbors too."""
    out, at = "", 0
    for start, end in diff.tokens(text):
        out += text[at:start]
        kind = rng.choice("kkkkrrdi")
        out += {"k": text[start:end], "r": rng.choice(WORDS), "d": "", "i": f"{text[start:end]} {rng.choice(WORDS)}"}[
            kind
        ]
        at = end
    return diff.normalized(out + text[at:])


def build(folder: Path, seed: int, kind: str = "correction", items: int = 6) -> Store:
    """A project with the work of three people, saved as the browser saves it; some items nobody has finished."""
    rng = random.Random(seed)
    store = Store(folder)
    settings = project.new(kind)
    identity = store.write(lambda c: assignment.add_project(c, kind, settings))
    for name in ("Ada", "Bob", "Cyd"):
        people.add(store, name)
    lines = []
    for i in range(items):
        (folder / f"{i}.png").write_bytes(image(seed + i))
        response = sentence(rng, rng.randint(1, 9))
        line = {"id": f"q{i}/é{i}", "image": f"{i}.png", "prompt": sentence(rng, 3), "response": response}
        line |= {"model": rng.choice(["", "m"]), "source": {"type": "detail", "n": i}}
        line |= {"prefill": changed(rng, response)} if kind == "correction" and rng.random() < 0.3 else {}
        lines.append({name: value for name, value in line.items() if value != ""})
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    report = imports.run(store, identity, path, imports.Options(n_annotators=3, keep_going=True))
    assert report.added >= 1
    store.write(lambda c: work(c, rng, identity, settings))
    store.write(lambda c: decide(c, rng, identity))
    return store


def work(c, rng: random.Random, identity: int, settings: project.Project) -> None:
    for (number,) in c.execute("SELECT id FROM item WHERE project = ? ORDER BY id", (identity,)).fetchall():
        item = assignment.item(c, number)
        for annotator in (1, 2, 3):
            choice = rng.choice(["", "skip", "clean", "corrected", "corrected", "draft"])
            person = Person(annotator, "", "annotator")
            operation = (0, uuid.UUID(int=rng.getrandbits(128)).hex)
            if choice:
                assignment.lease(c, person, number, settings)
            if choice == "skip":
                saving.skip(c, person, item, settings, *operation, rng.choice(["unsafe", "other: no 👀 image"]))
            elif choice:
                body = {"base_rev": 0, "op_id": operation[1], "active_ms": rng.randint(0, 10**6), "confirm": True}
                body |= submission(rng, item.response, settings, choice)
                wanted = checks.save_request(body, item.response)
                saving.save(c, person, item, settings, wanted, saving.segments_of(wanted, item, settings))


def decide(c, rng: random.Random, identity: int) -> None:
    """A reviewer decides about some items that people did, in favor of one of them."""
    rows = {row.item: row for row in collected.finished(c, identity) if row.verdict != "skipped" and rng.random() < 0.5}
    for row in rows.values():
        result = {"verdict": row.verdict, "skip_reason": "", "corrected": row.corrected, "rev": 1, "earlier": []}
        result |= {"segments": [segment.to_dict() for segment in row.segments]}
        c.execute(
            "INSERT INTO adjudication VALUES (?, 3, ?, 'clearer 👀', 1767323045.678)",
            (row.item, json.dumps(result, ensure_ascii=False)),
        )


def submission(rng: random.Random, response: str, settings: project.Project, choice: str) -> dict:
    """The state, verdict, text, cuts and typed segments of a save."""
    clean = {"state": "submitted", "verdict": "clean", "corrected": response}
    if choice == "clean":
        return clean
    words = diff.tokens(response)
    if settings.kind != "correction":
        marked = [word for word in words if rng.random() < 0.4]
        spans = [
            {"src0": a, "src1": b, "dst0": a, "dst1": b, "type": rng.choice(settings.type_keys)} for a, b in marked
        ]
        return clean | ({"verdict": "corrected", "segments": spans} if spans else {})
    corrected = changed(rng, response)
    new = diff.tokens(corrected)
    if not corrected.strip() or not diff.segments(response, corrected):
        return clean
    cuts = {
        "splits": [],
        "merges": [[s.src1, s.dst1] for s in diff.segments(response, corrected) if rng.random() < 0.3],
    }
    for _ in range(2):
        cuts["splits"].append([rng.choice([*words, (0, 0)])[1], rng.choice([*new, (0, 0)])[1]])
    found = diff.segments(response, corrected, diff.Cuts(*(tuple(map(tuple, cuts[n])) for n in ("splits", "merges"))))
    segments = [s._asdict() | {"type": rng.choice(settings.type_keys)} for s in found]
    state = "draft" if choice == "draft" else "submitted"
    return {"state": state, "verdict": "corrected", "corrected": corrected, "cuts": cuts, "segments": segments}


def content(store: Store, names: bool) -> dict:
    """What a project holds, by item: texts, and every finished annotation with its person's name or pseudonym."""
    c = store.read
    who = {
        row["id"]: row["name"] if names else f"annotator-{row['id']}" for row in c.execute("SELECT * FROM annotator")
    }
    found = {
        row["ext_id"]: [tuple(row)[1:], []]
        for row in c.execute(
            "SELECT ext_id, image_sha256, prompt, response, COALESCE(prefill, response), model, source_json FROM item"
        )
    }
    for row in collected.finished(c, 1):
        kept = row.corrected if row.verdict != "skipped" else ""
        found[row.ext_id][1].append(
            (
                *(who[row.annotator], row.verdict, row.skip_reason, kept, row.rev, row.active_ms),
                *(row.opened, row.updated, row.segments),
            )
        )
    return {name: (texts, sorted(rows)) for name, (texts, rows) in found.items()}
