"""From a model's answers about held-out scenes to its row of the table."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhfv_jax.miniature import corpus, rates, scoring, world
from rlhfv_jax.miniature.answers import Answerer, ask

METRICS = (
    "response_rate",
    "mention_rate",
    "all_rate",
    "number_rate",
    "position_rate",
    "color_rate",
    "coverage",
    "mentions",
    "repeats",
)
RESULTS = ("response_rate", "mention_rate", "coverage", "mentions", "vqa", "overgeneralization_delta")


@dataclass(frozen=True)
class EvaluationSettings:
    """Which scenes are held out, how many, and the sampling temperature beside greedy decoding."""

    split: str
    scenes: int
    temperature: float


@dataclass(frozen=True)
class Evaluated:
    """One model's answers about the held-out scenes, scored: sampled, greedy, and short questions."""

    temperature: float  # of the sampled answers
    sampled: list[scoring.AnswerScore]
    greedy: list[scoring.AnswerScore]
    texts: list[str]  # of the sampled answers
    vqa: list[float]  # percent of the scene's short questions answered right
    overgeneralization: rates.Overgeneralization

    def details(self) -> dict[str, Any]:
        """The model's entry of details.json."""
        temperatures = {str(self.temperature): self.sampled, "0.0": self.greedy}
        over = self.overgeneralization
        return {
            "temperatures": {name: intervals(rates.summarize(scores)) for name, scores in temperatures.items()},
            "vqa": rates.mean_interval(self.vqa)._asdict(),
            "overgeneralization": {
                "kinds": {kind: {"h_a": r.h_a, "h_s": r.h_s, "delta": r.delta} for kind, r in over.rows.items()},
                "mean_delta": over.mean_delta._asdict(),
            },
        }

    def results(self) -> dict[str, float]:
        """The model's entry of results.json: percents at the sampling temperature."""
        summary = rates.summarize(self.sampled)
        values = {name: summary[name].value for name in METRICS if name in RESULTS}
        return values | {
            "vqa": rates.mean_interval(self.vqa).value,
            "overgeneralization_delta": self.overgeneralization.mean_delta.value,
        }


def intervals(summary: dict[str, rates.Interval]) -> dict[str, dict[str, float]]:
    """Intervals as plain values, for JSON."""
    return {name: summary[name]._asdict() for name in METRICS}


def differences(before: Evaluated, after: Evaluated, scenes: Sequence[world.Scene]) -> dict[str, dict[str, float]]:
    """Paired differences of the sampled answers and the short questions, in points with 95% intervals."""
    vqa = rates.mean_interval([new - old for old, new in zip(before.vqa, after.vqa, strict=True)])
    over = rates.overgeneralization_difference(before.sampled, after.sampled, scenes)
    changes = intervals(rates.paired_difference(before.sampled, after.sampled))
    return changes | {"vqa": vqa._asdict(), "overgeneralization_delta": over._asdict()}


def relative_changes(before: Evaluated, after: Evaluated) -> dict[str, dict[str, float]]:
    """Changes of the hallucination rates in percent of the rate before, with 95% intervals."""
    found = rates.relative_change(before.sampled, after.sampled)
    return {name: found[name]._asdict() for name in ("response_rate", "mention_rate", "all_rate") if name in found}


def evaluate(
    name: str,
    params: Any,
    answerer: Answerer,
    scenes: Sequence[world.Scene],
    s: EvaluationSettings,
    folder: Path,
    seed: int,
) -> Evaluated:
    """Answers and scores of one model; answers on disk from an earlier run are read instead of made again."""
    sampled = folder / "answers" / f"{name}.jsonl"
    greedy = folder / "answers" / f"{name}.greedy.jsonl"
    replies = folder / "vqa" / f"{name}.jsonl"
    turns = ask(scenes, seed, s.split)
    if not sampled.exists():
        write_answers(sampled, answerer.describe(params, scenes, s.temperature, seed), scenes)
    if not greedy.exists():
        write_answers(greedy, answerer.describe(params, scenes, 0.0, seed), scenes)
    if not replies.exists():
        said = answerer.reply(params, scenes, [[turn.question for turn in group] for group in turns])
        lines = [
            {"id": row, "question": turn.question, "answer": answer, "truth": turn.answer}
            for row, group in enumerate(turns)
            for turn, answer in zip(group, said[row], strict=True)
        ]
        _write_lines(replies, lines)
    texts = [line["text"] for line in _read_lines(sampled)]
    scores = [scoring.score(text, scene) for text, scene in zip(texts, scenes, strict=True)]
    greedy_texts = [line["text"] for line in _read_lines(greedy)]
    greedy_scores = [scoring.score(text, scene) for text, scene in zip(greedy_texts, scenes, strict=True)]
    hits: list[list[bool]] = [[] for _ in scenes]
    for line in _read_lines(replies):
        hits[line["id"]].append(line["answer"] == line["truth"])
    vqa = [100.0 * sum(row) / len(row) for row in hits]
    return Evaluated(s.temperature, scores, greedy_scores, texts, vqa, rates.overgeneralization(scores, scenes))


def write_answers(path: Path, texts: Sequence[str], scenes: Sequence[world.Scene]) -> None:
    """One line a held-out scene and answer: id, text, objects (truly present), mentioned, hallucinated."""
    lines = []
    for row, (text, scene) in enumerate(zip(texts, scenes, strict=True)):
        found = scoring.score(text, scene)
        lines.append(
            {
                "id": row,
                "text": text,
                "objects": [group.name for group in scene.groups],
                "mentioned": [mention.object.word for mention in found.mentions],
                "hallucinated": [error.claim.word for error in found.objects],
            }
        )
    _write_lines(path, lines)


def _write_lines(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.replace(temporary, path)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_out(s: EvaluationSettings, seed: int) -> list[world.Scene]:
    """The scenes that no stage trains on."""
    return corpus.scenes(seed, s.split, s.scenes)
