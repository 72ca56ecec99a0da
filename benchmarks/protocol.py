"""How every benchmark here measures: a parity gate before any clock, warm-up, A B B A order, medians and quartiles."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

Call = Callable[[], Any]
PACKAGES = ("rlhfv_jax", "jax", "jaxlib", "flax", "torch", "transformers", "numpy")


def gate(values: Mapping[str, float], tolerance: float) -> None:
    """Raises AssertionError where the contenders do not compute the same thing; call before timing."""
    first, expected = next(iter(values.items()))
    for name, value in values.items():
        difference = abs(value - expected) / max(abs(expected), 1e-12)
        assert difference <= tolerance, f"{name} computes {value}, {first} {expected}: off by {difference:.1e}"


def abba(
    contenders: Mapping[str, Call], repeats: int, warmup: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every call. A call returns when its work is done; a round runs all in order, then in reverse."""
    for call in contenders.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name in [*contenders, *reversed(contenders)]:
            started = clock()
            contenders[name]()
            seconds[name].append(clock() - started)
    return seconds


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "q1": float(low), "q3": float(high), "n": len(values)}


def machine() -> dict[str, Any]:
    """What ran, on what, under which load."""
    import jax

    versions = {name: metadata.version(name) for name in PACKAGES if _installed(name)}
    return {
        "versions": versions | {"python": platform.python_version()},
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "device_count": len(jax.devices()),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def report(title: str, rows: list[Mapping[str, Any]], out: str, **facts: Any) -> None:
    """Prints a table of the rows and writes them with the machine's facts as JSON."""
    table = Table(title=title)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)
    if out:
        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps({"title": title, "rows": rows, "machine": machine()} | facts, indent=1) + "\n")
        os.replace(temporary, path)
