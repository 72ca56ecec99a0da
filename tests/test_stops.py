"""Stop strings as automata against plain search in the text, and streams against the whole answer."""

import numpy as np

from rlhfv_jax.decoding import stops
from rlhfv_jax.decoding.text import TextStream, cut

PIECES = [b"a", b"#", b"##", b"###", b" ###x", b"b#", b"#a", b"", b"\xc3", b"\xa4"]
STOPS = ("###", "#a#", "ä#")


def test_the_automata_find_what_a_search_in_the_bytes_finds():
    table, rng = stops.table(PIECES, STOPS), np.random.default_rng(0)
    hits = 0
    for _ in range(500):
        states, text = [0] * len(STOPS), b""
        for token in rng.integers(0, len(PIECES), 6):
            text += PIECES[token]
            states = [table.moves[i, state, token] for i, state in enumerate(states)]
            found = [state == table.accepts[i] for i, state in enumerate(states)]
            assert found == [stop.encode() in text for stop in STOPS], text
        hits += any(found)
    assert 50 < hits < 450


def test_the_pieces_of_a_stream_are_the_whole_text_and_never_hold_a_part_of_a_stop_string():
    rng = np.random.default_rng(1)

    def decode(ids):
        return b"".join(PIECES[i] for i in ids).decode(errors="replace")

    for _ in range(500):
        ids, sent = [], ""
        stream = TextStream(decode, STOPS)
        for token in rng.integers(0, len(PIECES), 6).tolist():
            ids.append(token)
            final = len(ids) == 6 or cut(decode(ids), STOPS)[1]
            sent += stream.push(ids, final)
            if final:
                break
        assert sent == cut(decode(ids), STOPS)[0]
