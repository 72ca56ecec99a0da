"""Rows to batches: shuffle, decode images and stack, with static shapes, through grain.

The batch at step t is a function of (rows, seed, batch size, t) alone, so the step counter is the data cursor.
Each of several processes makes the rows of the batch that lie on its own devices; the global batch at step t has the
same rows in the same order for any number of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from PIL import Image

from rlhfv_jax.data import images, packing
from rlhfv_jax.data.buckets import Plan
from rlhfv_jax.data.encoding import EncodedPair
from rlhfv_jax.data.features import FeatureFile
from rlhfv_jax.errors import UserError
from rlhfv_jax.structs import IGNORE, PackedBatch, PairBatch, SftBatch

WITHOUT_END = 2**40  # steps; grain wants a number


@dataclass(frozen=True)
class Shares:
    """Which of `total` equal shares of every batch a process makes, ascending; by default the whole."""

    mine: tuple[int, ...] = (0,)
    total: int = 1

    def places(self, batch_size: int) -> list[int]:
        """The places in a batch that these shares cover."""
        if len(self.mine) == self.total:
            return list(range(batch_size))
        size = batch_size // self.total
        return [share * size + i for share in self.mine for i in range(size)]


WHOLE = Shares()


class _RowSource:
    """Random access to padded rows with an image: `source[row]` is a batch without its leading axis (for grain)."""

    features: FeatureFile | None = None  # what a frozen tower says of the images, in place of their pixels

    def __init__(
        self,
        rows: Sequence[Any],
        image_size: int,
        pad_id: int,
        length: int,
        flip_any: bool = False,
        fit: images.Fit = images.squashed,
    ):
        self._rows, self._image_size, self._pad_id, self._length = rows, image_size, pad_id, length
        self._flip_any, self._fit = flip_any, fit

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> Any:
        return self.item(int(row))

    @property
    def lengths(self) -> list[int]:
        """Tokens of every row."""
        return [row.longest for row in self._rows]

    def draw(self, row: Any, augment: images.Augmentation, rng: np.random.Generator) -> Any:
        """`source[row]` with its image augmented."""
        return self.item(int(row), augment=augment, rng=rng)

    def item(
        self,
        row: int,
        length: int = 0,
        augment: images.Augmentation | None = None,
        rng: np.random.Generator | None = None,
    ) -> Any:
        """The row at another static length than the source's own, its image augmented where `augment` is given."""
        record = self._rows[row].record
        if self.features is not None:
            image = self.features[record.image]
        elif augment is None or rng is None:
            image = pixels(record, self._image_size, self._fit)
        else:
            # A mirror image makes a text with left and right false, so such rows are not flipped unless forced.
            may_flip = self._flip_any or not images.speaks_of_sides(*record.texts)
            image = augment(self._fit(_picture(record), self._image_size), self._image_size, rng, may_flip)
        return self._padded(row, image, length or self._length)

    def _padded(self, row: int, image: np.ndarray, length: int) -> Any:
        raise NotImplementedError


class PairSource(_RowSource):
    """Preference pairs; `source[row]` is a PairBatch without its leading axis.

    `ref_logps` is float32[pairs, 2, T-1], or None where they are not known yet (zeros then); T is the longest static
    length. `fit` makes pictures squares. `flip_any` lets an augmentation mirror images whose texts say left or right.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        image_size: int,
        pad_id: int,
        length: int,
        ref_logps: Any = None,
        flip_any: bool = False,
        fit: images.Fit = images.squashed,
    ):
        super().__init__(pairs, image_size, pad_id, length, flip_any, fit)
        self._ref_logps = ref_logps

    def of_rows(self, batch: Any, logps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The valid rows of a batch int64[n] and what a model said of their targets float32[n, 2, T-1]."""
        return batch.row[batch.valid], logps[batch.valid]

    def _padded(self, row: int, image: np.ndarray, length: int) -> PairBatch:
        pair = self._rows[row]
        t = length
        return PairBatch(
            image=image,
            tokens=np.stack([pad(r.tokens, t, self._pad_id) for r in pair.rows]),
            labels=np.stack([pad(r.labels, t - 1, IGNORE) for r in pair.rows]),
            weights=np.stack([pad(w, t - 1, 0.0) for w in pair.weights]),
            lengths=np.asarray([len(r.tokens) for r in pair.rows], np.int32),
            ref_logps=np.zeros((2, t - 1), np.float32) if self._ref_logps is None else self._ref_logps[row, :, : t - 1],
            row=np.int32(row),
            valid=np.bool_(True),
        )


class PackedSource(PairSource):
    """Preference pairs that come as whole PackedBatches of `batch_size` pairs in `groups` buffers, one a device share.

    Which pairs meet in a batch is decided as for rows; only which buffer each lies in follows from their lengths.
    """

    def __init__(self, *args: Any, image_token: int, queries: int, batch_size: int, groups: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._image_token, self._queries, self._groups = image_token, queries, groups
        pairs: Sequence[EncodedPair] = self._rows
        self.units = [
            packing.make_unit((pair.rows[0].tokens, pair.rows[1].tokens), (pair.rows[0].labels, pair.rows[1].labels))
            for pair in pairs
        ]
        self.sizes = packing.choose_sizes(self.units, batch_size, groups)
        self._targets = max(len(picked) for unit in self.units for picked in unit.pick)

    def packed(
        self,
        rows: Sequence[int],
        valid: int,
        augment: images.Augmentation | None,
        rngs: Sequence[np.random.Generator],
        shares: Shares = WHOLE,
    ) -> PackedBatch:
        """This process's buffers of the batch that these rows make up; rows from `valid` on are not valid."""
        lengths = np.asarray([len(self.units[row].tokens) for row in rows])
        members = packing.balance(lengths, self._groups)
        sizes = packing.fitting(self.sizes, packing.need([self.units[row] for row in rows], members))
        members = members[shares.places(len(members))]
        places = members.reshape(-1).tolist()
        mine = [rows[place] for place in places]
        items = [self.item(row, 0, augment, rngs[place]) for row, place in zip(mine, places, strict=True)]
        return packing.assemble(
            [self.units[row] for row in mine],
            np.arange(len(mine)).reshape(members.shape),
            sizes,
            self._targets,
            image_token=self._image_token,
            queries=self._queries,
            pad_id=self._pad_id,
            image=np.stack([item.image for item in items]),
            weights=[item.weights for item in items],
            ref_logps=[item.ref_logps for item in items],
            row=np.asarray(mine, np.int32),
            valid=np.asarray([place < valid for place in places]),
        )

    def of_rows(self, batch: PackedBatch, logps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = batch.row[batch.valid]
        out = np.zeros((len(rows), 2, self._length - 1), np.float32)
        for i, (row, found) in enumerate(zip(rows, logps[batch.valid], strict=True)):
            for side, targets in enumerate(self.units[row].targets):
                out[i, side, targets] = found[side, : len(targets)]
        return rows, out


class ExampleSource(_RowSource):
    """Supervised examples; `source[row]` is an SftBatch, with one row an image, without its leading axis."""

    def _padded(self, row: int, image: np.ndarray, length: int) -> SftBatch:
        example = self._rows[row]
        labels = pad(example.labels, length - 1, IGNORE)[None]
        return SftBatch(
            image=image,
            tokens=pad(example.tokens, length, self._pad_id)[None],
            labels=labels,
            weights=(labels != IGNORE).astype(np.float32),
            lengths=np.asarray([len(example.tokens)], np.int32),
            row=np.int32(row),
            valid=np.bool_(True),
        )


def pixels(record: Any, image_size: int, fit: images.Fit = images.squashed) -> np.ndarray:
    """uint8[S, S, 3], a record's image as models see it; raises UserError naming the record."""
    return images.resize(fit(_picture(record), image_size), image_size)


def _picture(record: Any) -> Image.Image:
    try:
        return images.open_image(record.image)
    except UserError as error:
        raise UserError(f"{record.where}, image: {error}.") from error


def pad(array: np.ndarray, length: int, value: float) -> np.ndarray:
    """Fills [N] up to [`length`] on the right."""
    return np.pad(array, (0, length - len(array)), constant_values=value)


def train_batches(
    source: Any,
    batch_size: int,
    seed: int,
    *,
    start: int = 0,
    shares: Shares = WHOLE,
    augment: images.Augmentation | None = None,
    bounds: Sequence[int] = (),
    workers: int = 0,
) -> Iterator[Any]:
    """Endless batches from step `start` on: reshuffled every epoch, batches may span an epoch's end.

    `batch_size` is the global one; a process gets the rows of its `shares`. `augment` draws anew at every epoch. With
    more than one of `bounds` every batch has one of these static lengths (see `buckets.Plan`). `workers` are processes
    that decode images; 0 decodes in two threads, which pillow lets run beside each other.
    """
    dataset: Any
    if isinstance(source, PackedSource):
        shuffled = grain.MapDataset.source(_Rows(len(source))).seed(seed).shuffle().repeat()
        dataset = grain.MapDataset.source(_Packed(source, shuffled, batch_size, seed, shares, augment))
    elif len(bounds) > 1:
        plan = Plan(source.lengths, bounds, batch_size, seed)
        dataset = grain.MapDataset.source(_Bucketed(source, plan, seed, shares, augment))
    else:
        dataset = grain.MapDataset.source(source if augment is None else _Rows(len(source))).seed(seed)
        dataset = dataset.shuffle().repeat()
        if augment is not None:
            dataset = dataset.random_map(lambda row, rng: source.draw(row, augment, rng))
        places = shares.places(batch_size)
        if len(places) < batch_size:
            dataset = grain.MapDataset.source(_Picked(dataset, places, batch_size))
        dataset = dataset.batch(len(places), drop_remainder=True)
    # A handful of batches ahead is enough; grain's default of 500 would hold gigabytes of images.
    options = grain.ReadOptions(num_threads=1 if workers else 2, prefetch_buffer_size=4)
    batches = dataset[start:].to_iter_dataset(options)
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(batches)


@dataclass(frozen=True)
class _Rows:
    """Row numbers as a data source."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: Any) -> int:
        return int(row)


@dataclass(frozen=True)
class _Picked:
    """Of every batch of an endless stream the rows at some places, one after the other, as a data source."""

    stream: Any
    places: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return WITHOUT_END

    def __getitem__(self, index: Any) -> Any:
        step, place = divmod(int(index), len(self.places))
        return self.stream[step * self.batch_size + self.places[place]]


@dataclass(frozen=True)
class _Bucketed:
    """Whole batches as a data source: `batches[step]`."""

    source: Any
    plan: Plan
    seed: int
    shares: Shares
    augment: images.Augmentation | None

    def __len__(self) -> int:
        return WITHOUT_END

    def __getitem__(self, step: Any) -> Any:
        rows, length = self.plan.batch(int(step))
        places = self.shares.places(len(rows))
        rngs = [np.random.default_rng([self.seed, int(step), place]) for place in places]
        items = [
            self.source.item(int(rows[place]), length, self.augment, rng)
            for place, rng in zip(places, rngs, strict=True)
        ]
        return stack(items)


@dataclass(frozen=True)
class _Packed:
    """Whole packed batches as a data source, of the rows that the plain layout has at the same step."""

    source: PackedSource
    order: Any  # order[i] is the i-th row of the shuffled, repeated stream
    batch_size: int
    seed: int
    shares: Shares
    augment: images.Augmentation | None

    def __len__(self) -> int:
        return WITHOUT_END

    def __getitem__(self, step: Any) -> PackedBatch:
        rows = [int(self.order[int(step) * self.batch_size + place]) for place in range(self.batch_size)]
        rngs = [np.random.default_rng([self.seed, int(step), place]) for place in range(self.batch_size)]
        return self.source.packed(rows, self.batch_size, self.augment, rngs, self.shares)


def stack(items: Sequence[Any]) -> Any:
    """Items of one kind, each a tuple of arrays, with a leading axis in front of every array."""
    return type(items[0])(*(np.stack(field) for field in zip(*items, strict=True)))


def ordered_batches(
    source: Any,
    batch_size: int,
    augment: images.Augmentation | None = None,
    seed: int = 0,
    shares: Shares = WHOLE,
) -> Iterator[Any]:
    """Every row once, in order; the last batch is filled with copies of its last row, marked not valid.

    `augment` draws once a row, from the seed and the row alone. A process gets the rows of its `shares`.
    """

    def item(row: int) -> Any:
        return source[row] if augment is None else source.draw(row, augment, np.random.default_rng([seed, row]))

    for first in range(0, len(source), batch_size):
        numbers = list(range(first, min(first + batch_size, len(source))))
        valid = len(numbers)
        numbers += numbers[-1:] * (batch_size - valid)
        if isinstance(source, PackedSource):
            rngs = [np.random.default_rng([seed, row]) for row in numbers]
            yield source.packed(numbers, valid, augment, rngs, shares)
            continue
        made: dict[int, Any] = {}  # a filler is its row once more
        items = []
        for place in shares.places(batch_size):
            row = numbers[place]
            made[row] = made.get(row) or item(row)
            items.append(made[row]._replace(valid=np.bool_(place < valid)))
        yield stack(items)
