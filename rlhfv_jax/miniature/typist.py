"""The oracle at the keyboard: a person of a running annotation server who knows every drawn scene.

It speaks the server's HTTP interface as the browser does: signs in, takes the next item, sees the answer, asks for the
words that differ, gives each segment its type, submits; until nothing is left. docs/loop.md is the whole loop.
"""

import json
import re
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from http.cookiejar import CookieJar
from typing import Any
from urllib import error, request

from rlhfv_jax.errors import UserError
from rlhfv_jax.miniature import captions, corpus, oracle, scoring, world

# The oracle's types as a correction project names them.
TYPES = {
    "object": "objects",
    "number": "numbers",
    "attribute": "attributes",
    "position": "positions",
    "misc": "misc",
}
_ID = re.compile(rf"miniature-(\d+)-({'|'.join(corpus.SPLITS)})-(\d+)(?:/.*)?")
SECONDS = 5  # that a correction is said to have taken


def questions(seed: int, split: str, count: int) -> list[tuple[dict[str, Any], bytes]]:
    """(question in `generate`'s layout, PNG of its scene) for the first scenes of a split; the id says which."""
    found = []
    for row, scene in enumerate(corpus.scenes(seed, split, count)):
        identity = f"miniature-{seed}-{split}-{row}"
        asked = {"question_id": identity, "prompt": captions.prompt(scene.kind), "image": f"{identity}.png"}
        found.append((asked, world.png_bytes(world.draw(scene))))
    return found


def scene_of(identity: str) -> tuple[world.Scene, tuple[int, str, int]]:
    """(scene, (seed, split, row)) of a question's or item's id; raises UserError for another's."""
    match = _ID.fullmatch(identity)
    if match is None:
        raise UserError(f"{identity!r} is no scene of the miniature; the oracle knows only those that it asked about.")
    seed, split, row = int(match[1]), match[2], int(match[3])
    return world.sample_scene(corpus.rng_of(seed, split, row)), (seed, split, row)


def submission(answer: str, identity: str) -> dict[str, Any]:
    """What the oracle does with an answer: {"skip": reason}, or verdict, corrected text, and its typed segments.

    `typed` are (start, end) in the answer with a type, `splits` the ends of each segment in both texts: where two
    errors lie side by side the words that differ are one segment until it is divided there.
    """
    scene, place = scene_of(identity)
    found = oracle.correct(answer, scene, corpus.rng_of(*place, stream=3))
    if found is None:
        score = scoring.score(answer, scene)
        if not score.errors and score.mentions:
            return {"verdict": "clean", "corrected": answer, "typed": [], "splits": []}
        return {"skip": "no whole caption, or too wrong to correct"}
    typed = [(one["start"], one["end"], TYPES[one["type"]]) for one in found.rejected_segments]
    pairs = zip(found.rejected_segments, found.chosen_segments, strict=True)
    splits = [[before["end"], after["end"]] for before, after in pairs]
    return {"verdict": "corrected", "corrected": found.chosen, "typed": typed, "splits": splits}


def with_types(segments: Sequence[Mapping[str, Any]], typed: Sequence[tuple[int, int, str]]) -> list[dict[str, Any]]:
    """The server's segments, each with the type of the oracle's segment that shares most of its words."""
    found = []
    for one in segments:
        best = max(typed, key=lambda at: min(at[1], one["src1"]) - max(at[0], one["src0"]))
        found.append(dict(one) | {"type": best[2]})
    return found


class Typist:
    """A signed-in person of the server at `address`; raises UserError where it refuses or is not there."""

    def __init__(self, address: str, token: str):
        self.address = address.rstrip("/")
        self._opener = request.build_opener(request.HTTPCookieProcessor(CookieJar()))
        self._call("POST", "/api/session", {"token": token})

    def work(self) -> Counter[str]:
        """Does every item that the server gives; counts of verdicts."""
        projects = [one for one in self._call("GET", "/api/projects") if one["kind"] == "correction"]
        if not projects:
            raise UserError(f"{self.address} has no project of corrections.")
        done: Counter[str] = Counter()
        for project in projects:
            while (number := self._call("POST", f"/api/projects/{project['id']}/next")["item"]) is not None:
                done[self._do(self._call("GET", f"/api/items/{number}"))] += 1
        return done

    def _do(self, item: Mapping[str, Any]) -> str:
        answer, path = item["response"], f"/api/items/{item['id']}"
        wanted = submission(answer, item["ext_id"])
        kept = item["annotation"] or {"rev": 0}  # a draft of an earlier visit
        operation = {"base_rev": kept["rev"], "op_id": uuid.uuid4().hex}
        if "skip" in wanted:
            self._call("POST", f"{path}/skip", operation | {"reason": "other", "text": wanted["skip"]})
            return "skipped"
        typing = {"corrected": wanted["corrected"], "cuts": {"splits": wanted["splits"], "merges": []}}
        differ = self._call("POST", "/api/diff", typing | {"source": answer})["segments"]
        finished = {"state": "submitted", "verdict": wanted["verdict"], "segments": with_types(differ, wanted["typed"])}
        self._call(
            "PUT", f"{path}/annotation", operation | typing | finished | {"active_ms": 1000 * SECONDS, "confirm": True}
        )
        return str(wanted["verdict"])

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"X-Requested-With": "rlhfv", "Content-Type": "application/json"}
        asked = request.Request(self.address + path, data, headers, method=method)
        try:
            with self._opener.open(asked, timeout=60) as reply:
                return json.load(reply)
        except error.HTTPError as failure:
            raise UserError(f"{method} {path}: the server says {failure.read().decode(errors='replace')}") from failure
        except (OSError, ValueError) as failure:
            raise UserError(f"{self.address} does not answer as an annotation server ({failure}).") from failure
