"""Blind votes on answers: read from files, and counted with intervals over questions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from rlhfv_jax.comparing.sets import TIE
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals.answers import read_objects
from rlhfv_jax.evals.scores import Metric
from rlhfv_jax.evals.statistics import ratio

FIELDS = ("comparison", "question_id", "voter", "choice")


@dataclass(frozen=True)
class Vote:
    """Who chose which of the models `shown`, in the order in which they stood; `choice` is a name, or TIE."""

    comparison: str
    question_id: str
    voter: str
    choice: str
    shown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """A line of a file of votes."""
        return {**{name: getattr(self, name) for name in FIELDS}, "shown": list(self.shown)}


def read(paths: Sequence[str | Path]) -> list[Vote]:
    """Votes from the application's export or a page's download, one JSON object a line.

    Raises UserError where a line is no vote, or a voter voted twice on a question of a comparison.
    """
    votes: list[Vote] = []
    seen: dict[tuple[str, str, str], str] = {}
    for where, row in ((where, row) for path in paths for where, row in read_objects(path)):
        for name in FIELDS:
            if not isinstance(row.get(name), str) or not row[name]:
                raise UserError(f"{where}, {name}: expected text, found {row.get(name)!r}; expected a file of votes.")
        shown = row.get("shown")
        if not isinstance(shown, list) or not all(isinstance(s, str) for s in shown) or len(set(shown)) < 2:
            raise UserError(f"{where}, shown: expected the names of at least two models, found {shown!r}.")
        if row["choice"] not in (*shown, TIE):
            raise UserError(f"{where}, choice: {row['choice']!r} is none of {', '.join(shown)} and {TIE}.")
        vote = Vote(row["comparison"], row["question_id"], row["voter"], row["choice"], tuple(shown))
        if (first := seen.setdefault((vote.comparison, vote.question_id, vote.voter), where)) != where:
            raise UserError(f"{where}: {vote.voter} voted on question {vote.question_id!r} before, in {first}.")
        votes.append(vote)
    if not votes:
        raise UserError(f"There is no vote in {', '.join(map(str, paths))}.")
    return votes


def by_comparison(votes: Iterable[Vote]) -> dict[str, list[Vote]]:
    """The votes on each set of answers, in the order in which they first appear."""
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.comparison, []).append(vote)
    return found


def rates(votes: Sequence[Vote]) -> dict[str, Any]:
    """Win rates of one comparison in percent with 95 % intervals over questions, whose votes are drawn together.

    A model's rate is its share of the votes in which it was shown; a tie counts in equal parts. `pairs` compares two
    models over the votes that chose one of them, a tie among all as one half: {"first", "second", "rate"}.
    """
    names = sorted({name for vote in votes for name in vote.shown})
    return {
        "votes": len(votes),
        "voters": len({vote.voter for vote in votes}),
        "questions": len({vote.question_id for vote in votes}),
        "ties": sum(vote.choice == TIE for vote in votes),
        "models": {
            name: {
                "chosen": sum(vote.choice == name for vote in votes),
                "shown": sum(name in vote.shown for vote in votes),
                "rate": asdict(_by_question((v, _share(v, name)) for v in votes if name in v.shown)),
            }
            for name in names
        },
        "pairs": [
            {"first": a, "second": b, "rate": asdict(_by_question(_contests(votes, a, b)))}
            for a, b in combinations(names, 2)
        ],
    }


def _share(vote: Vote, name: str) -> float:
    return 1 / len(vote.shown) if vote.choice == TIE else float(vote.choice == name)


def _contests(votes: Sequence[Vote], first: str, second: str) -> Iterable[tuple[Vote, float]]:
    for vote in votes:
        if {first, second} <= set(vote.shown) and vote.choice in (first, second, TIE):
            yield vote, 0.5 if vote.choice == TIE else float(vote.choice == first)


def _by_question(won: Iterable[tuple[Vote, float]]) -> Metric:
    """Wins over votes in percent; n is the number of votes."""
    sums: dict[str, list[float]] = {}
    for vote, share in won:
        of = sums.setdefault(vote.question_id, [0.0, 0.0])
        of[0] += share
        of[1] += 1
    wins, counts = [of[0] for of in sums.values()], [of[1] for of in sums.values()]
    return ratio(wins, counts, 100.0, int(sum(counts)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The rates as a person reads them."""
    head = f"{found['votes']} votes by {found['voters']} on {found['questions']} questions, {found['ties']} ties"
    rows = [
        f"  {name}: {_spelled(of['rate'])}, chosen {of['chosen']} of {of['shown']} times"
        for name, of in found["models"].items()
    ]
    if len(found["models"]) > 2:
        rows += [f"  {of['first']} over {of['second']}: {_spelled(of['rate'])}" for of in found["pairs"]]
    return [head, *rows]


def _spelled(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return "– (no vote)"
    return f"{rate['value']:.1f} % [{rate['low']:.1f}, {rate['high']:.1f}] of {rate['n']}"
