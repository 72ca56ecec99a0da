"""The documentation, held: commands parse, files come from somewhere, links lead somewhere, quotes are true."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import doc_commands
import pytest
from doc_commands import ALL, PAGES, ROOT, Command, blocks

from rlhfv_jax import cli, settings
from rlhfv_jax.__main__ import PROGRAMS

BRINGS = {  # what a reader brings along, by the name that the pages give it
    "pairs.parquet": "preference pairs",
    "RLHF-V-Dataset.parquet": "the published pairs",
    "tokenizer.model": "a sentencepiece tokenizer",
    "questions.jsonl": "questions with images",
    "answers.jsonl": "what `generate` wrote",
    "answers": "a folder of answers, a file a benchmark",
    "pope.jsonl": "answers to POPE",
    "mmhal.jsonl": "answers to MMHal-Bench",
    "dev_pope.jsonl": "questions of a development split",
    "ten_questions.jsonl": "questions",
    "benchmarks": "the official files",
    "runs/rlhfv": "a run, on pages that do not train one",
    "runs/demo": "what `make demo` leaves",
    "BASE": "a checkpoint",
    "RLHF-V": "released weights",
    "RLHF-V_SFT": "released weights",
    "llava-v1.5-7b": "released weights",
    "vicuna-13b": "released weights",
    "beit3_large_patch16_224.pth": "released weights",
    "keys.txt": "names and shapes",
    "scores/base": "what `evaluate` wrote",
    "scores/ddpo": "what `evaluate` wrote",
    "scores/ddpo-200": "what `evaluate` wrote",
    "scores/rlhfv": "what `evaluate` wrote",
    "base.jsonl": "what `generate` wrote",
    "dpo.jsonl": "what `generate` wrote",
    "ddpo.jsonl": "what `generate` wrote",
    "runs/mini/base": "a checkpoint",
    "asked/questions.jsonl": "questions to annotate the answers of",
    "held/questions.jsonl": "questions to measure with",
    "labels/spans.jsonl": "what `annotate` exported",
}
INPUTS = ["src", "tower", "checkpoint", "questions", "references", "compare", "runs", "scaling", "tokenizer", "import"]
INPUTS += [f"config.{key}" for key in ("data.path", "data.eval_path", "tokenizer", "init_from", "reference_cache")]
INPUTS += ["config.evals.references", "spans", "votes"]
OUTPUTS = ["dst", "out", "workdir", "export", "export_votes", "project"]
TOOLS = {"source", "pip", "hf", "make", "bash", "python", "rlhfv"}  # what a command may begin with


def of_programs() -> list[Command]:
    return [command for command in ALL if command.program in PROGRAMS]


def test_every_command_is_one_that_is_checked_here():
    for command in ALL:
        assert command.words[0] in TOOLS, command.where
        known = command.program in PROGRAMS or command.words in (("rlhfv", "--help"),)
        assert known or command.words[0] in TOOLS - {"python", "rlhfv"}, command.where


def test_programs_take_the_flags_keys_and_values_of_every_command_and_no_module_warns_when_imported():
    wrong = [["train", ["--config=ddpo.py", "--config.ddpo.gama=1"]], ["plan", ["--topologie=v5p:8"]]]
    lines = [*wrong, *([command.program, command.arguments] for command in of_programs())]
    script = [sys.executable, "-W", "error", str(ROOT / "tests" / "parse_commands.py")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        script, input=json.dumps(lines), capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    problems = json.loads(result.stdout)
    assert all(problems[:2]), "a misspelled flag or key went through"
    found = zip(of_programs(), problems[2:], strict=True)
    assert {command.where: problem for command, problem in found if problem} == {}


def inputs_of(command: Command) -> list[str]:
    flags = [*INPUTS, "answers"] if command.program == "evaluate" else INPUTS
    found = [word.split("=", 1)[1] for word in command.words for flag in flags if word.startswith(f"--{flag}=")]
    found = [one for value in found for one in value.split(",")] + [w for w in command.arguments if w[:2] != "--"]
    return [value.split("=", 1)[1] if command.program == "report" and "=" in value else value for value in found]


def outputs_of(command: Command) -> list[str]:
    flags = [*OUTPUTS, "answers"] if command.program == "generate" else OUTPUTS
    return [command.value(flag) for flag in flags if command.value(flag)]


@pytest.mark.parametrize("page", sorted({command.page for command in ALL}))
def test_every_file_that_a_command_reads_is_brought_along_or_made_further_up_the_page(page):
    known = set(BRINGS)
    for command in (command for command in ALL if command.page == page):
        for value in inputs_of(command):
            parts = [value, *(str(parent) for parent in Path(value).parents)]
            assert known & set(parts), f"{command.where}: where does {value} come from?"
        known |= set(outputs_of(command))


def test_what_is_no_program_exists_too():
    makefile = (ROOT / "Makefile").read_text()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in ALL:
        if command.words[0] == "make":
            target = command.words[1]
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command.where
        if command.words[0] == "bash":
            assert (ROOT / command.words[1]).is_file(), command.where
        if command.words[:2] == ("pip", "install"):
            named = re.search(r"\[([\w,]+)\]", command.words[2])
            assert named and set(named[1].split(",")) <= set(extras), command.where


def prose() -> dict[str, str]:
    return {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}


def test_keys_and_programs_that_the_prose_names_exist():
    ddpo = cli._keys(cli._load(str(cli.config_folder() / "ddpo.py")))
    demo = cli._keys(cli._load(str(cli.config_folder() / "demo.py")))
    known, groups = {*ddpo, *demo}, {key.split(".")[0] for key in ddpo if "." in key}
    makefile = (ROOT / "Makefile").read_text()
    for page, text in prose().items():
        for code in re.findall(r"`([^`\n]+)`", text):
            key = re.match(r"(?:--config\.|config\.)?((?:\w+\.)*\w+)(?:=.*)?$", code)
            if key and (code.startswith("--config.") or (key[1].split(".")[0] in groups and "." in key[1])):
                name = key[1]
                stem = (ROOT / "rlhfv_jax" / name.replace(".", "/")).with_suffix(".py")
                module = stem.exists() or stem.parent.with_suffix(".py").exists() or name.endswith((".py", ".json"))
                assert name in known or module or name == "key", f"{page}: {code}"
            if match := re.match(r"rlhfv (\w+)", code):
                assert match[1] in PROGRAMS, f"{page}: {code}"
            if match := re.match(r"make ([\w-]+)", code):
                assert re.search(rf"^{match[1]}:", makefile, re.MULTILINE), f"{page}: {code}"
            if match := re.match(r"(?:python )?((?:benchmarks|tests|launch|configs|rlhfv_jax)/[\w/.-]+\w)", code):
                assert (ROOT / match[1]).exists() or "*" in code, f"{page}: {code}"


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as both GitHub and the site make them from plain words."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_link_and_image_leads_somewhere():
    for path in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            found = (path.parent / name).resolve() if name else path
            generated = path.name == "index.md" and target in ("api.md", "contributing.md")  # by docs/hooks.py
            assert generated or found.exists(), f"{path.name}: {target}"
            assert not anchor or anchor in anchors(found), f"{path.name}: {target}"


def test_every_page_and_every_picture_is_led_to():
    index = (ROOT / "docs" / "index.md").read_text() + (ROOT / "mkdocs.yml").read_text()
    text = "".join(prose().values())
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in index, page.name
    for picture in (ROOT / "docs" / "images").iterdir():
        assert f"images/{picture.name}" in text, picture.name


def texts_of_the_code() -> str:
    """Every text in the package, a placeholder of an f-string as …, adjacent ones joined."""
    found = []
    for path in (ROOT / "rlhfv_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(v.value if isinstance(v, ast.Constant) else "…" for v in node.values))
    return "\n".join(found)


def test_every_error_that_troubleshooting_quotes_stands_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    code = texts_of_the_code()
    assert len(quoted) > 40
    assert [sentence for sentence in quoted if sentence.strip("… ") not in code and sentence != "rewards/chosen"] == []


def test_every_test_and_key_that_fidelity_names_exists():
    page = (ROOT / "docs" / "fidelity.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", page)
    assert len(named) > 30
    assert [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()] == []


def test_nothing_is_misspelled_by_a_list_of_known_misspellings():
    where = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "docs", "mkdocs.yml", ".github"]
    where += ["rlhfv_jax", "configs", "launch", "benchmarks"]
    command = [sys.executable, "-m", "codespell_lib", "--builtin=clear,rare,en-GB_to_en-US", *where]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert result.returncode == 0, result.stdout


def test_python_blocks_compile_and_their_imports_exist():
    for page in PAGES:
        for line, block in blocks(page, "python"):
            tree = ast.parse(block)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom):
                    module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                    for alias in node.names:
                        assert hasattr(module, alias.name), f"{page.name}:{line}: {alias.name}"


def test_a_sentence_of_the_pages_that_is_about_the_default_recipe_is_true():
    """γ 5, β 0.5, 7 epochs, batch 32, learning rate 5e-7, as the README prints them."""
    readme = (ROOT / "README.md").read_text()
    s = settings.from_dict(cli._load(str(cli.config_folder() / "ddpo.py")).to_dict())
    said = re.search(r"γ (\S+), β (\S+), (\d+) epochs, batch (\d+),\s+learning rate (\S+)\)", readme)
    assert said, "the README no longer prints the recipe; move this test with it"
    values = [float(value) for value in said.groups()]
    assert values == [s.ddpo.gamma, s.ddpo.beta, s.optim.epochs, s.optim.batch_size, s.optim.lr]


def test_every_figure_that_the_readme_calls_measured_stands_on_the_page_it_links_to():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme[readme.index("## Measured") : readme.index("## Limits")]
    rows = re.findall(r"^\| (.+) \| (.+) \| \[\w+\]\((docs/\w+\.md)#", table, re.MULTILINE)
    assert len(rows) > 6
    for what, figures, page in rows:
        text = (ROOT / page).read_text(encoding="utf-8")
        for number in re.findall(r"\d+(?:\.\d+)?", figures):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d])", text), f"{what}: {number} is not in {page}"


def test_the_extraction_joins_lines_and_sees_a_variable():
    found = [c for c in doc_commands.ALL if c.page == "docs/serve.md"]
    assert found[0].environment == {"RLHFV_TOKEN": "secret"} and found[0].program == "serve"
    assert all("\\" not in word for command in ALL for word in command.words)
