"""A view or a summary on a terminal, in color; in a pipe plain, with [brackets] around corrected tokens."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhfv_jax.inspection.view import runs, sides, spelled

STYLES = {"chosen": "bold green", "rejected": "bold red", "example": "bold"}


def print_view(view: dict[str, Any]) -> None:
    """Prints the row: what it is, and of each answer the prompt, the targets and the corrected tokens."""
    console = _console()
    image = view["image"]
    console.print(Text(f"row {view['index']}, id {view['id']}, {view['where']}", style="bold"))
    size = f"{image['format']}, {image['width']} x {image['height']} pixels, {image['bytes']} bytes"
    origin = f", origin {view['origin']}" if view["origin"] else ""
    console.print(Text(f"image: {size}{origin}"))
    if "question" in view:
        console.print(Text(f"question: {view['question']}"))
    for name in sides(view):
        side = view[name]
        marked = [weight for weight in side["weights"] if weight not in (0, 1)]
        weighed = f", {len(marked)} corrected with weight {marked[0]:g}" if marked else ""
        targets = sum(weight > 0 for weight in side["weights"])
        console.print()
        console.print(Text(f"{name}: {len(side['tokens'])} tokens, {targets} targets{weighed}", style=STYLES[name]))
        console.print(_colored(side, STYLES[name], brackets=not console.is_terminal))
        if side.get("segments"):
            noted = [f"{s['text']!r} ({s['type']})" if s["type"] else repr(s["text"]) for s in side["segments"]]
            console.print(Text(f"annotated: {', '.join(noted)}"))


def print_table(rows: list[tuple[str, str]]) -> None:
    """Prints names and values in two columns."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    _console().print(table)


def _colored(side: dict[str, Any], style: str, brackets: bool) -> Text:
    text = Text()
    for kind, _, pieces in runs(side):
        word = spelled(pieces)
        if kind == "corrected" and brackets:
            space = " " if word.startswith(" ") else ""
            word = f"{space}[{word[len(space) :]}]"
        text.append(word, style={"prompt": "dim", "target": "", "corrected": f"{style} underline"}[kind])
    return text


def _console() -> Console:
    # In a pipe there is no width to fit: one line an answer.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=100_000, highlight=False, soft_wrap=True)
