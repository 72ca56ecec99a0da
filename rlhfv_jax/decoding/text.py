"""From token ids to the text of an answer, at once or as it comes."""

from collections.abc import Callable, Sequence

_INCOMPLETE = "�"  # how a decoder shows bytes that are no whole character yet


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop string, without white space around it, and whether there was one."""
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)].strip() if found else text.strip(), bool(found)


class TextStream:
    """The text of a growing answer in pieces that together are exactly what `cut` says of the whole.

    A piece is held back while it may belong to a stop string, to a character that is not complete, or to white space
    at the end of the answer.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str]):
        self._decode, self._stops = decode, stops
        self._sent = 0

    def push(self, token_ids: Sequence[int], final: bool = False) -> str:
        """What the answer has become longer by, given all its tokens so far; `final` where no more will come."""
        text = self._decode(token_ids)
        visible, stopped = cut(text, self._stops)
        if not final and not stopped:
            text = text.rstrip(_INCOMPLETE)
            visible = text[: len(text) - self._held(text)].strip()
        delta, self._sent = visible[self._sent :], max(self._sent, len(visible))
        return delta

    def _held(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0
