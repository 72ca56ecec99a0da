"""Stop strings as automata over token ids, so that the device finds them whichever tokens spell them.

A stop string of n bytes has the states 0..n: how many of its first bytes the answer ends with. Every token moves each
state to another one, by the bytes that it stands for; a table holds all those moves, and state n is never left.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rlhfv_jax.data.tokenizer import CONTROL, PAD, Tokenizer
from rlhfv_jax.errors import UserError

LONGEST = 64  # bytes of a stop string; a state fits a byte, and the table stays small
NEVER = 255  # a state that no automaton reaches
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class StopTable(NamedTuple):
    """`moves[i, s, t]`: the state of string i after token t in state s; `accepts[i]`: its last state."""

    moves: np.ndarray  # uint8[N, M + 1, V']
    accepts: np.ndarray  # uint8[N]


def hidden_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The special tokens that answers do not show, by name: padding, and the beginning and end of a sequence."""
    found = {}
    for name in (*CONTROL, PAD):
        token = tokenizer.encode(name)[-1]
        if tokenizer.piece(token) == name:
            found[name] = token
    return found


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """What each token adds to a text, in UTF-8; nothing for hidden ones."""
    hidden = set(hidden_ids(tokenizer).values())
    anchor = tokenizer.encode("a")[-1:]  # decoded alone, a token would lose the space before it
    start = len(tokenizer.decode(anchor))
    found = []
    for token in range(vocab_size):
        if token in hidden or token >= tokenizer.vocab_size:
            found.append(b"")
        elif match := _BYTE.fullmatch(tokenizer.piece(token)):
            found.append(bytes([int(match.group(1), 16)]))
        else:
            found.append(tokenizer.decode([*anchor, token])[start:].encode())
    return found


def table(pieces: Sequence[bytes], stops: Sequence[str]) -> StopTable:
    """The automata of the stop strings over tokens that stand for `pieces`. Raises UserError for one too long.

    States are filled up to a multiple of 16, and strings to a power of two with ones that never end, so that other
    strings seldom are other shapes.
    """
    encoded = [stop.encode() for stop in stops]
    for stop, content in zip(stops, encoded, strict=True):
        if not 0 < len(content) <= LONGEST:
            raise UserError(f"The stop string {stop!r} has {len(content)} bytes; expected 1 to {LONGEST}.")
    states = -(-(max((len(content) for content in encoded), default=0) + 1) // 16) * 16
    count = 1 << max(len(stops) - 1, 0).bit_length()
    moves = np.zeros((count, states, len(pieces)), np.uint8)
    accepts = np.full(count, NEVER, np.uint8)
    for i, content in enumerate(encoded):
        moves[i], accepts[i] = _moves(pieces, content, states), len(content)
    return StopTable(moves, accepts)


def _moves(pieces: Sequence[bytes], stop: bytes, states: int) -> np.ndarray:
    step = _byte_moves(stop)
    letters, moves = set(stop), np.zeros((states, len(pieces)), np.uint8)
    for token, piece in enumerate(pieces):
        if letters.isdisjoint(piece):
            if not piece:
                moves[:, token] = np.arange(states)
            continue
        state = np.arange(len(stop) + 1)
        for byte in piece:
            state = step[state, byte]
        moves[: len(stop) + 1, token] = state
    moves[len(stop) :] = len(stop)
    return moves


def _byte_moves(stop: bytes) -> np.ndarray:
    """int[n + 1, 256], the states of Knuth, Morris and Pratt's search, the last one never left."""
    moves = np.zeros((len(stop) + 1, 256), int)
    moves[0, stop[0]] = 1
    fallback = 0
    for state in range(1, len(stop)):
        moves[state] = moves[fallback]
        moves[state, stop[state]] = state + 1
        fallback = moves[fallback, stop[state]]
    moves[len(stop)] = len(stop)
    return moves
