"""The commands of the documentation: every line of a bash block, with its page."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PROGRAM = re.compile(r"rlhfv_jax\.(\w+)")
ELLIPSIS = "..."  # on a page: and the flags of the command above


@dataclass(frozen=True)
class Command:
    """One command: where it stands, its environment variables, and its words."""

    page: str
    line: int
    environment: dict[str, str]
    words: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def program(self) -> str:
        """The program of this package that it starts, or nothing."""
        if self.words[0] == "rlhfv" and self.words[1][0] != "-":
            return self.words[1]
        if self.words[:2] == ("python", "-m") and (match := PROGRAM.fullmatch(self.words[2])):
            return match[1]
        return ""

    @property
    def arguments(self) -> list[str]:
        """The program's own arguments, an ellipsis left out."""
        skipped = 2 if self.words[0] == "rlhfv" else 3
        return [word for word in self.words[skipped:] if word != ELLIPSIS]

    @property
    def abridged(self) -> bool:
        return ELLIPSIS in self.words

    def value(self, flag: str) -> str:
        """The last value of --flag=value, or nothing."""
        return next((w.split("=", 1)[1] for w in reversed(self.words) if w.startswith(f"--{flag}=")), "")


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the line of its first row."""
    text = path.read_text(encoding="utf-8")
    return [(text[: m.start(2)].count("\n") + 1, m[2]) for m in BLOCK.finditer(text) if m[1] == language]


def commands(path: Path) -> list[Command]:
    """The commands of a page's bash blocks, in order; comments are left out, continued lines joined."""
    found = []
    for first, block in blocks(path, "bash"):
        joined, start = "", 0
        for offset, row in enumerate(block.splitlines()):
            start = start if joined else first + offset
            joined += row.removesuffix("\\")
            if row.endswith("\\"):
                continue
            words = [word for word in shlex.split(joined, comments=True) if word != "&"]
            joined = ""
            environment = {}
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, environment[name] = words.pop(0).partition("=")
            if words:
                found.append(Command(path.relative_to(ROOT).as_posix(), start, environment, tuple(words)))
    return found


ALL = [command for page in PAGES for command in commands(page)]
