"""Preference pairs packed: one unit a pair [prefix with image | chosen | rejected], units end to end in static buffers.

Both answers follow the same prompt, and correction data keeps most of the text up to the first edit. The prefix ends at
the first difference of the two rows; everything before it is computed once and counts for both. Padding every pair to
the longest of its batch would lose again what sharing wins, so that a buffer holds several pairs and is padded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhfv_jax.data import buckets
from rlhfv_jax.structs import IGNORE, PackedBatch

SAMPLES = 256  # batches drawn to see how large buffers get
BLOCK, MOST_BLOCKS = 64, 8  # attention takes a unit apart into blocks of so many tokens, or more in fewer blocks
PREFIX, CHOSEN, REJECTED, NOTHING = 0, 1, 2, -1


@dataclass(frozen=True)
class Unit:
    """One pair. U tokens, r distinct (place, target) couples, and of each answer its targets.

    tokens, positions: int32[U]; segment: int8[U]; head: int32[r], the places in the unit that predict; labels int32[r];
    pick: of chosen and rejected, which of the r are theirs; targets: the same targets as places in the row's labels.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segment: np.ndarray
    head: np.ndarray
    labels: np.ndarray
    pick: tuple[np.ndarray, np.ndarray]
    targets: tuple[np.ndarray, np.ndarray]
    lengths: tuple[int, int]


@dataclass(frozen=True)
class Sizes:
    """Static sizes of a buffer: tokens N, room for each of its P units, the longest first, room for targets R."""

    tokens: int
    units: tuple[int, ...]
    targets: int

    def hold(self, need: "Sizes") -> bool:
        """Whether buffers of these sizes have room for `need`."""
        enough = all(room >= length for room, length in zip(self.units, need.units, strict=True))
        return enough and self.tokens >= need.tokens and self.targets >= need.targets

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(P_k, W) of every block of the units: how many units are so long, and how many tokens the block has.

        >>> Sizes(300, (144, 72, 64), 300).blocks
        [(3, 64), (2, 64), (1, 16)]
        """
        longest = self.units[0]
        width = buckets.rounded(max(BLOCK, -(-longest // MOST_BLOCKS)))
        starts = range(0, longest, width)
        return [(sum(room > start for room in self.units), min(width, longest - start)) for start in starts]


def prefix_length(chosen: np.ndarray, rejected: np.ndarray) -> int:
    """Tokens that both rows begin with.

    >>> prefix_length(np.array([1, 5, 7, 2]), np.array([1, 5, 8]))
    2
    """
    shorter = min(len(chosen), len(rejected))
    same = chosen[:shorter] == rejected[:shorter]
    return shorter if same.all() else int(same.argmin())


def make_unit(rows: tuple[np.ndarray, np.ndarray], labels: tuple[np.ndarray, np.ndarray]) -> Unit:
    """The unit of unpadded rows int32[T] and labels int32[T-1] of chosen and rejected.

    A target that both answers have at the same place of the prefix is one couple that both pick. The last token of the
    prefix may predict two, the first of either answer.
    """
    shared = prefix_length(*rows)
    starts = shared, len(rows[0])  # where each answer's own tokens stand in the unit
    tokens = np.concatenate([rows[0], rows[1][shared:]])
    own = [np.arange(shared, len(row)) for row in rows]
    segment = np.repeat([PREFIX, CHOSEN, REJECTED], [shared, len(own[0]), len(own[1])])
    couples, targets = [], []
    for row_labels, start in zip(labels, starts, strict=True):
        at = np.flatnonzero(row_labels != IGNORE)
        couples.append(np.stack([np.where(at < shared, at, at - shared + start), row_labels[at]], axis=1))
        targets.append(at)
    distinct, found = np.unique(np.concatenate(couples), axis=0, return_inverse=True)
    found = found.reshape(-1)
    return Unit(
        tokens=tokens.astype(np.int32),
        positions=np.concatenate([np.arange(shared), *own]).astype(np.int32),
        segment=segment.astype(np.int8),
        head=distinct[:, 0].astype(np.int32),
        labels=distinct[:, 1].astype(np.int32),
        pick=(found[: len(couples[0])], found[len(couples[0]) :]),
        targets=(targets[0], targets[1]),
        lengths=(len(rows[0]), len(rows[1])),
    )


def balance(lengths: np.ndarray, groups: int) -> np.ndarray:
    """int[groups, P]: indices of the pairs in each buffer; as many in each, the longest first to the emptiest.

    >>> balance(np.array([9, 1, 8, 2]), 2).tolist()
    [[0, 1], [2, 3]]
    """
    room = len(lengths) // groups
    loads, members = [0] * groups, [[] for _ in range(groups)]  # type: ignore[var-annotated]
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        open_groups = [g for g in range(groups) if len(members[g]) < room]
        emptiest = min(open_groups, key=lambda g: loads[g])
        members[emptiest].append(index)
        loads[emptiest] += int(lengths[index])
    return np.asarray(members)


def need(units: Sequence[Unit], members: np.ndarray) -> Sizes:
    """The smallest sizes that hold these units in these buffers. `members` int64[buffers, n]: positions in `units`,
    of each buffer the longest first."""
    tokens, targets = (np.asarray([len(getattr(unit, name)) for unit in units]) for name in ("tokens", "labels"))
    longest = tokens[members].max(axis=0).tolist()
    return Sizes(int(tokens[members].sum(axis=1).max()), tuple(longest), int(targets[members].sum(axis=1).max()))


def choose_sizes(units: Sequence[Unit], batch_size: int, groups: int, count: int = 4) -> list[Sizes]:
    """At most `count` sizes that most batches fit in, ascending, and one that holds any batch.

    A function of the units and the batch size alone, so that all processes and every restart agree. The last is
    compiled only if a batch ever needs it.
    """
    rng = np.random.default_rng(0)
    room = batch_size // groups
    needs = []
    for _ in range(SAMPLES):
        drawn = [units[i] for i in rng.choice(len(units), batch_size, replace=len(units) < batch_size)]
        needs.append(need(drawn, balance(np.asarray([len(unit.tokens) for unit in drawn]), groups)))
    bounds = buckets.choose([one.tokens for one in needs], count)
    sizes = []
    for bound in bounds:  # tokens are what costs; the other two follow
        smaller = [one for one in needs if one.tokens <= bound]
        longest = tuple(max(lengths) for lengths in zip(*(one.units for one in smaller), strict=True))
        sizes.append(rounded(Sizes(bound, longest, max(one.targets for one in smaller))))
    tokens, targets = (max(len(getattr(unit, name)) for unit in units) for name in ("tokens", "labels"))
    return list(dict.fromkeys([*sizes, rounded(Sizes(room * tokens, (tokens,) * room, room * targets))]))


def rounded(sizes: Sizes) -> Sizes:
    """Up to multiples of 8, which kernels like."""
    units = tuple(buckets.rounded(length) for length in sizes.units)
    return Sizes(buckets.rounded(sizes.tokens), units, buckets.rounded(sizes.targets))


def fitting(sizes: Sequence[Sizes], wanted: Sizes) -> Sizes:
    """The first of the ascending sizes that holds what is wanted."""
    return next(one for one in sizes if one.hold(wanted))


def assemble(
    units: Sequence[Unit],
    members: np.ndarray,
    sizes: Sizes,
    targets: int,
    *,
    image_token: int,
    queries: int,
    pad_id: int,
    image: np.ndarray,
    weights: Sequence[Any],
    ref_logps: Sequence[Any],
    row: np.ndarray,
    valid: np.ndarray,
) -> PackedBatch:
    """A batch of units [B], in buffers as `members` int[G, P] says; everything else is given per pair, in that order.
    The longest unit of a buffer comes first, as `balance` has it.

    `weights` and `ref_logps` are of each pair those of its two rows, [T-1] or longer; `targets` is K.
    Raises ValueError where a pair's image is not in what its rows share.
    """
    groups, room = members.shape
    n, t, r = sizes.tokens, sizes.units[0], sizes.targets
    batch, blocks = groups * room, sizes.blocks
    places, ends = _places(blocks, room), np.cumsum([count * width for count, width in blocks])
    held = np.full((groups, ends[-1]), n, np.int32)  # the blocks end to end; those of the batch are views of it
    out = PackedBatch(
        image=image[members.reshape(-1)],
        tokens=np.full((groups, n), pad_id, np.int32),
        positions=np.zeros((groups, n), np.int32),
        slots=np.full((groups, room * queries), n, np.int32),
        blocks=tuple(
            part.reshape(groups, *block) for part, block in zip(np.split(held, ends[:-1], axis=1), blocks, strict=True)
        ),
        place=np.full((groups, n), ends[-1], np.int32),
        segment=np.full((groups, room, t), NOTHING, np.int8),
        head=np.zeros((groups, r), np.int32),
        labels=np.full((groups, r), IGNORE, np.int32),
        pick=np.full((batch, 2, targets), r, np.int32),
        weights=np.zeros((batch, 2, targets), np.float32),
        lengths=np.zeros((batch, 2), np.int32),
        ref_logps=np.zeros((batch, 2, targets), np.float32),
        row=row[members.reshape(-1)],
        valid=valid[members.reshape(-1)],
    )
    for g in range(groups):
        at = scored = 0
        for p, member in enumerate(members[g].tolist()):
            unit = units[member]
            size = len(unit.tokens)
            here = slice(at, at + size)
            out.tokens[g, here], out.positions[g, here] = unit.tokens, unit.positions
            out.place[g, here] = places[p, :size]
            held[g, places[p, :size]] = np.arange(at, at + size)
            out.segment[g, p, :size] = unit.segment
            _place_image(out, g, p, at, unit, image_token, queries)
            out.head[g, scored : scored + len(unit.head)] = at + unit.head
            out.labels[g, scored : scored + len(unit.head)] = unit.labels
            pair = g * room + p
            out.lengths[pair] = unit.lengths
            for side in range(2):
                picked = len(unit.pick[side])
                out.pick[pair, side, :picked] = scored + unit.pick[side]
                out.weights[pair, side, :picked] = weights[member][side][unit.targets[side]]
                out.ref_logps[pair, side, :picked] = ref_logps[member][side][unit.targets[side]]
            at += size
            scored += len(unit.head)
    return out


def _places(blocks: Sequence[tuple[int, int]], room: int) -> np.ndarray:
    """int[P, T]: where in the blocks, laid end to end, each token of each unit of a buffer is; -1 for nowhere."""
    columns, start = [], 0
    for count, width in blocks:
        column = np.full((room, width), -1)
        column[:count] = start + np.arange(count * width).reshape(count, width)
        columns.append(column)
        start += count * width
    return np.concatenate(columns, axis=1)


def _place_image(out: PackedBatch, g: int, p: int, at: int, unit: Unit, image_token: int, queries: int) -> None:
    slots = np.flatnonzero(unit.tokens == image_token)
    if not len(slots):
        return
    if len(slots) != queries or unit.segment[slots[-1]] != PREFIX:
        raise ValueError(f"a pair's {len(slots)} image tokens are not {queries} in the part that its rows share")
    out.slots[g, p * queries : (p + 1) * queries] = at + slots


def from_rows(batch: Any, *, image_token: int, queries: int, pad_id: int = 0, groups: int = 1) -> PackedBatch:
    """A PairBatch of NumPy arrays as a PackedBatch of the smallest sizes: for comparisons and trials."""
    rows = [(batch.tokens[b, 0, : n[0]], batch.tokens[b, 1, : n[1]]) for b, n in enumerate(batch.lengths)]
    labels = [(batch.labels[b, 0, : n[0] - 1], batch.labels[b, 1, : n[1] - 1]) for b, n in enumerate(batch.lengths)]
    units = [make_unit(pair, targets) for pair, targets in zip(rows, labels, strict=True)]
    members = balance(np.asarray([len(unit.tokens) for unit in units]), groups)
    return assemble(
        units,
        members,
        rounded(need(units, members)),
        max(len(picked) for unit in units for picked in unit.pick),
        image_token=image_token,
        queries=queries,
        pad_id=pad_id,
        image=batch.image,
        weights=batch.weights,
        ref_logps=batch.ref_logps,
        row=batch.row,
        valid=batch.valid,
    )
