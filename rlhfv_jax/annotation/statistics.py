"""The paper's row about its data, beside the project's own; and MHumanEval's columns. Intervals are of 95 percent."""

import functools
import math
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhfv_jax.annotation import agreement_report, gold
from rlhfv_jax.annotation.collected import STATES, Finished, Outcome, outcomes
from rlhfv_jax.annotation.project import Project

# Section 2 of the paper: words and corrected segments of a response, shares of types in percent (they add to 100.1).
PAPER = {"words": 64.4, "segments": 2.65}
PAPER_TYPES = {"objects": 41.2, "positions": 20.3, "numbers": 16.5, "attributes": 10.0, "actions": 5.3, "misc": 6.8}
RESAMPLES = 400
Z = 1.959964


def statistics(c: sqlite3.Connection, identity: int, project: Project, people: bool = True) -> dict[str, Any]:
    """Plain values, ready for JSON; `people` adds a row for each annotator."""
    every = outcomes(c, identity)
    rows = [row for one in every if one.state != "gold" for row in one.rows]
    counted = [one.counts for one in every if one.state != "gold" and one.counts is not None]
    counts = Counter(row.verdict for row in rows)
    values: dict[str, Any] = {
        "kind": project.kind,
        "finished": len(rows),
        "states": {state: sum(one.state == state for one in every) for state in STATES},
        "verdicts": {name: counts[name] for name in ("corrected", "clean", "skipped")},
        "skip_reasons": dict(Counter(row.skip_reason.split(":")[0] for row in rows if row.skip_reason).most_common()),
    }
    if project.kind == "correction":
        values |= _corrections([row for row in counted if row.verdict != "skipped"], project)
    else:
        values["models"] = mhumaneval(counted, project)
    if people:
        values["people"] = _people(every)
    return values


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean of responses with a bootstrap interval over them (fixed seed)."""
    if not len(values):
        return {"value": None, "low": None, "high": None, "n": 0}
    array = np.asarray(values, float)
    means = _weights(len(array)) @ array
    return _interval(float(array.mean()), means, len(array))


def wilson(count: int, n: int) -> dict[str, float | int | None]:
    """A share in percent with Wilson's interval."""
    if not n:
        return {"count": 0, "n": 0, "value": None, "low": None, "high": None}
    share, extra = count / n, Z * Z / n
    middle = (share + extra / 2) / (1 + extra)
    half = Z * math.sqrt(share * (1 - share) / n + extra / (4 * n)) / (1 + extra)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"count": count, "n": n, "value": 100 * share, "low": 100 * low, "high": 100 * high}


@functools.lru_cache(maxsize=4)
def _weights(n: int) -> np.ndarray:
    """float[RESAMPLES, n]: how much of each resample's mean every response makes up."""
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


def _interval(value: float, draws: np.ndarray, n: int) -> dict[str, float | int | None]:
    low, high = np.nanpercentile(draws, (2.5, 97.5)).tolist()
    return {"value": value, "low": low, "high": high, "n": n}


def _corrections(rows: Sequence[Finished], project: Project) -> dict[str, Any]:
    """Over all annotated responses, the denominator of the paper's figures as we read it; and over corrected ones."""
    changed = [row for row in rows if row.verdict == "corrected"]
    keys = project.type_keys
    table = np.asarray([[sum(s.type == key for s in row.segments) for key in keys] for row in rows], float)
    types: dict[str, Any] = {}
    if len(rows) and table.sum():
        draws = _weights(len(rows)) @ table
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = 100 * draws / draws.sum(axis=1, keepdims=True)
        for k, key in enumerate(keys):
            share = _interval(float(100 * table[:, k].sum() / table.sum()), shares[:, k], int(table.sum()))
            types[key] = share | {"count": int(table[:, k].sum())}
    segments = [len(row.segments) for row in rows]
    models = sorted({row.model for row in rows})
    return {
        "words": interval([len(row.corrected.split()) for row in rows]) | {"paper": PAPER["words"]},
        "words_before": interval([len(row.response.split()) for row in rows]),
        "segments": interval(segments) | {"paper": PAPER["segments"]},
        "segments_of_corrected": interval([len(row.segments) for row in changed]),
        "segments_histogram": dict(sorted(Counter(segments).items())),
        "clean": wilson(len(rows) - len(changed), len(rows)),
        "types": {
            key: types.get(key, {"value": None, "low": None, "high": None, "n": 0, "count": 0})
            | {"paper": PAPER_TYPES.get(key)}
            for key in keys
        },
        "operations": dict(Counter(s.op for row in rows for s in row.segments).most_common()),
        "models": {
            model or "(none)": {
                "responses": len(of := [row for row in rows if row.model == model]),
                "segments": sum(len(row.segments) for row in of) / len(of),
                "clean": wilson(sum(row.verdict == "clean" for row in of), len(of)),
            }
            for model in models
        },
    }


def mhumaneval(rows: Sequence[Finished], project: Project) -> dict[str, Any]:
    """For each model the percentages of responses with a hallucination of each type and of any (MHumanEval's columns).

    `mmhal` is the same over the items of MMHal-Bench alone (its response-level column), `segments` the number of
    hallucinated segments, which Figure 2 plots. Skipped responses count in no denominator.
    """
    found: dict[str, Any] = {}
    for model in sorted({row.model for row in rows}):
        every = [row for row in rows if row.model == model]
        of = [row for row in every if row.verdict != "skipped"]
        rates = {
            key: wilson(sum(any(s.type == key for s in row.segments) for row in of), len(of))
            for key in project.type_keys
        }
        rates["all"] = wilson(sum(bool(row.segments) for row in of), len(of))
        mmhal = [row for row in of if str(row.source.get("benchmark", "")).lower().startswith("mmhal")]
        found[model or "(none)"] = {
            "responses": len(of),
            "skipped": len(every) - len(of),
            "rates": rates,
            "mmhal": wilson(sum(bool(row.segments) for row in mmhal), len(mmhal)),
            "segments": sum(len(row.segments) for row in of),
            "segments_per_response": interval([len(row.segments) for row in of]),
        }
    return found


def _people(every: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Everybody's pace, score on gold items, agreement with others, and what is unusual; gold items are work too."""
    rows = [row for one in every for row in one.rows]
    scores, others = gold.scores(every), agreement_report.with_others(every)
    found = []
    for person in sorted({row.annotator for row in rows}):
        of = [row for row in rows if row.annotator == person]
        active = sum(row.active_ms for row in of) / 1000
        found.append(
            {
                "annotator": of[0].pseudonym,
                "finished": len(of),
                "active_seconds": round(active, 1),
                "median_seconds": float(np.median([row.active_ms / 1000 for row in of])),
                "items_per_hour": round(3600 * len(of) / active, 1) if active else None,
                "clean_share": sum(row.verdict == "clean" for row in of) / len(of),
                "skipped": sum(row.verdict == "skipped" for row in of),
                "segments": sum(len(row.segments) for row in of) / len(of),
                "gold": scores.get(person),
                "others": others.get(person),
                "flags": {
                    "under_3_seconds": sum(row.active_ms < 3000 for row in of),
                    "over_half_of_the_words": sum(map(_rewritten, of)),
                },
            }
        )
    return found


def _rewritten(row: Finished) -> bool:
    """Whether more than half of the words were marked."""
    if not row.segments:
        return False
    marked = sum(len(segment.src_text.split()) for segment in row.segments)
    return 2 * marked > len(row.response.split()) > 3


def lines(values: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, ours, paper) for a table on a terminal."""
    verdicts = ", ".join(f"{count} {name}" for name, count in values["verdicts"].items())
    table = [("finished", f"{values['finished']} ({verdicts})", "")]
    if values["kind"] == "correction":
        table += [
            ("words a response", spelled(values["words"]), str(PAPER["words"])),
            ("segments a response", spelled(values["segments"], 2), str(PAPER["segments"])),
            ("segments a corrected response", spelled(values["segments_of_corrected"], 2), ""),
            ("responses without hallucination", spelled(values["clean"]) + " %", ""),
        ]
        for key, share in values["types"].items():
            paper = f"{share['paper']} %" if share["paper"] else ""
            table.append((f"type {key}", spelled(share) + " %", paper))
        return table
    for model, of in values["models"].items():
        rates = ", ".join(f"{key} {spelled(rate)} %" for key, rate in of["rates"].items())
        table.append((model, f"{of['responses']} responses, {of['segments']} segments; {rates}", ""))
    return table


def spelled(value: dict[str, Any], digits: int = 1) -> str:
    """A value with its interval, as "2.65 [2.50, 2.80]"."""
    if value["value"] is None:
        return "-"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"
