"""What static shapes cost: tokens computed a pair in each layout, on your pairs or on random ones.

    python benchmarks/padding.py                                              (lognormal answers, the paper's mean)
    python benchmarks/padding.py --data=pairs.jsonl --tokenizer=tokenizer.model --queries=64

`official` pads to the longer of a pair's two rows (one pair a device), `rows` all rows to the longest of the batch,
`packed` buffers to one of a few sizes; `real` is what two unpadded rows have.
"""

import numpy as np
import protocol
from absl import app, flags
from pairs import random_pairs

from rlhfv_jax.data import buckets, encoding, packing, sources
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.data.tokenizer import MuffinTokenizer

_DATA = flags.DEFINE_string("data", "", "Preference pairs, any form that data.sources reads; empty: random.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "A sentencepiece .model file.")
_QUERIES = flags.DEFINE_integer("queries", 64, "Image tokens.")
_BATCH = flags.DEFINE_integer("batch", 32, "Pairs of a batch.")
_SPREAD = flags.DEFINE_float("spread", 0.45, "Coefficient of variation of random answers' lengths.")
_OUT = flags.DEFINE_string("out", "", "A JSON file to write.")


def units_of_pairs() -> list[packing.Unit]:
    if _DATA.value:
        tokenizer = MuffinTokenizer.from_file(_TOKENIZER.value)
        pairs, _ = encoding.encode_pairs(sources.read(_DATA.value), tokenizer, MUFFIN, _QUERIES.value, gamma=5.0)
        both = [[(row.tokens, row.labels) for row in pair.rows] for pair in pairs]
    else:
        b = random_pairs(1400, spread=_SPREAD.value, size=8)
        both = [
            [(b.tokens[i, s, :n], b.labels[i, s, : n - 1]) for s, n in enumerate(b.lengths[i])] for i in range(1400)
        ]
    return [packing.make_unit((a[0], b[0]), (a[1], b[1])) for a, b in both]


def main(_: list[str]) -> None:
    units = units_of_pairs()
    lengths = np.asarray([unit.lengths for unit in units])
    sizes = {groups: packing.choose_sizes(units, _BATCH.value, groups) for groups in (1, 8)}
    rng = np.random.default_rng(1)
    counted: dict[str, list[float]] = {name: [] for name in ("real", "official", "rows", "packed, 1", "packed, 8")}
    for _ in range(200):
        picked = rng.choice(len(units), _BATCH.value, replace=False)
        counted["real"].append(lengths[picked].sum())
        counted["official"].append(2 * lengths[picked].max(axis=1).sum())
        counted["rows"].append(2 * _BATCH.value * buckets.rounded(int(lengths[picked].max())))
        drawn = [units[i] for i in picked]
        for groups in (1, 8):
            members = packing.balance(np.asarray([len(unit.tokens) for unit in drawn]), groups)
            fit = packing.fitting(sizes[groups], packing.need(drawn, members))
            counted[f"packed, {groups}"].append(groups * fit.tokens)
    official = np.mean(counted["official"])
    rows = [
        {"layout": name, "tokens a pair": float(np.mean(v) / _BATCH.value), "of official": float(np.mean(v) / official)}
        for name, v in counted.items()
    ]
    shared = float(np.mean([(unit.segment == packing.PREFIX).sum() for unit in units]))
    facts = {"sizes": {g: [one.tokens for one in s] for g, s in sizes.items()}, "shared_tokens": shared}
    protocol.report(f"tokens computed a pair, batches of {_BATCH.value}", rows, _OUT.value, **facts)


if __name__ == "__main__":
    app.run(main)
