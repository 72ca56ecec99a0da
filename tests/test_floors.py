"""The house plan, held: a file imports only from strictly lower floors, and stays small."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhfv_jax"

FLOOR = {
    "rlhfv_jax": 0,
    "rlhfv_jax.conversion": 0,
    "rlhfv_jax.data": 0,
    "rlhfv_jax.data.tfds": 0,
    "rlhfv_jax.decoding": 0,
    "rlhfv_jax.generation": 0,
    "rlhfv_jax.generation.answer_file": 1,
    "rlhfv_jax.generation.questions": 1,
    "rlhfv_jax.generation.sink": 2,
    "rlhfv_jax.generation.remote": 3,
    "rlhfv_jax.generation.local": 8,
    "rlhfv_jax.listening": 0,
    "rlhfv_jax.serving": 0,
    "rlhfv_jax.serving.limits": 1,
    "rlhfv_jax.serving.refusal": 1,
    "rlhfv_jax.serving.fields": 2,
    "rlhfv_jax.serving.options": 3,
    "rlhfv_jax.serving.reply": 3,
    "rlhfv_jax.serving.conversation": 8,
    "rlhfv_jax.serving.worker": 8,
    "rlhfv_jax.serving.service": 9,
    "rlhfv_jax.serving.application": 10,
    "rlhfv_jax.serving.server": 11,
    "rlhfv_jax.miniature": 0,
    "rlhfv_jax.evals": 0,
    "rlhfv_jax.models": 0,
    "rlhfv_jax.ops": 0,
    "rlhfv_jax.annotation": 0,
    "rlhfv_jax.annotation.faults": 0,
    "rlhfv_jax.errors": -1,  # the cellar
    "rlhfv_jax.textfiles": 0,
    "rlhfv_jax.gpu": 0,
    "rlhfv_jax.bits": 0,
    "rlhfv_jax.compilation": 0,
    "rlhfv_jax.flops": 0,
    "rlhfv_jax.structs": 0,
    "rlhfv_jax.trees": 0,
    "rlhfv_jax.endpoint": 1,
    "rlhfv_jax.evals.answers": 1,
    "rlhfv_jax.evals.lemmas": 1,
    "rlhfv_jax.evals.references": 1,
    "rlhfv_jax.evals.scores": 1,
    "rlhfv_jax.evals.replies": 2,
    "rlhfv_jax.evals.statistics": 2,
    "rlhfv_jax.evals.tagging": 2,
    "rlhfv_jax.evals.vocabulary": 2,
    "rlhfv_jax.evals.amber_descriptions": 3,
    "rlhfv_jax.evals.judge": 3,
    "rlhfv_jax.evals.mhumaneval": 3,
    "rlhfv_jax.evals.mme": 3,
    "rlhfv_jax.evals.objhal": 3,
    "rlhfv_jax.evals.pope": 3,
    "rlhfv_jax.evals.seed_bench": 3,
    "rlhfv_jax.evals.vqa": 3,
    "rlhfv_jax.evals.amber": 4,
    "rlhfv_jax.evals.extraction": 4,
    "rlhfv_jax.evals.llava_bench": 4,
    "rlhfv_jax.evals.over_generalization": 4,
    "rlhfv_jax.evals.benchmarks": 5,
    "rlhfv_jax.evals.mmhal": 4,
    "rlhfv_jax.cluster": 1,
    "rlhfv_jax.rollcall": 1,
    "rlhfv_jax.processes": 2,
    "rlhfv_jax.losses": 1,
    "rlhfv_jax.profiling": 1,
    "rlhfv_jax.preemption": 1,
    "rlhfv_jax.metrics": 1,
    "rlhfv_jax.provenance": 1,
    "rlhfv_jax.sharding": 1,
    "rlhfv_jax.ops.attention": 1,
    "rlhfv_jax.ops.logprobs": 2,
    "rlhfv_jax.data.buckets": 1,
    "rlhfv_jax.data.packing": 2,
    "rlhfv_jax.data.features": 1,
    "rlhfv_jax.data.coco": 0,
    "rlhfv_jax.data.images": 1,
    "rlhfv_jax.data.records": 1,
    "rlhfv_jax.data.segments": 1,
    "rlhfv_jax.data.tokenizer": 1,
    "rlhfv_jax.data.tfds.storage": 1,
    "rlhfv_jax.miniature.world": 1,
    "rlhfv_jax.annotation.texts": 0,
    "rlhfv_jax.annotation.diff": 1,
    "rlhfv_jax.annotation.project": 1,
    "rlhfv_jax.annotation.schema": 1,
    "rlhfv_jax.annotation.security": 1,
    "rlhfv_jax.annotation.checks": 2,
    "rlhfv_jax.annotation.overlaps": 2,
    "rlhfv_jax.annotation.pictures": 2,
    "rlhfv_jax.annotation.store": 2,
    "rlhfv_jax.annotation.agreement": 3,
    "rlhfv_jax.annotation.collected": 3,
    "rlhfv_jax.annotation.people": 3,
    "rlhfv_jax.annotation.assignment": 4,
    "rlhfv_jax.annotation.agreement_report": 4,
    "rlhfv_jax.annotation.gold": 4,
    "rlhfv_jax.annotation.imports": 8,
    "rlhfv_jax.annotation.preview": 4,
    "rlhfv_jax.annotation.statistics": 5,
    "rlhfv_jax.annotation.exports": 9,
    "rlhfv_jax.annotation.saving": 5,
    "rlhfv_jax.annotation.serving": 5,
    "rlhfv_jax.annotation.adjudication": 6,
    "rlhfv_jax.annotation.reviewing": 7,
    "rlhfv_jax.annotation.administration": 10,
    "rlhfv_jax.annotation.api": 7,
    "rlhfv_jax.annotation.ballots": 10,
    "rlhfv_jax.annotation.comparison": 11,
    "rlhfv_jax.annotation.app": 12,
    "rlhfv_jax.annotation.rows": 3,
    "rlhfv_jax.annotation.works": 4,
    "rlhfv_jax.annotation.exchange": 5,
    "rlhfv_jax.annotation.label_studio": 6,
    "rlhfv_jax.annotation.argilla": 7,
    "rlhfv_jax.annotation.archive": 5,
    "rlhfv_jax.annotation.tables": 4,
    "rlhfv_jax.annotation.outgoing": 8,
    "rlhfv_jax.comparing": 0,
    "rlhfv_jax.comparing.bundle": 1,
    "rlhfv_jax.comparing.thumbnails": 2,
    "rlhfv_jax.comparing.spans": 4,
    "rlhfv_jax.comparing.sets": 5,
    "rlhfv_jax.comparing.page": 6,
    "rlhfv_jax.comparing.votes": 6,
    "rlhfv_jax.checkpoint": 2,
    "rlhfv_jax.lora": 2,
    "rlhfv_jax.selection": 3,
    "rlhfv_jax.memory": 2,
    "rlhfv_jax.optim": 2,
    "rlhfv_jax.data.chat": 2,
    "rlhfv_jax.data.readers": 2,
    "rlhfv_jax.data.writers": 2,
    "rlhfv_jax.data.tfds.rlhfv": 2,
    "rlhfv_jax.data.tfds.vqa_v2": 2,
    "rlhfv_jax.models.layers": 1,
    "rlhfv_jax.miniature.captions": 2,
    "rlhfv_jax.data.encoding": 3,
    "rlhfv_jax.data.sources": 3,
    "rlhfv_jax.data.supervised": 3,
    "rlhfv_jax.data.pipeline": 4,
    "rlhfv_jax.inspection": 0,
    "rlhfv_jax.inspection.view": 4,
    "rlhfv_jax.inspection.page": 5,
    "rlhfv_jax.inspection.summary": 5,
    "rlhfv_jax.inspection.terminal": 5,
    "rlhfv_jax.data.hf_tokenizer": 2,
    "rlhfv_jax.conversion.torch_files": 2,
    "rlhfv_jax.streaming": 3,
    "rlhfv_jax.conversion.llama2c": 3,
    "rlhfv_jax.data.tokenizer_record": 3,
    "rlhfv_jax.models.beit3": 2,
    "rlhfv_jax.models.llama": 2,
    "rlhfv_jax.miniature.scoring": 3,
    "rlhfv_jax.miniature.words": 3,
    "rlhfv_jax.miniature.oracle": 4,
    "rlhfv_jax.miniature.rates": 4,
    "rlhfv_jax.models.vlm": 3,
    "rlhfv_jax.conversion.layouts": 7,
    "rlhfv_jax.conversion.muffin": 6,
    "rlhfv_jax.conversion.layout": 5,
    "rlhfv_jax.models.families": 5,
    "rlhfv_jax.models.muffin": 4,
    "rlhfv_jax.models.clip": 2,
    "rlhfv_jax.models.eva": 2,
    "rlhfv_jax.models.omnilmm": 4,
    "rlhfv_jax.conversion.omnilmm": 6,
    "rlhfv_jax.models.llava": 4,
    "rlhfv_jax.conversion.llava": 6,
    "rlhfv_jax.adapters": 4,
    "rlhfv_jax.conversion.parts": 4,
    "rlhfv_jax.conversion.table": 4,
    "rlhfv_jax.conversion.tokenizer_files": 4,
    "rlhfv_jax.conversion.sizes": 8,
    "rlhfv_jax.decoding.settings": 1,
    "rlhfv_jax.decoding.text": 1,
    "rlhfv_jax.decoding.processors": 2,
    "rlhfv_jax.decoding.stops": 2,
    "rlhfv_jax.decoding.batch": 2,
    "rlhfv_jax.decoding.forward": 4,
    "rlhfv_jax.decoding.sample": 5,
    "rlhfv_jax.decoding.beam": 6,
    "rlhfv_jax.decoding.engine": 7,
    "rlhfv_jax.loop": 5,
    "rlhfv_jax.miniature.corpus": 5,
    "rlhfv_jax.refcache": 5,
    "rlhfv_jax.settings": 6,
    "rlhfv_jax.featurecache": 5,
    "rlhfv_jax.steps": 5,
    "rlhfv_jax.miniature.answers": 6,
    "rlhfv_jax.miniature.typist": 6,
    "rlhfv_jax.evaluation": 7,
    "rlhfv_jax.miniature.pairs": 6,
    "rlhfv_jax.prepare": 7,
    "rlhfv_jax.conversion.to_orbax": 9,
    "rlhfv_jax.conversion.to_torch": 9,
    "rlhfv_jax.conversion.verify": 10,
    "rlhfv_jax.conversion.job": 11,
    "rlhfv_jax.evaluators": 8,
    "rlhfv_jax.experiment": 9,
    "rlhfv_jax.miniature.evaluation": 7,
    "rlhfv_jax.miniature.page": 0,
    "rlhfv_jax.miniature.page.readings": 2,
    "rlhfv_jax.reporting": 0,
    "rlhfv_jax.reporting.markup": 1,
    "rlhfv_jax.reporting.numbers": 1,
    "rlhfv_jax.reporting.published": 1,
    "rlhfv_jax.reporting.charts": 2,
    "rlhfv_jax.reporting.document": 2,
    "rlhfv_jax.reporting.marked": 2,
    "rlhfv_jax.reporting.tables": 2,
    "rlhfv_jax.reporting.cells": 2,
    "rlhfv_jax.reporting.runs": 2,
    "rlhfv_jax.reporting.examples": 3,
    "rlhfv_jax.reporting.figures": 3,
    "rlhfv_jax.reporting.paper": 3,
    "rlhfv_jax.reporting.scaling": 3,
    "rlhfv_jax.reporting.evaluation_page": 4,
    "rlhfv_jax.miniature.page.exhibits": 3,
    "rlhfv_jax.miniature.page.findings": 3,
    "rlhfv_jax.miniature.page.tables": 3,
    "rlhfv_jax.miniature.page.plots": 4,
    "rlhfv_jax.miniature.report": 5,
    "rlhfv_jax.miniature.terminal": 5,
    "rlhfv_jax.miniature.showcase": 8,
    "rlhfv_jax.miniature.pretrain": 10,
    "rlhfv_jax.miniature.recipe": 8,
    "rlhfv_jax.miniature.details": 10,
    "rlhfv_jax.miniature.pipeline": 11,
    "rlhfv_jax.miniature.seeds": 12,
    "rlhfv_jax.planning": 0,
    "rlhfv_jax.planning.targets": 1,
    "rlhfv_jax.planning.schedule": 1,
    "rlhfv_jax.planning.roofline": 2,
    "rlhfv_jax.planning.alternatives": 7,
    "rlhfv_jax.planning.estimate": 10,
    "rlhfv_jax.cli": 12,
    "rlhfv_jax.annotate": 13,
    "rlhfv_jax.oracle": 13,
    "rlhfv_jax.compare": 13,
    "rlhfv_jax.evaluate": 13,
    "rlhfv_jax.plan": 13,
    "rlhfv_jax.inspect": 13,
    "rlhfv_jax.convert": 13,
    "rlhfv_jax.generate": 13,
    "rlhfv_jax.reference": 13,
    "rlhfv_jax.report": 13,
    "rlhfv_jax.serve": 13,
    "rlhfv_jax.train": 13,
    "rlhfv_jax.__main__": 14,
}
FLAGS_FLOOR = FLOOR["rlhfv_jax.cli"]  # from here on a file may read flags and ConfigDicts

# The subset of flax.linen that the models are written in: no mutable collections, no boxes, no logical axes.
LINEN = {"Module", "compact", "scan", "remat", "broadcast", "initializers", "silu"}
FORBIDDEN_METHODS = {"sow", "variable", "put_variable", "perturb", "make_rng"}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(name: str) -> set[str]:
    """Every module that the file imports, at any depth; `from a import b` is a.b where that is a module."""
    found = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in TREES else node.module)
    return found


def roots(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports(name)}


def test_every_module_has_a_floor_and_every_floor_a_module():
    assert set(FLOOR) == set(TREES)


@pytest.mark.parametrize("name", TREES)
def test_a_module_imports_from_strictly_lower_floors(name):
    inner = {module for module in imports(name) if module.split(".")[0] == "rlhfv_jax"}
    assert sorted(module for module in inner if FLOOR[module] >= FLOOR[name]) == []


def test_data_never_imports_jax():
    outside = {"jax", "jaxlib", "flax", "optax", "orbax"}
    for name in TREES:
        if name.startswith(("rlhfv_jax.data", "rlhfv_jax.structs", "rlhfv_jax.errors")):
            assert not roots(name) & outside, name


def test_models_and_data_do_not_know_each_other():
    for name in TREES:
        other = {"models": "rlhfv_jax.data", "data": "rlhfv_jax.models"}.get(name.split(".")[1] if "." in name else "")
        assert other is None or not any(module.startswith(other) for module in imports(name)), name


def test_losses_never_see_a_model():
    assert not any(module.startswith(("rlhfv_jax", "flax")) for module in imports("rlhfv_jax.losses"))


def test_only_programs_read_flags_and_config_dicts():
    readers = {name for name in TREES if roots(name) & {"absl", "ml_collections"}}
    assert "rlhfv_jax.cli" in readers
    assert sorted(name for name in readers if FLOOR[name] < FLAGS_FLOOR) == []


def test_models_keep_to_the_linen_subset():
    used = set()
    for name, tree in TREES.items():
        flax = {module for module in imports(name) if module.split(".")[0] == "flax"}
        assert not flax or (flax == {"flax.linen"} and name.startswith("rlhfv_jax.models.")), name
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.module is None or not node.module.startswith("flax"), f"{name}: write `nn.`"
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nn":
                used.add(node.attr)
            if flax and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr not in FORBIDDEN_METHODS, f"{name}: {node.func.attr}"
    assert used == LINEN


def test_only_the_attention_room_knows_attention_back_ends():
    for name, tree in TREES.items():
        attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert name == "rlhfv_jax.ops.attention" or not attributes & {"dot_product_attention", "pallas"}, name


@pytest.mark.parametrize("name", TREES)
def test_files_and_functions_stay_small(name):
    assert len(SOURCES[name].read_text().splitlines()) <= 400
    long = [
        node.name
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 80
    ]
    assert long == []


def test_most_files_are_under_250_lines():
    lengths = [len(path.read_text().splitlines()) for path in SOURCES.values()]
    assert sum(length < 250 for length in lengths) > 0.8 * len(lengths)


def test_there_is_no_room_for_odds_and_ends():
    assert {name.split(".")[-1] for name in TREES}.isdisjoint({"utils", "util", "helpers", "common", "misc"})


@pytest.mark.parametrize("name", TREES)
def test_every_file_says_what_it_is(name):
    assert ast.get_docstring(TREES[name])
