"""Asking a judge: every reply is stored at once, an unreadable verdict is asked again, and nothing is made up.

A benchmark gives a list of requests and a parser of verdicts and gets a `Judgment`: the verdict of every item whose
reply could be read, and the others by id with the reason.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax import endpoint
from rlhfv_jax.endpoint import Endpoint, Failure, Reply, Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.replies import Replies, key_of

OFFICIAL = "official"

Parse = Callable[[str], Any]  # a verdict from a reply's text; raises ValueError where there is none


class Waiting(UserError):
    """Prompts were written for judging elsewhere; the score has to wait for their replies."""


@dataclass(frozen=True)
class Judge:
    """Who judges. `endpoint` None: nobody; prompts are written, and replies read that were got elsewhere."""

    model: str
    endpoint: Endpoint | None
    asks: int = 3  # times that an item is asked at most until its verdict can be read
    official_parse: bool = False  # one ask each, and what cannot be read counts as the official scorer has it
    max_unjudged: float = 0.05  # share of the items without a verdict above which there is no score


@dataclass(frozen=True)
class Judgment:
    """The verdicts by item id, and what a score says about the judge."""

    verdicts: Mapping[str, Any]
    contents: Mapping[str, str]  # the reply behind each verdict, or the last one that could not be read
    unjudged: Mapping[str, str]  # item id -> why it has no verdict
    record: Mapping[str, Any]  # for scores.json: model, served, items, asked_again, unjudged, days, parse

    @property
    def name(self) -> str:
        """The judge as a score names it: as the server did, which is often a dated name of the model asked for."""
        return self.record["served"][0] if self.record["served"] else self.record["model"]

    @property
    def official(self) -> bool:
        """Whether what cannot be read counts as the official scorer has it."""
        return self.record["parse"] == OFFICIAL


def judge(requests: Sequence[Request], parse: Parse, who: Judge, replies: Replies, prompts: Path) -> Judgment:
    """Asks what is not stored yet and reads all verdicts.

    The verdict of an item is the first of its replies that `parse` can read. Without an endpoint, what is missing is
    written to `prompts` and `Waiting` says what to do with it. Raises UserError where calls failed (what was answered
    is kept), where the replies come from more than one model, and where more than `max_unjudged` of the items have no
    verdict.
    """
    ids = [request.id for request in requests]
    if len(set(ids)) != len(ids):
        raise ValueError("judge: two requests have the same id")
    refused: dict[str, str] = {}
    asks = 1 if who.official_parse else who.asks
    for ask in range(asks):
        still = [r for r in requests if r.id not in refused and not _readable(r, parse, who.model, replies, ask)]
        keyed = {key_of(who.model, r, ask): r for r in reversed(still)}  # equal prompts are asked once
        missing = [r for key, r in reversed(keyed.items()) if replies.get(key) is None]
        if missing and who.endpoint is None:
            _write_prompts(prompts, missing, who.model, ask, replies.path)
        if missing and who.endpoint is not None:
            no = _ask(missing, who.endpoint, replies, ask)
            refused |= {r.id: no[key] for r in still if (key := key_of(who.model, r, ask)) in no}
    return _collect(requests, parse, who, replies, refused, asks)


def _readable(request: Request, parse: Parse, model: str, replies: Replies, before: int) -> bool:
    """Whether one of the asks before this one gave a verdict."""
    return any(
        (line := replies.get(key_of(model, request, ask))) is not None and _verdict(line["content"], parse) is not None
        for ask in range(before)
    )


def _verdict(content: str, parse: Parse) -> tuple[Any] | None:
    """The verdict in a tuple of its own, since a verdict may be anything."""
    try:
        return (parse(content),)
    except ValueError:
        return None


def _ask(requests: Sequence[Request], where: Endpoint, replies: Replies, ask: int) -> dict[str, str]:
    """Stores what the endpoint answers; returns the keys of the requests it refuses, with its words."""
    refused: dict[str, str] = {}
    failed: dict[str, str] = {}

    def done(request: Request, result: Reply | Failure) -> None:
        key = key_of(where.model, request, ask)
        if isinstance(result, Reply):
            replies.add(key, where.model, request, ask, result)
        elif result.refused:
            refused[key] = result.reason
        else:
            failed[request.id] = result.reason

    endpoint.ask(where, requests, done)
    if failed:
        name, reason = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(requests)} calls of the judge failed every time (item {name}: {reason}). What was "
            f"answered is in {replies.path}; the same command again asks for the rest only."
        )
    return refused


def _collect(
    requests: Sequence[Request], parse: Parse, who: Judge, replies: Replies, refused: Mapping[str, str], asks: int
) -> Judgment:
    verdicts, contents, unjudged = {}, {}, {}
    used: list[Mapping[str, Any]] = []
    asked_again = 0
    for request in requests:
        stored = [replies.get(key_of(who.model, request, ask)) for ask in range(asks)]
        lines = [line for line in stored if line is not None]
        used += lines
        asked_again += max(0, len(lines) - 1)
        for line in lines:
            contents[request.id] = line["content"]
            if (verdict := _verdict(line["content"], parse)) is not None:
                verdicts[request.id] = verdict[0]
                break
        else:
            times = "once" if len(lines) == 1 else f"{len(lines)} times"
            unjudged[request.id] = refused.get(request.id) or f"no verdict that can be read, asked {times}"
    served = sorted({line.get("served") or line["model"] for line in used})
    _check_one_judge(served, used, replies.path)
    if not who.official_parse and len(unjudged) > who.max_unjudged * len(requests):
        name, reason = next(iter(unjudged.items()))
        raise UserError(
            f"{len(unjudged)} of {len(requests)} items have no verdict (item {name}: {reason}), more than a share of "
            f"--max_unjudged={who.max_unjudged:g}; see {replies.path}, or take a judge that keeps to the format."
        )
    days = sorted({str(line["time"])[:10] for line in used if line.get("time")})
    record = {
        "model": who.model,
        "served": served,
        "items": len(requests),
        "asked_again": asked_again,
        "unjudged": dict(unjudged),
        "days": days[:1] + days[-1:] if len(days) > 1 else days,
        "parse": OFFICIAL if who.official_parse else f"strict, asked up to {asks} times",
    }
    return Judgment(verdicts, contents, unjudged, record)


def _check_one_judge(served: Sequence[str], used: Sequence[Mapping[str, Any]], path: Path) -> None:
    if len(served) > 1:
        counts = [f"{name} ({sum((line.get('served') or line['model']) == name for line in used)})" for name in served]
        raise UserError(
            f"The replies of this score come from different judges: {', '.join(counts)}. Ask for one dated name with "
            f"--judge_model, or move {path} away and judge everything again."
        )


def _write_prompts(path: Path, requests: Sequence[Request], model: str, ask: int, replies: Path) -> None:
    """Writes what is to be asked elsewhere; always raises `Waiting`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        for request in requests:
            line = {
                "key": key_of(model, request, ask),
                "id": request.id,
                "ask": ask,
                "model": model,
                "messages": list(request.messages),
                "settings": dict(request.settings),
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(temporary, path)
    again = " whose verdict could not be read" if ask else ""
    raise Waiting(
        f"{len(requests)} prompts{again} wait in {path}. Have them judged, append one line of JSON each to {replies} "
        f'({{"key": that of the prompt, "model": "{model}", "served": the judge, "content": its reply}}), and run the '
        "same command again."
    )
