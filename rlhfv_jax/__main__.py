"""`rlhfv PROGRAM ...` and `python -m rlhfv_jax PROGRAM ...`: the same as `python -m rlhfv_jax.PROGRAM ...`."""

import difflib
import importlib
import sys

PROGRAMS = {
    "train": "train with DDPO or supervised fine-tuning",
    "reference": "compute the reference's log-probs of preference pairs",
    "convert": "convert weights from PyTorch to Orbax and back",
    "generate": "answer questions with a checkpoint or another server's model",
    "serve": "answer OpenAI's chat-completion requests with a checkpoint",
    "plan": "say whether a configuration fits on hardware that is not here",
    "evaluate": "score answers on a benchmark as its official script does",
    "report": "build a page of scores beside the paper's tables",
    "compare": "show several models' answers side by side on one page, and count blind votes",
    "inspect": "show a data set as the loss sees it",
    "annotate": "serve the annotation application, import to it, export from it",
    "oracle": "stand in for people on the miniature: questions, corrections, scores",
}


def main() -> None:
    """Runs the program named by the first argument."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print("usage: rlhfv PROGRAM [--help] [--flag=value ...]\n")
        for name, summary in PROGRAMS.items():
            print(f"  {name:<12}{summary}")
        sys.exit(0 if len(sys.argv) > 1 else 2)
    name = sys.argv[1]
    if name not in PROGRAMS:
        near = difflib.get_close_matches(name, PROGRAMS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]}?" if near else ""
        print(f"error: There is no program {name!r}; choose one of {', '.join(PROGRAMS)}.{hint}", file=sys.stderr)
        sys.exit(2)
    sys.argv = [f"rlhfv {name}", *sys.argv[2:]]
    importlib.import_module(f"rlhfv_jax.{name}").main()


if __name__ == "__main__":
    main()
