"""The public names: each says what it is; what takes or gives arrays says their shapes, what refuses input says so.

What takes a time or a number of bytes says its unit, and what computes something published says where.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rlhfv_jax"
WITH_SHAPES = ("structs", "losses", "ops", "models", "decoding", "data")  # where arrays are the matter
ARRAY = re.compile(r"\b(Array|ndarray|NDArray|ArrayLike)\b")
SHAPE = re.compile(r"(?:\d|bool|text)\[|\[[A-Z0-9.…][^\]]*\]|\[n, |\bscalar|\bshape\b")  # uint8[size], [B, T], "scalar"
REFUSAL = re.compile(r"\b(Raises|[Rr]efuse[sd]?|UserError|[Ee]rror|exits?)\b")
MEASURE = re.compile(r"(?:^|_)(timeout|wait|delay|pause|deadline|duration|age|elapsed|bytes|megabytes|limit)(?:_|$)")
UNIT = re.compile(r"second|\bms\b|minute|hour|\bday|byte|[KMG]iB|\b[kMG]B\b|token|item|answer|character|per ?cent|95 %")
CITED = re.compile(r"\b[A-Z][\w'-]+(?: and [A-Z][\w'-]+| et al\.)?,? (?:19|20)\d\d\b|\bpaper\b")
OUTSIDE = (  # what these compute was published by others
    *("losses", "optim", "lora", "ops/attention", "ops/logprobs", "annotation/agreement", "annotation/diff"),
    *("models/" + name for name in ("llama", "layers", "beit3", "clip", "eva", "muffin", "llava", "omnilmm", "vlm")),
    *("evals/" + name for name in ("amber", "amber_descriptions", "pope", "mme", "seed_bench", "mmhal", "llava_bench")),
    *("evals/" + name for name in ("vqa", "objhal", "over_generalization", "mhumaneval", "statistics", "lemmas")),
)


@dataclass(frozen=True)
class Name:
    """A public function, class or method: where it is, itself, and the class it belongs to."""

    path: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    source: str
    owner: ast.ClassDef | None = None

    @property
    def doc(self) -> str:
        return ast.get_docstring(self.node) or ""

    @property
    def documented(self) -> str:
        """The docstring and that of the class; of a class also the comments at its fields."""
        owner = (ast.get_docstring(self.owner) or "") if self.owner else ""
        return self.doc + owner + (self.source if isinstance(self.node, ast.ClassDef) else "")


def public_names() -> Iterator[Name]:
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        text = path.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                yield Name(f"{module}.{node.name}", node, ast.get_source_segment(text, node) or "")
                for inner in node.body if isinstance(node, ast.ClassDef) else []:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and inner.name[0] != "_":
                        yield Name(f"{module}.{node.name}.{inner.name}", inner, "", node)


NAMES = list(public_names())
CLASSES = {name.node.name: name.node for name in NAMES if isinstance(name.node, ast.ClassDef)}


def inherits_words(name: Name) -> bool:
    """Whether a class that this one extends has a method of this name with a docstring."""
    bases = [getattr(base, "id", getattr(base, "attr", "")) for base in name.owner.bases] if name.owner else []
    seen: set[str] = set()
    while bases:
        base = CLASSES.get(one := bases.pop())
        if base is None or one in seen:
            continue
        seen.add(one)
        for inner in base.body:
            if isinstance(inner, ast.FunctionDef) and inner.name == name.node.name and ast.get_docstring(inner):
                return True
        bases += [getattr(further, "id", getattr(further, "attr", "")) for further in base.bases]
    return False


def is_route(node: ast.AST) -> bool:
    """A handler of HTTP requests: its path in the module's list of routes says what it is."""
    return isinstance(node, ast.AsyncFunctionDef) and bool(node.args.args) and node.args.args[0].arg == "request"


def test_every_public_name_has_a_docstring():
    assert len(NAMES) > 1000
    assert [n.path for n in NAMES if not n.doc and not inherits_words(n) and not is_route(n.node)] == []


def takes_arrays(node: ast.AST) -> bool:
    if isinstance(node, ast.ClassDef):
        fields = [inner.annotation for inner in node.body if isinstance(inner, ast.AnnAssign)]
        return any(ARRAY.search(ast.unparse(field)) for field in fields)
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [node.returns]
    return any(one is not None and ARRAY.search(ast.unparse(one)) for one in annotations)


def with_arrays() -> list[Name]:
    return [n for n in NAMES if n.path.split(".")[0] in WITH_SHAPES and takes_arrays(n.node)]


def test_names_that_take_or_give_arrays_say_their_shapes():
    assert len(with_arrays()) > 50
    silent = [name for name in with_arrays() if not SHAPE.search(name.documented)]
    assert [name.path for name in silent if not inherits_words(name)] == []


def refuses(node: ast.AST) -> bool:
    """Whether the body itself raises the user's error; what functions that it calls raise is theirs to say."""
    raised = [inner.exc for inner in ast.walk(node) if isinstance(inner, ast.Raise)]
    return any(isinstance(one, ast.Call) and getattr(one.func, "id", "") == "UserError" for one in raised)


def test_functions_that_refuse_input_say_so():
    checked = [n for n in NAMES if not isinstance(n.node, ast.ClassDef) and refuses(n.node)]
    assert len(checked) > 100
    assert [name.path for name in checked if not REFUSAL.search(name.documented)] == []


def measures(node: ast.AST) -> list[str]:
    """The arguments or fields whose names speak of a time or of bytes."""
    if isinstance(node, ast.ClassDef):
        names = [i.target.id for i in node.body if isinstance(i, ast.AnnAssign) and isinstance(i.target, ast.Name)]
    else:
        names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
    return [name for name in names if MEASURE.search(name)]


def test_names_that_take_a_time_or_bytes_say_the_unit():
    measured = [name for name in NAMES if measures(name.node)]
    assert len(measured) > 10
    silent = [name for name in measured if not UNIT.search(name.documented) and not inherits_words(name)]
    assert [(name.path, measures(name.node)) for name in silent] == []


@pytest.mark.parametrize("module", OUTSIDE)
def test_what_computes_something_published_names_its_source(module):
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert CITED.search("\n".join(ast.get_docstring(node) or "" for node in [tree, *nodes]))


@pytest.mark.parametrize(
    ("written", "found"),
    [("tokens: int32[B, 2, T]", True), ("logits [B, T, V]", True), ("the loss, a scalar", True), ("a list [x]", False)],
)
def test_what_counts_as_a_shape(written, found):
    assert bool(SHAPE.search(written)) == found
