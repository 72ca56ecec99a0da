"""What a compiled program communicates, and whether it computes meanwhile: read off its scheduled HLO text.

A collective that starts, lets matrix products run, and is then waited for is hidden behind them; one that nothing runs
under is paid in full. Bodies of loops count as often as they turn.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
PRODUCTS = ("dot", "convolution")
PRODUCT_CALLS = ("gemm", "cublas", "cudnn", "matmul", "MultiHeadAttention", "fmha")  # in a custom call's target

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"(?:^|\s)([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|body|to_apply|called_computations=\{|branch_computations=\{)=?%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Collective:
    """One collective of the program: bytes that a device sends each time, how often, and the products under it."""

    kind: str
    dtype: str
    sent: int
    turns: int
    products: int


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str  # from the operands on


def collectives(text: str, devices: int) -> list[Collective]:
    """Every collective of a scheduled HLO module of so many devices."""
    computations, entry = _computations(text)
    turns = {entry: 1}
    order = [entry]
    for name in order:  # callers come before what they call
        for instruction in computations[name]:
            body = _called(instruction)
            if body in computations and instruction.opcode in ("while", "call", "conditional"):
                turns[body] = turns.get(body, 0) + turns[name] * _turns(instruction, body, computations)
                order.append(body)
    return [one for name in dict.fromkeys(order) for one in _of(computations, name, turns[name], devices)]


def summary(found: list[Collective]) -> dict[str, dict[str, Any]]:
    """By kind and dtype: how often a step has it, GiB that a device sends, the share of these under products."""
    lines: dict[str, dict[str, Any]] = {}
    for key in sorted({f"{one.kind} {one.dtype}" for one in found}):
        mine = [one for one in found if f"{one.kind} {one.dtype}" == key]
        sent = sum(one.sent * one.turns for one in mine)
        hidden = sum(one.sent * one.turns for one in mine if one.products)
        count = sum(one.turns for one in mine)
        lines[key] = {"count": count, "gib": sent / 2**30, "overlapped": hidden / sent if sent else 0.0}
    return lines


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    entry = ""
    current: list[_Instruction] | None = None
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
            continue
        match = _INSTRUCTION.match(line)
        opcode = match and _OPCODE.search(match[2])
        if current is not None and match and opcode:
            shape, rest = match[2][: opcode.start()], match[2][opcode.end() :]
            current.append(_Instruction(match[1], shape, opcode[1], rest))
    return found, entry


def _called(instruction: _Instruction) -> str:
    body = re.search(r"body=%?([\w.\-]+)", instruction.rest) or _CALLED.search(instruction.rest)
    return body[1] if body else ""


def _turns(loop: _Instruction, body: str, computations: Any) -> int:
    """How often a loop turns: as GPUs' compiler says, or from a counter below a constant, as TPUs' counts; else 1."""
    if found := _TURNS.search(loop.rest):
        return int(found[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)
    if not condition:
        return 1
    test, advance = ({one.name: one for one in computations.get(name, [])} for name in (condition[1], body))
    compare = next((one for one in test.values() if one.opcode == "compare" and "direction=LT" in one.rest), None)
    operands = re.findall(r"%([\w.\-]+)", compare.rest.partition(")")[0]) if compare else []
    if len(operands) != 2 or {test[name].opcode for name in operands} != {"get-tuple-element", "constant"}:
        return 1
    counter, limit = (int(re.findall(r"\d+", test[name].rest.rpartition("index=")[2])[0]) for name in operands)
    after = re.findall(r"%([\w.\-]+)", list(advance.values())[-1].rest)[counter]
    steps = [advance[name] for name in re.findall(r"%([\w.\-]+)", advance[after].rest) if name in advance]
    step = next((int(one.rest.partition(")")[0]) for one in steps if one.opcode == "constant"), 1)
    return -(-limit // max(step, 1))


def _of(computations: Any, name: str, turns: int, devices: int) -> Iterator[Collective]:
    instructions = computations[name]
    for place, one in enumerate(instructions):
        kind, inner = _kind(one, computations)
        if not kind or one.opcode.endswith("-done"):
            continue
        products = 0
        if one.opcode.endswith("-start"):
            for later in instructions[place + 1 :]:
                if later.opcode.endswith("-done") and re.search(rf"%{re.escape(one.name)}\b(?![.\-\w])", later.rest):
                    break
                products += _multiplies(later, computations)
        carrier = inner or one
        dtype, size = _size(carrier.shape)
        sent = _sent(kind, size, _group(carrier.rest, devices), carrier.opcode.endswith("-start"))
        yield Collective(kind, dtype, sent, turns, products)


def _kind(one: _Instruction, computations: Any) -> tuple[str, _Instruction | None]:
    """The collective that an instruction is, and where it is wrapped the instruction inside."""
    base = one.opcode.removesuffix("-start").removesuffix("-done")
    if base in KINDS:
        return base, None
    if one.opcode == "async-start":
        for inner in computations.get(_called(one), []):
            if inner.opcode in KINDS:
                return inner.opcode, inner
    return "", None


def _multiplies(one: _Instruction, computations: Any) -> bool:
    if one.opcode in PRODUCTS:
        return True
    if one.opcode == "custom-call":
        target = re.search(r'custom_call_target="([^"]*)"', one.rest)
        return target is not None and any(word in target[1] for word in PRODUCT_CALLS)
    if one.opcode in ("fusion", "call", "while", "async-start"):
        return any(_multiplies(inner, computations) for inner in computations.get(_called(one), []))
    return False


def _size(shape: str) -> tuple[str, int]:
    """The dtype of the largest array of a shape, and the bytes of all of them."""
    arrays = [
        (math.prod(int(size) for size in sizes.split(",") if size) * BYTES.get(dtype, 4), dtype)
        for dtype, sizes in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    ]
    return (max(arrays)[1], sum(size for size, _ in arrays)) if arrays else ("", 0)


def _group(rest: str, devices: int) -> int:
    if match := re.search(r"replica_groups=\w+\[([^\]]*)\] \{([^}]*)\}", rest):  # axes of a mesh, by name
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", match[2]))
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    return devices


def _sent(kind: str, size: int, n: int, started: bool) -> int:
    """Bytes that a device sends over a ring of `n`. A start's shape has what goes in beside what comes out."""
    if kind == "all-gather":
        out = size * n / (n + 1) if started else size
        return int(out * (n - 1) / n)
    if kind == "reduce-scatter":
        return int((size / (n + 1) if started else size) * (n - 1))
    if kind == "all-reduce":
        return int(2 * size * (n - 1) / n)
    if kind == "collective-permute":
        return size // 2 if started else size
    return int(size * (n - 1) / n)
