"""The part of docs/peers.md on loading: a table from the stored passes."""

from typing import Any

from peers.loading_case import LONGEST

LOADING = """## Loading

One pass over {cells} cells of 10x PBMC (repeated, 33,694 genes), from what each program reads: the `.h5ad`
(compressed by gzip, as published) or what it makes of it. Every batch ends as the same: gene numbers (int64),
log1p of counts per ten thousand (float32) and offsets (int64), batches of 64 cells, shuffled by the program's
own means. Ours are bags of one condition with control cells besides, which count as tokens and not as cells,
as do those of cell-load, which repeats cells to fill its sets; each counts whenever it is given. A pass ends
after {longest:.0f} CPU seconds.

Each row was measured in turns with a pass of ours, in a process of its own and with one thread; the least CPU
of {rounds} rounds. The machine did other work, so only CPU is shown; *ratio* is the program's CPU per cell
over ours of the same run: above 1, ours takes less. The first batch counts from the start of the pass.
"""

COLUMNS = (
    "CPU µs per cell", "ours beside it", "ratio", "million tokens per CPU s", "first batch, CPU s",
    "bytes per cell on disk", "peak, GiB",
)  # fmt: skip


def table(stored: dict[str, Any]) -> list[str]:
    """CPU, disk and memory of every loader, and ours beside each."""
    found = {name: each for name, each in stored.items() if "passes" in each}
    if not found:
        return []
    first = next(iter(found.values()))
    size = int(first["passes"]["tadvae"]["cells"])
    lines = [LOADING.format(cells=f"{size:,}", rounds=first["rounds"], longest=LONGEST)]
    lines += [f"| loader | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for name, each in found.items():
        own, program = each["passes"]["tadvae"], each["passes"][name]
        cost, mine = (1e6 * one["cpu"] / one["cells"] for one in (program, own))
        lines.append(f"| {name} | {cost:.0f} | {mine:.0f} | {cost / mine:.2f} | {_rest(program, size)} |")
    best = min((each["passes"]["tadvae"] for each in found.values()), key=lambda one: one["cpu"])
    cost = 1e6 * best["cpu"] / best["cells"]
    lines.append(f"| **tadvae** | {cost:.0f} | {cost:.0f} | 1.00 | {_rest(best, size)} |")
    return [*lines, ""]


def _rest(one: dict[str, float], size: int) -> str:
    cells = [f"{one['tokens'] / one['cpu'] / 1e6:.1f}", f"{one['first']:.2f}"]
    cells += [f"{one['bytes'] / size:,.0f}", f"{one['peak'] / 2**30:.2f}"]
    return " | ".join(cells)
