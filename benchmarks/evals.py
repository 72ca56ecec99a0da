"""What scoring costs in CPU seconds: CHAIR over long captions, and VQAv2 over a validation set's worth of answers.

    python benchmarks/evals.py --references=benchmarks                              (random captions and answers)
    python benchmarks/evals.py --references=benchmarks --captions=a.jsonl --captions=b.jsonl

`references` holds Object HalBench's synonym file. Before any clock, the scores are held to what the random input was
made to have; every call starts with empty caches and ends with the intervals.
"""

import json
import time
from pathlib import Path

import numpy as np
import protocol
from absl import app, flags

from rlhfv_jax.evals import lemmas, objhal, vocabulary, vqa
from rlhfv_jax.evals.answers import Answer

_REFERENCES = flags.DEFINE_string("references", None, "The folder with synonyms_refine.txt.", required=True)
_CAPTIONS = flags.DEFINE_multi_string("captions", [], "JSONL files with `answer` or `text`; none: random captions.")
_COUNT = flags.DEFINE_integer("count", 2000, "Captions.")
_WORDS = flags.DEFINE_integer("words", 100, "Words of a random caption.")
_ANSWERS = flags.DEFINE_integer("answers", 200_000, "Answers to VQAv2's questions, ten people's beside each.")
_REPEATS = flags.DEFINE_integer("repeats", 1, "Rounds of two calls each.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")

FILLERS = (
    "a",
    "the",
    "with",
    "and",
    "near",
    "behind",
    "under",
    "of",
    "large",
    "small",
    "red",
    "two",
    "is",
    "are",
    "it",
)


def random_captions(known: vocabulary.Vocabulary) -> list[str]:
    """Captions that name eight objects each."""
    rng = np.random.default_rng(0)
    # One word an object, no other word of which a lemma or a double word could be made.
    names = sorted({node for node in known.node.values() if node.isalpha() and lemmas.noun_lemma(node) == node})
    names = [name for name in names if not any(name in double.split() for double in known.doubles)]
    texts = []
    for _ in range(_COUNT.value):
        named = rng.choice(names, 8, replace=False)
        words = list(rng.choice(FILLERS, _WORDS.value - len(named)))
        for at, name in zip(np.linspace(0, len(words), len(named)).astype(int), named, strict=True):
            words.insert(at, str(name))
        sentences = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
        texts.append(" ".join(sentences))
    return texts


def real_captions() -> list[str]:
    lines = [line for path in _CAPTIONS.value for line in Path(path).read_text(encoding="utf-8").split("\n")]
    rows = [json.loads(line) for line in lines if line.strip()]
    texts = [row.get("answer", row.get("text")) for row in rows]
    assert len(texts) >= _COUNT.value, f"{len(texts)} captions in these files; --count={_COUNT.value}"
    return texts[: _COUNT.value]


def chair() -> tuple[protocol.Call, dict[str, float]]:
    known = vocabulary.read_vocabulary(_REFERENCES.value)
    texts = real_captions() if _CAPTIONS.value else random_captions(known)
    answers = [Answer(str(i), text, image_id=str(i)) for i, text in enumerate(texts)]
    # The first four objects that are named are there, the others are not.
    truths = [set([known.node[word] for word in vocabulary.words(text, known)][:4]) for text in texts]

    def call() -> dict[str, float]:
        vocabulary.tokens.cache_clear()
        lemmas.noun_lemma.cache_clear()
        named = [vocabulary.words(objhal.clean(answer.text), known) for answer in answers]
        metrics = objhal.score_words(answers, named, truths, known, "lexical").metrics
        return {name: metric.value for name, metric in metrics.items()}

    if not _CAPTIONS.value:
        protocol.gate({"made": 50.0, "scored": call()["mention"]}, 1e-9)
    return call, {"items": len(texts), "words": float(np.mean([len(text.split()) for text in texts]))}


def visual_questions() -> tuple[protocol.Call, dict[str, float]]:
    rng = np.random.default_rng(0)
    count, words = _ANSWERS.value, np.asarray([f"word{i} red" for i in range(3000)])
    picked = rng.integers(0, len(words), count)
    said, other = words[picked], words[(picked[:, None] + rng.integers(1, len(words), (count, 10))) % len(words)]
    agreeing = rng.integers(0, 10, count)  # never all ten, who would be compared as they wrote
    records, expected = [], []
    for i in range(count):
        people = [str(said[i])] * int(agreeing[i]) + [str(one) for one in other[i, agreeing[i] :]]
        kinds = {"answer_type": ("other", "yes/no", "number")[i % 3], "question_type": f"kind {i % 65}"}
        answers = [{"answer": text, "answer_id": j} for j, text in enumerate(people, 1)]
        records.append({"question_id": str(i), "answers": answers, **kinds})
        matches = int(agreeing[i])
        expected.append((matches * min(1.0, (matches - 1) / 3) + (10 - matches) * min(1.0, matches / 3)) / 10)
    answers = [Answer(str(i), f"The {said[i]}.") for i in range(count)]

    def call() -> dict[str, float]:
        metrics = vqa.score_records(answers, records).metrics
        return {name: metrics[name].value for name in ("accuracy", "processed/accuracy")}

    protocol.gate({"made": 100 * float(np.mean(expected)), **call()}, 1e-9)
    return call, {"items": count, "words": 2.0}


def main(_: list[str]) -> None:
    rows = []
    for name, build in (("CHAIR, captions", chair), ("VQAv2, answers", visual_questions)):
        call, facts = build()
        seconds = protocol.abba({name: call}, _REPEATS.value, warmup=0, clock=time.process_time)[name]
        rows.append({"scored": name, **facts, "CPU seconds": protocol.quartiles(seconds)["median"]})
    protocol.report("scoring, one process", rows, _OUT.value)


if __name__ == "__main__":
    app.run(main)
