"""How fast the loader is, in ratios that carry over between machines, and what static lengths cost.

    python benchmarks/data.py --data=pairs.jsonl --tokenizer=tokenizer.model

Prints JSON: images per CPU second at the training size, for the deterministic transform and the augmentations; the
share of that time that decoding alone takes; batches per second by threads and by worker processes, relative to one
bare loop; and for one to eight static lengths the share of padding.
"""

import json
import resource
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

from rlhfv_jax.data import buckets, encoding, images, pipeline, sources
from rlhfv_jax.data.chat import MUFFIN
from rlhfv_jax.data.tokenizer import MuffinTokenizer
from rlhfv_jax.inspection import summary

_DATA = flags.DEFINE_string("data", None, "Preference pairs, any form that data.sources reads.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "A sentencepiece .model file.", required=True)
_SIZE = flags.DEFINE_integer("size", 448, "Image size in pixels.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "How long each measurement runs.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Worker processes of the last measurement.")


def cpu_seconds() -> float:
    """User and system time of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def rate(work: Callable[[int], object], clock: Callable[[], float], seconds: float) -> float:
    """Calls of `work(i)` per second of the clock."""
    start, end, done = clock(), time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        work(done)
        done += 1
    return done / (clock() - start)


def main(_: list[str]) -> None:
    records = sources.read(_DATA.value)
    tokenizer = MuffinTokenizer.from_file(_TOKENIZER.value)
    pairs, stats = encoding.encode_pairs(records, tokenizer, MUFFIN, 64, gamma=5.0)
    size, seconds = _SIZE.value, _SECONDS.value
    source = pipeline.PairSource(pairs, size, tokenizer.pad_id, buckets.rounded(stats.longest_row))

    def draw(name: str) -> Callable[[int], object]:
        augment, rng = images.AUGMENTATIONS[name], np.random.default_rng(0)
        return lambda i: source[i % len(source)] if augment is None else source.draw(i % len(source), augment, rng)

    per_cpu = {name: rate(draw(name), cpu_seconds, seconds) for name in images.AUGMENTATIONS}
    decoding = rate(lambda i: images.open_image(records[i % len(records)].image), cpu_seconds, seconds)
    bare = rate(draw("none"), time.perf_counter, seconds)

    def batches(workers: int) -> float:
        stream = pipeline.train_batches(source, 8, 0, workers=workers)
        for _ in range(4):
            next(stream)  # processes start here
        return 8 * rate(lambda _: next(stream), time.perf_counter, seconds)

    lengths = [pair.longest for pair in pairs]
    padding = {}
    for count in (1, 2, 4, 8):
        found = summary.padding(pairs, np.asarray(lengths), buckets.choose(lengths, count))
        padding[count] = [{**bucket, "share": round(bucket["share"], 4)} for bucket in found]
    report = {
        "size": size,
        "images_per_cpu_second": {name: round(value, 1) for name, value in per_cpu.items()},
        "augmentation_costs": {name: round(per_cpu["none"] / value, 2) for name, value in per_cpu.items()},
        "decoding_share": round(per_cpu["none"] / decoding, 3),
        "two_threads_over_bare_loop": round(batches(0) / bare, 2),
        f"{_WORKERS.value}_processes_over_bare_loop": round(batches(_WORKERS.value) / bare, 2),
        "padding": padding,
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    app.run(main)
