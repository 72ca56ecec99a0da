"""A few static row lengths in place of one: which, and which rows meet in the batch of a step."""

from collections.abc import Sequence

import numpy as np

MULTIPLE = 8  # row lengths round up to this: what kernels like


def rounded(length: int) -> int:
    """The static row length for rows of up to `length` tokens."""
    return -(-length // MULTIPLE) * MULTIPLE


def choose(lengths: Sequence[int], count: int) -> list[int]:
    """The at most `count` static lengths, ascending, that pad rows of these lengths with the fewest tokens in all.

    >>> choose([10, 11, 12, 60, 61, 100], 2)
    [16, 104]
    """
    tops, rows = np.unique([rounded(length) for length in lengths], return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows)])
    # cost[j]: tokens of the rows up to top j when top j is a static length; a length more a round.
    cost = before[1:] * tops
    choices: list[np.ndarray] = []
    for _ in range(min(count, len(tops)) - 1):
        options = np.full((len(tops), len(tops)), np.iinfo(np.int64).max)
        for j in range(len(tops)):
            options[j, :j] = cost[:j] + (before[j + 1] - before[1 : j + 1]) * tops[j]
            options[j, j] = cost[j]
        choices.append(options.argmin(axis=1))
        cost = options.min(axis=1)
    j, picked = len(tops) - 1, [int(tops[-1])]
    for choice in reversed(choices):
        if choice[j] != j:
            j = int(choice[j])
            picked.append(int(tops[j]))
    return picked[::-1]


class Plan:
    """The rows and the static length of every batch, a function of (lengths, bounds, batch size, seed, step) alone.

    Each epoch shuffles all rows, fills batches from rows of one bucket, lets what is left over join the next longer
    bucket, and shuffles the batches. What the last bucket leaves over begins the next epoch's, so every row comes once
    an epoch and no row is dropped.
    """

    def __init__(self, lengths: Sequence[int], bounds: Sequence[int], batch_size: int, seed: int):
        self._bucket = np.searchsorted(bounds, lengths)
        self._bounds, self._batch_size, self._seed = list(bounds), batch_size, seed
        self._epochs: dict[int, tuple[list[tuple[np.ndarray, int]], np.ndarray]] = {}

    def batch(self, step: int) -> tuple[np.ndarray, int]:
        """Row indices int64[B] and the static length of the batch at a step."""
        epoch = 0
        while step >= len(batches := self._epoch(epoch)[0]):
            step -= len(batches)
            epoch += 1
        return batches[step]

    def _epoch(self, epoch: int) -> tuple[list[tuple[np.ndarray, int]], np.ndarray]:
        # Threads may both compute an epoch; they find the same.
        if epoch not in self._epochs:
            left = self._epochs[epoch - 1][1] if epoch else np.zeros(0, np.int64)
            self._epochs[epoch] = self._fill(np.random.default_rng([self._seed, epoch]), left)
        return self._epochs[epoch]

    def _fill(self, rng: np.random.Generator, left: np.ndarray) -> tuple[list[tuple[np.ndarray, int]], np.ndarray]:
        order = rng.permutation(len(self._bucket))
        batches = []
        spill = np.zeros(0, np.int64)
        for bucket, length in enumerate(self._bounds):
            last = [left] if bucket == len(self._bounds) - 1 else []
            queue = np.concatenate([*last, spill, order[self._bucket[order] == bucket]])
            whole = len(queue) - len(queue) % self._batch_size
            batches += [(rows, length) for rows in queue[:whole].reshape(-1, self._batch_size)]
            spill = queue[whole:]
        return [batches[i] for i in rng.permutation(len(batches))], spill
