"""Puts several models' answers to the same questions side by side on one self-contained HTML page.

    python -m rlhfv_jax.compare base.jsonl dpo.jsonl ddpo.jsonl --questions=questions.jsonl --out=compare.html
    python -m rlhfv_jax.compare base.jsonl ddpo.jsonl --questions=questions.jsonl --names=Base,DDPO \\
        --spans=labels/spans.jsonl --out=compare.html
    python -m rlhfv_jax.compare --votes=votes.jsonl

The answer files are what `generate` wrote. The page needs no network: it shows what differs from a chosen model, and
what people marked (--spans). It takes blind votes too, which --votes counts.
`rlhfv annotate --compare` serves the same view, with names that stay on the server until the vote.
"""

import json
from pathlib import Path

from absl import flags

from rlhfv_jax import cli
from rlhfv_jax.comparing import sets, thumbnails, votes
from rlhfv_jax.comparing.page import page
from rlhfv_jax.errors import UserError
from rlhfv_jax.reporting import document

_QUESTIONS = flags.DEFINE_string("questions", "", "The questions, with images; without it the answers' own prompts.")
_IMAGES = flags.DEFINE_string("images", "", "The folder that image paths start from; default: the questions' own.")
_NAMES = flags.DEFINE_list("names", [], "The models' names, in the order of the files.")
_SPANS = flags.DEFINE_multi_string("spans", [], "What people marked: spans.jsonl, or NAME.segments.jsonl beside pairs.")
_OUT = flags.DEFINE_string("out", "", "The HTML file to write.")
_TITLE = flags.DEFINE_string("title", "Comparison", "The page's heading.")
_IMAGE_MB = flags.DEFINE_float("image_mb", 20.0, "The images take at most so many megabytes of the page.", 0.0)
_VOTES = flags.DEFINE_multi_string("votes", [], "Print the win rates of downloaded or exported votes.")
_FORMAT = flags.DEFINE_enum("format", "text", ["text", "json"], "How to print.")
_OPTIONS = (_QUESTIONS, _IMAGES, _NAMES, _SPANS, _OUT, _TITLE, _IMAGE_MB, _VOTES, _FORMAT)


def main() -> None:
    """Runs the program."""
    files: list[str] = []
    cli.run(lambda: _main(files), __doc__ or "", _OPTIONS, files=files)


def _main(files: list[str]) -> None:
    if _VOTES.value:
        if files:
            raise UserError("--votes counts votes; leave the answer files out.")
        _count(votes.read(_VOTES.value))
        return
    if not _OUT.value:
        raise UserError("Name the page to write as --out=FILE.html.")
    comparison = sets.read(files, _QUESTIONS.value, _NAMES.value, _SPANS.value, _IMAGES.value)
    images = thumbnails.embed([item.question for item in comparison.items], int(_IMAGE_MB.value * 1e6))
    html = page(comparison, images, _TITLE.value)
    out = Path(_OUT.value)
    try:
        document.write(out, html)
    except OSError as error:
        raise UserError(f"Cannot write {out}: {error.strerror or error}.") from error
    _print(comparison, images, out)


def _count(cast: list[votes.Vote]) -> None:
    """The win rates of every comparison that was voted on."""
    for digest, some in votes.by_comparison(cast).items():
        found = votes.rates(some)
        if _FORMAT.value == "json":
            print(json.dumps({"comparison": digest} | found, ensure_ascii=False))
        else:
            print("\n".join(votes.lines(found)))


def _print(comparison: sets.Comparison, images: thumbnails.Thumbnails, out: Path) -> None:
    size = out.stat().st_size
    shown = {"side": images.side, "bytes": images.size, "different": len(images.urls), "broken": images.broken}
    if _FORMAT.value == "json":
        values = {"out": str(out), "bytes": size, "counts": comparison.counts, "images": shown}
        print(json.dumps(values, ensure_ascii=False))
        return
    names = ", ".join(comparison.names)
    print(f"{out}: {len(comparison.items)} questions, {names}; {size / 1e6:.1f} MB, images of {images.side} pixels")
    for note in sets.notes(comparison):
        print(f"  {note}")
    for problem in images.broken[:5]:
        print(f"  no image for {problem}")
    if len(images.broken) > 5:
        print(f"  no image for {len(images.broken) - 5} more questions")


if __name__ == "__main__":
    main()
