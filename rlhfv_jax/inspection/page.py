"""A view as one self-contained HTML page, with the picture."""

import base64
import html
from typing import Any

from rlhfv_jax.inspection.view import sides

STYLE = """
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { max-width: 28rem; max-height: 28rem; display: block; margin: 1rem 0; border: 1px solid #ccc; }
.row { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; border-radius: 4px; padding: .7rem; }
.prompt { color: #888; } .target { color: #111; }
.chosen .corrected { background: #c8ecd0; } .rejected .corrected { background: #f9cfcf; }
.corrected { font-weight: 600; border-radius: 2px; }
"""


def page(view: dict[str, Any], image: bytes) -> str:
    """The page's text: what the row is, its picture, and every token with its weight (on pointing, its id too)."""
    facts = view["image"]
    kind = html.escape(f"image/{facts['format'].lower()}")
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        f"<title>Row {view['index']}</title><style>{STYLE}</style>",
        f"<h1>Row {view['index']}</h1><p>id {html.escape(view['id'])}, {html.escape(view['where'])}, "
        f"{facts['width']} × {facts['height']} pixels</p>",
        f'<img alt="The row\'s image" src="data:{kind};base64,{base64.b64encode(image).decode()}">',
    ]
    if "question" in view:
        parts.append(f"<p><b>Question</b> {html.escape(view['question'])}</p>")
    for name in sides(view):
        parts.append(_row(name, view[name]))
    parts.append("<p>Gray: prompt. Black: targets. Marked: corrected tokens, with more weight.</p></html>")
    return "\n".join(parts)


def _row(name: str, side: dict[str, Any]) -> str:
    targets = sum(weight > 0 for weight in side["weights"])
    tokens = []
    for piece, token, weight in zip(side["pieces"], side["tokens"], [0.0, *side["weights"]], strict=True):
        kind = "prompt" if weight == 0 else "target" if weight == 1 else "corrected"
        text = "↵\n" if piece == "<0x0A>" else piece.replace("▁", " ")
        tokens.append(f'<span class="{kind}" title="{token}, weight {weight:g}">{html.escape(text)}</span>')
    return (
        f"<h2>{name.capitalize()}</h2><p>{len(side['tokens'])} tokens, {targets} targets</p>"
        f'<div class="row {name}">{"".join(tokens)}</div>'
    )
