"""The public names: each says what it is; what takes or gives arrays says their shapes, what refuses input says so."""

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


@pytest.mark.parametrize(
    ("written", "found"),
    [("tokens: int32[B, 2, T]", True), ("logits [B, T, V]", True), ("the loss, a scalar", True), ("a list [x]", False)],
)
def test_what_counts_as_a_shape(written, found):
    assert bool(SHAPE.search(written)) == found
