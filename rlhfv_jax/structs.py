"""What travels between the rooms of the house: tuples of arrays.

Axis letters, used in every docstring and einsum of the package:
    B pairs or rows    2 chosen, rejected    T tokens       S keys
    N heads            K key-value heads     H head size    D width
    F feed-forward     V vocabulary          Q queries      P patches    L layers
"""

from typing import Any, NamedTuple

BATCH = ("data", "fsdp")  # the mesh axes that the batch axis B is cut over
IGNORE = -100  # a label that is not a target, as PyTorch's cross entropy has it

Array = Any  # numpy.ndarray on the host, jax.Array on devices; named without importing jax


class PairBatch(NamedTuple):
    """A batch of preference pairs, all shapes static.

    Three facts, three arrays: `lengths` attend, `labels` are targets, `weights` are credit.
    """

    image: Array  # uint8[B, H, W, 3], once per pair; or [B, Q, E], a frozen tower's outputs
    tokens: Array  # int32[B, 2, T], beginning-of-sequence and image tokens included
    labels: Array  # int32[B, 2, T-1]; entry t is the target after token t, that is token t+1, or IGNORE
    weights: Array  # float32[B, 2, T-1]; credit of that target: 0 not scored, 1 unchanged, gamma corrected
    lengths: Array  # int32[B, 2], real tokens of each row; only attention reads it
    ref_logps: Array  # float32[B, 2, T-1], log-probs of the same targets under the reference model
    row: Array  # int32[B], index into the source
    valid: Array  # bool[B]; padding rows of a last batch are not valid and count in no denominator


class PackedBatch(NamedTuple):
    """The same pairs as units [prefix with image | chosen | rejected], end to end in G buffers of N tokens.

    The prefix is what both rows begin with, up to their first difference; it is there once. Each buffer holds P pairs,
    B = G P, the longest units first, and lies on one share of the devices. Attention takes units apart into blocks of W
    tokens; block k is there for the P_k units that may be so long. T is the room for the longest unit, all its W
    together, R that for the targets of a buffer, K that for the targets of one answer. An index that names nothing is
    the size of what it points into.
    """

    image: Array  # uint8[B, H, W, 3], once per pair, in the order of the buffers
    tokens: Array  # int32[G, N]
    positions: Array  # int32[G, N], of each token in its own row
    slots: Array  # int32[G, P*Q], the place in the buffer of every image token
    blocks: tuple[Array, ...]  # int32[G, P_k, W], the place in the buffer of every token of a block
    place: Array  # int32[G, N], the place in the blocks, laid end to end, of every token of the buffer
    segment: Array  # int8[G, P, T]: 0 prefix, 1 chosen, 2 rejected, -1 nothing
    head: Array  # int32[G, R], the place in the buffer that predicts a target
    labels: Array  # int32[G, R], that target, or IGNORE
    pick: Array  # int32[B, 2, K], which of its buffer's R targets are the answer's; shared ones are picked by both
    weights: Array  # float32[B, 2, K], credit of these targets, 0 where there is none
    lengths: Array  # int32[B, 2], tokens of the two rows, for what throughput is measured in
    ref_logps: Array  # float32[B, 2, K]
    row: Array  # int32[B], index into the source
    valid: Array  # bool[B]


class SftBatch(NamedTuple):
    """A batch of images, each with G rows of answered questions; fields as in `PairBatch`, with G in place of two."""

    image: Array  # uint8[B, H, W, 3], encoded once for its rows
    tokens: Array  # int32[B, G, T]
    labels: Array  # int32[B, G, T-1]
    weights: Array  # float32[B, G, T-1]
    lengths: Array  # int32[B, G]
    row: Array  # int32[B]
    valid: Array  # bool[B]


class TrainState(NamedTuple):
    """What a training step changes, and nothing else: no functions, no reference model, no random state."""

    step: Array  # int32[], updates made so far; the data cursor too
    params: Any  # nested dict of float32 arrays
    opt_state: Any  # optax state of the trainable parameters
