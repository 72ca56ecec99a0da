"""All benchmarks by name: an answers file and the folder of official files in, scores out."""

import ast
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rlhfv_jax import textfiles
from rlhfv_jax.endpoint import Request
from rlhfv_jax.errors import UserError
from rlhfv_jax.evals import llava_bench, mhumaneval, mme, mmhal, pope, seed_bench, vqa
from rlhfv_jax.evals.answers import Answer, AnswerFile, by_question, read_answers, read_objects
from rlhfv_jax.evals.judge import Judge, Judgment, Parse, judge
from rlhfv_jax.evals.references import find, read_json
from rlhfv_jax.evals.replies import Replies
from rlhfv_jax.evals.scores import Scores
from rlhfv_jax.evals.statistics import compare

Measures = dict[str, float]
Item = TypeVar("Item", mmhal.Question, llava_bench.Question)

RLHFV = "RLHF-V/RLHF-V"
LLAVA = "haotian-liu/LLaVA"


@dataclass(frozen=True)
class Way:
    """How to score. `judge` None: a benchmark that needs one is refused."""

    references: Path
    partial: bool = False  # score the questions that are answered
    judge: Judge | None = None
    replies: Path = Path("judge_replies.jsonl")
    prompts: Path = Path("judge_prompts.jsonl")
    annotator: str = ""
    scenes: Path | None = None  # over_generalization: other scenes, phrases or objects than the paper's
    ranking: str = "instances"  # over_generalization: what the objects of a scene are ranked by
    model: str = ""


@dataclass(frozen=True)
class Benchmark:
    """`score` reads an answers file; `measures` is what one row of `items` adds to a paired comparison."""

    score: Callable[[Path, Way], Scores]
    measures: Callable[[Mapping[str, Any]], Measures]
    reads: str = ""  # the benchmark whose answers, and judge's replies, it reads, if not its own


def score(name: str, answers: Path, way: Way) -> Scores:
    """Scores of one answers file; the settings say which file, and how many of its questions failed to be answered."""
    scores = BENCHMARKS[name].score(answers, way)
    return replace(scores, settings={"answers_file": str(answers), "partial": way.partial, **scores.settings})


def compared(name: str, ours: Scores, other: Scores) -> Scores:
    """Our scores with `settings["compared"]`: for each measure ours less the other's, over the shared questions.

    Raises:
      UserError: the two have no question in common.
    """
    measures = BENCHMARKS[name].measures
    theirs = {item["question_id"]: measures(item) for item in other.items}
    pairs = [(measures(item), theirs[item["question_id"]]) for item in ours.items if item["question_id"] in theirs]
    names = dict.fromkeys(measure for mine, _ in pairs for measure in mine)
    differences = {}
    for measure in names:
        both = [(mine[measure], its[measure]) for mine, its in pairs if measure in mine and measure in its]
        if both:
            differences[measure] = asdict(compare([its for _, its in both], [mine for mine, _ in both]))
    if not differences:
        raise UserError(f"{name}: the two answers files have no scored question in common.")
    record = {"answers_file": other.settings["answers_file"], "differences": differences}
    return replace(ours, settings={**ours.settings, "compared": record})


def _answered(path: Path, benchmark: str) -> tuple[Answer, ...]:
    found: AnswerFile = read_answers(path)
    if found.failed:
        raise UserError(
            f"{path}: {len(found.failed)} questions of {benchmark} hold an error in place of an answer, first "
            f"{found.failed[0]!r}; run `generate` again, it asks for these only."
        )
    return found.answers


def _with_words(name: str) -> Any:
    """A module of this folder that needs the tokenizer of the extra `evals`."""
    try:
        return importlib.import_module(f"rlhfv_jax.evals.{name}")
    except ImportError as error:
        raise UserError(f"{name} needs a tokenizer of words: pip install 'rlhfv_jax[evals]'.") from error


def _objhal(path: Path, way: Way) -> Scores:
    """By the synonym file alone, or with a judge by its lists of objects, as the published figures are."""
    objhal = _with_words("objhal")
    answers = _answered(path, objhal.NAME)
    if way.judge is None:
        return objhal.score(answers, way.references, way.partial)
    extraction, tagging = _with_words("extraction"), _with_words("tagging")
    objhal.check_answers(answers, way.partial)
    script = find(way.references, "eval_gpt_obj_halbench.py", f"{RLHFV}, eval (the prompt is read from it)")
    template = extraction.check_template(_string(script, "prompt_template"), str(script))
    vocabulary = _with_words("vocabulary").read_vocabulary(way.references)
    truths = objhal.truths(answers, way.references, vocabulary)
    requests = [
        extraction.request(answer.question_id, extraction.question(answer), answer.text, template)
        for answer in answers
        if extraction.needs_judge(answer.text)
    ]
    judgment = _judged(requests, extraction.parse, objhal.NAME, way)
    tagger = tagging.object_tagger()
    return extraction.score(answers, truths, vocabulary, judgment, tagger.tagged, tagger.name)


def _over_generalization(path: Path, way: Way) -> Scores:
    table = _with_words("over_generalization")
    scores = _objhal(path, way)
    vocabulary = _with_words("vocabulary").read_vocabulary(way.references)
    scenes = table.read_scenes(way.scenes, vocabulary) if way.scenes else table.DEFAULT
    found = table.from_coco(way.references, scenes, vocabulary, way.ranking)
    settings = {**scores.settings, "ranking": way.ranking}
    return replace(table.score_items(scores.items, found, settings), judge=scores.judge)


def _pope(path: Path, way: Way) -> Scores:
    return pope.score(_answered(path, pope.NAME), way.references, way.partial)


def _amber(path: Path, way: Way) -> Scores:
    amber = _with_words("amber")
    return amber.score(_answered(path, amber.NAME), way.references, way.partial)


def _vqa(path: Path, way: Way) -> Scores:
    return vqa.score(_answered(path, vqa.NAME), way.references, way.partial)


def _mme(path: Path, way: Way) -> Scores:
    return mme.score(_answered(path, mme.NAME), way.references, way.partial)


def _seed_bench(path: Path, way: Way) -> Scores:
    return seed_bench.score(_answered(path, seed_bench.NAME), way.references, way.partial)


def _mhumaneval(path: Path, way: Way) -> Scores:
    rows = [row for _, row in read_objects(path)]
    scores = mhumaneval.score(mhumaneval.labels(rows, str(path), way.annotator, way.model))
    if not way.partial and not scores.settings["complete"]:
        raise UserError(
            f"{path}: {scores.settings['labels']} labeled answers; MHumanEval has {mhumaneval.ITEMS}. To score a part, "
            "say --partial."
        )
    return scores


def _mmhal(path: Path, way: Way) -> Scores:
    file = find(way.references, "mmhal-bench_answer_template.json", f"{RLHFV}, eval/data")
    script = find(way.references, "eval_gpt_mmhal.py", f"{RLHFV}, eval (the judge's prompt is read from it)")
    template = mmhal.check_template(_string(script, "template"), str(script))
    rows = read_json(file)
    if not isinstance(rows, list):
        raise UserError(f"{file}: expected a list of items.")
    items, answers = _select(mmhal.questions(rows, str(file)), path, mmhal.NAME, way.partial)
    requests = [mmhal.request(item, answers[item.id].text, template) for item in items]
    return mmhal.score(items, answers, _judged(requests, mmhal.parse, mmhal.NAME, way))


def _llava_bench(path: Path, way: Way) -> Scores:
    names = ("qa90_questions.jsonl", "qa90_gpt4_answer.jsonl", "caps_boxes_coco2014_val_80.jsonl")
    sources = (f"{RLHFV}, eval/data", f"{RLHFV}, eval/data", f"{LLAVA}, playground/data/coco2014_val_qa_eval")
    files = [read_objects(find(way.references, name, source)) for name, source in zip(names, sources, strict=True)]
    rules = read_json(find(way.references, "rule.json", f"{LLAVA}, llava/eval/table"))
    try:
        found = llava_bench.questions(*([row for _, row in rows] for rows in files))
        items, answers = _select(found, path, llava_bench.NAME, way.partial)
        requests = [llava_bench.request(item, answers[item.id].text, rules) for item in items]
    except (KeyError, TypeError) as error:
        raise UserError(f"{llava_bench.NAME}: a field of the official files is missing: {error}.") from error
    if len(found) != llava_bench.ITEMS:
        raise UserError(f"{names[0]} has {len(found)} questions; LLaVA-Bench has {llava_bench.ITEMS}.")
    return llava_bench.score(items, answers, _judged(requests, llava_bench.parse, llava_bench.NAME, way))


def _select(items: Sequence[Item], path: Path, name: str, partial: bool) -> tuple[list[Item], dict[str, Answer]]:
    answers = by_question(_answered(path, name), [item.id for item in items], name, partial)
    return [item for item in items if item.id in answers], answers


def _judged(requests: Sequence[Request], parse: Parse, name: str, way: Way) -> Judgment:
    if way.judge is None:
        raise UserError(
            f"{name} needs a judge: give --judge_url and --judge_model, or --judge=none and --judge_model to write the "
            "prompts for judging elsewhere."
        )
    with Replies(way.replies) as replies:
        return judge(requests, parse, way.judge, replies, way.prompts)


def _string(path: Path, name: str) -> str:
    """The value of a string constant at the top of a Python file, which is read and never run."""
    try:
        statements = ast.parse(textfiles.read(path)).body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{path} is not Python ({error}).") from error
    for statement in statements:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            named = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if name in named and isinstance(statement.value.value, str):
                return statement.value.value
    raise UserError(f"{path}: expected the string {name!r} at its top level.")


def _objhal_measures(item: Mapping[str, Any]) -> Measures:
    wrong = len(item["hallucinated"])
    return {"answers_hallucinating_percent": 100.0 * bool(wrong), "hallucinated_mentions": float(wrong)}


def _amber_measures(item: Mapping[str, Any]) -> Measures:
    if "answer" in item:
        return {"accuracy": 100.0 * (item["answer"] == item["truth"].capitalize())}
    wrong = len(item["hallucinated"])
    return {"descriptions_hallucinating_percent": 100.0 * bool(wrong), "hallucinated_mentions": float(wrong)}


def _seed_measures(item: Mapping[str, Any]) -> Measures:
    found = {"accuracy": 100.0 * (item["chosen"] == item["answer"])} if item["text"].strip() else {}
    if item["likeliest"] is not None:
        found["likelihood/accuracy"] = 100.0 * (item["likeliest"] == item["answer"])
    return found


def _mmhal_measures(item: Mapping[str, Any]) -> Measures:
    return {} if item["rating"] is None else mmhal.measures(item["rating"])


def _llava_measures(item: Mapping[str, Any]) -> Measures:
    return {} if item["scores"] is None else {"score": item["scores"][1]}


def _mhumaneval_measures(item: Mapping[str, Any]) -> Measures:
    return mhumaneval.measures(mhumaneval.Label(item["question_id"], tuple(item["types"])))


BENCHMARKS: dict[str, Benchmark] = {
    "object_halbench": Benchmark(_objhal, _objhal_measures),
    "over_generalization": Benchmark(_over_generalization, _objhal_measures, reads="object_halbench"),
    "pope": Benchmark(_pope, lambda item: {"accuracy": 100.0 * (item["predicted"] == item["label"])}),
    "amber": Benchmark(_amber, _amber_measures),
    "vqav2": Benchmark(
        _vqa,
        lambda item: {"accuracy": 100 * item["accuracy"], "processed/accuracy": 100 * item["processed_accuracy"]},
    ),
    "mme": Benchmark(_mme, lambda item: {"accuracy": 100.0 * (item["predicted"] == item["label"])}),
    "seed_bench": Benchmark(_seed_bench, _seed_measures),
    "mmhal": Benchmark(_mmhal, _mmhal_measures),
    "llava_bench": Benchmark(_llava_bench, _llava_measures),
    "mhumaneval": Benchmark(_mhumaneval, _mhumaneval_measures),
}
