"""The part of docs/peers.md on loading: a table from the stored passes."""

from typing import Any

import numpy as np

from peers.loading_case import LONGEST, LONGEST_WALL

LOADING = """## Loading

One pass over {cells} cells of 10x PBMC (repeated, 33,694 genes), from what each program reads: the `.h5ad`
(compressed by gzip, as published) or what it makes of it. Every batch ends as the same: gene numbers (int64),
log1p of counts per ten thousand (float32) and offsets (int64), batches of 64 cells, shuffled by the program's
own means. Ours are bags of one condition with control cells besides, which count as tokens and not as cells,
as do those of cell-load, which repeats cells to fill its sets; each counts whenever it is given. A pass ends
after {longest:.0f} CPU seconds, or {wall:.0f} seconds.

Each row was measured in turns with a pass of ours, {turns} times, each pass in a process of its own and with
one thread, on a machine that did nothing else: medians. *ratio* is the program's CPU per cell over ours of
the same turn (lowest to highest of the turns): above 1, ours takes less. CPU is that of all threads of the
process; a rate is of wall time, with the first batch, which counts from the start of the pass.
"""

COLUMNS = (
    "CPU µs per cell", "ratio", "cells per second", "million tokens per CPU s", "first batch, s",
    "bytes per cell on disk", "peak, GiB",
)  # fmt: skip

Passes = list[dict[str, float]]


def table(stored: dict[str, Any]) -> list[str]:
    """CPU, time, disk and memory of every loader, and ours over all turns."""
    found = {name: each["passes"] for name, each in stored.items() if "passes" in each}
    if not found:
        return []
    ours = [one for each in found.values() for one in each["tadvae"]]
    size, turns = int(ours[0]["cells"]), len(next(iter(found.values()))["tadvae"])
    lines = [LOADING.format(cells=f"{size:,}", turns=turns, longest=LONGEST, wall=LONGEST_WALL)]
    lines += [f"| loader | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, each in found.items():
        ratios = [a / b for a, b in zip(costs(each[name]), costs(each["tadvae"]), strict=True)]
        about = f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(_line(name, each[name], about, size))
    return [*lines, _line("**tadvae**", ours, "1", size), ""]


def costs(passes: Passes) -> list[float]:
    """CPU µs per cell of every pass."""
    return [1e6 * one["cpu"] / one["cells"] for one in passes]


def _line(name: str, passes: Passes, ratio: str, size: int) -> str:
    def median(value: list[float]) -> float:
        return float(np.median(value))

    cells = [
        f"{median(costs(passes)):.0f}",
        ratio,
        f"{median([one['cells'] / one['wall'] for one in passes]):,.0f}",
        f"{median([one['tokens'] / one['cpu'] / 1e6 for one in passes]):.1f}",
        f"{median([one['first'] for one in passes]):.2f}",
        f"{passes[0]['bytes'] / size:,.0f}",
        f"{max(one['peak'] for one in passes) / 2**30:.2f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"
