"""What the site has beyond docs/: the API by package, the configs, and the pages that stand at the project's root."""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rlhfv_jax"
AT_THE_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+)\)")  # a link from docs/ to a file of the checkout
INSIDE = re.compile(r"\]\(docs/([\w./#-]+)\)")  # a link from the root to a page


def packages() -> dict[str, list[str]]:
    """The modules of each package by the package's name, in the order of their names."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__"):
            found.setdefault(".".join(parts[:-1]), []).append(".".join(parts))
    return dict(sorted(found.items()))


def first_line(module: str) -> str:
    """The first line of a module's or a package's docstring."""
    path = ROOT / Path(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").splitlines()[0]


def overview() -> str:
    lines = [
        "# API",
        "",
        "Every public name with its docstring, a page a package. Files import from lower floors alone, so each page",
        "can be read on its own; [Contributing](contributing.md) has the plan.",
        "",
        "| package | what |",
        "|---|---|",
    ]
    lines += [f"| [`{name}`](api/{name}.md) | {first_line(name)} |" for name in packages()]
    lines += ["", "The configurations, each key with the paper's value and its section:", ""]
    lines += [f"- [`{path.name}`](configs/{path.stem}.md)" for path in sorted((ROOT / "configs").glob("*.py"))]
    return "\n".join([*lines, ""])


def package_page(name: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {name}", first_line(name), *(f"::: {module}" for module in modules)])


def config_page(path: Path) -> str:
    return f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"


def on_files(files, config):
    pages = {"api.md": overview()}
    pages |= {f"api/{name}.md": package_page(name, modules) for name, modules in packages().items()}
    pages |= {f"configs/{path.stem}.md": config_page(path) for path in sorted((ROOT / "configs").glob("*.py"))}
    for source, page in AT_THE_ROOT.items():
        pages[page] = INSIDE.sub(r"](\1)", (ROOT / source).read_text(encoding="utf-8"))
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that leave docs/ go to the page that shows the file; others are named without a link."""

    def inner(match: re.Match) -> str:
        target = match[1]
        if target in AT_THE_ROOT:
            return f"]({AT_THE_ROOT[target]})"
        if target.startswith("configs/"):
            return f"]({target.removesuffix('.py')}.md)"
        raise ValueError(f"{page.file.src_uri} links to {target}, which the site does not show.")

    return OUTSIDE.sub(inner, markdown) if "/" not in page.file.src_uri else markdown
