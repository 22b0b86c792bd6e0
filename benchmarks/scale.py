"""What 100 million cells on 64 GPUs need, calculated from figures measured here and checked by a simulation.

Reads the JSON of ``conversion``, ``loader`` and ``train_step`` and writes docs/scale.md. What no benchmark
here can measure (how fast a GPU trains, prices of storage and of hours) is an assumption that the page
names, and the plan is given for several of them.

    python benchmarks/scale.py [--results FOLDER] [--page FILE] [--json FILE] [--quick]
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from claims import Claims, about, parse, show

HERE = Path(__file__).parent
CELLS, GPUS, EPOCHS = 100_000_000, 64, 10
GPUS_A_NODE = 8
BAG, BAGS, ROW_GROUP = 64, 8, 1024
"""Cells of a bag, bags of a step on one GPU, cells of a row group: the defaults."""


@dataclass(frozen=True)
class Assumed:
    """Assumptions: values that are not measured here."""

    latency: float = 0.05
    """Seconds until an object store answers a read."""
    bandwidth: float = 1.0e8
    """Bytes per second of one stream from it."""
    jitter: float = 0.2
    """Standard deviation of the logarithm of every read and decoding time."""
    step_jitter: float = 0.03
    """The same of a step's time."""
    gpu_hour: float = 2.5
    core_hour: float = 0.05
    gigabyte_month: float = 0.023
    """Prices in dollars."""


@dataclass(frozen=True)
class Pipeline:
    """One rank's part of a run, as it is simulated.

    Attributes
    ----------
    decode
        Seconds that one thread takes to decode a row group.
    threads
        Decoding threads of one rank.
    step
        Seconds of a step when its data is available.
    cells_a_step
        Cells per step of one rank.
    window
        Row groups that are shuffled together: a batch needs all of its window.
    read_bytes
        Bytes of a row group.
    """

    decode: float
    threads: int
    step: float
    cells_a_step: int
    window: int = 8
    read_bytes: float = 0.0


def simulate(
    pipeline: Pipeline, assumed: Assumed, n_ranks: int, n_steps: int, seed: int = 0
) -> tuple[float, float]:
    """Share of a rank's time spent waiting for its own data, and cells/s of all ranks.

    Reads are done in order by the first free thread, at most ``2 · threads`` ahead of what the assembler has
    taken; batches are made at most two ahead; every step begins when all ranks have their batch (gradients
    are averaged) and the step before has ended. The first tenth of the steps is not counted.
    """
    rng = np.random.default_rng(seed)
    reads_a_step = pipeline.cells_a_step / ROW_GROUP
    n_reads = math.ceil(n_steps * reads_a_step / pipeline.window + 1) * pipeline.window
    read = assumed.latency + pipeline.read_bytes / assumed.bandwidth if pipeline.read_bytes else 0.0
    took = (read + pipeline.decode) * np.exp(rng.normal(0, assumed.jitter, (n_ranks, n_reads)))
    step = pipeline.step * np.exp(rng.normal(0, assumed.step_jitter, (n_ranks, n_steps)))
    free = np.zeros((n_ranks, pipeline.threads))
    done = np.zeros((n_ranks, n_reads))  # when a read has been decoded and all before it
    taken = np.zeros((n_ranks, n_reads))  # when the assembler took it
    ranks, next_read, end = np.arange(n_ranks), 0, np.zeros(n_steps)
    batch_taken = np.zeros(n_steps)
    waited = np.zeros((n_ranks, n_steps))
    for s in range(n_steps):
        last = math.ceil(min((s + 1) * reads_a_step, n_reads) / pipeline.window) * pipeline.window
        room = batch_taken[s - 3] if s >= 3 else 0.0  # a batch is made once there is room for it
        for r in range(next_read, last):
            ahead = r - 2 * pipeline.threads - 1
            start = np.maximum(free.min(axis=1), taken[:, ahead] if ahead >= 0 else 0.0)
            finish = start + took[:, r]
            free[ranks, free.argmin(axis=1)] = finish
            done[:, r] = np.maximum(finish, done[:, r - 1] if r else 0.0)
            taken[:, r] = np.maximum(done[:, r], room)
        next_read = max(next_read, last)
        before = end[s - 1] if s else 0.0
        ready = np.maximum(taken[:, last - 1], before)
        waited[:, s] = ready - before
        batch_taken[s] = ready.max()
        end[s] = ready.max() + step[:, s].max()
    skip = n_steps // 10
    seconds = end[-1] - end[skip - 1]
    cells = (n_steps - skip) * pipeline.cells_a_step * n_ranks
    return float(waited[:, skip:].sum(axis=1).mean() / seconds), float(cells / seconds)


def needed_threads(
    pipeline: Pipeline, assumed: Assumed, n_ranks: int, n_steps: int
) -> tuple[int, float, float]:
    """Fewest threads per rank that wait at most 5% of the time; also the share of waiting, and cells/s."""
    for threads in range(1, 257):
        wait, speed = simulate(replace(pipeline, threads=threads), assumed, n_ranks, n_steps)
        if wait <= 0.05:
            return threads, wait, speed
    raise RuntimeError("no number of threads is enough")


def read(results: Path, name: str) -> dict[str, float]:
    """Figures that another script has stored."""
    return json.loads((results / f"{name}.json").read_text())["figures"]


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--results", type=Path, default=HERE / "results" / "bench")
        parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "scale.md")

    options = parse(__doc__, more)
    claims, assumed = Claims("scale", about(__doc__)), Assumed()
    conversion, loader = read(options.results, "conversion"), read(options.results, "loader")
    training = read(options.results, "train_step")
    n_steps = 60 if options.quick else 400

    tokens, size = conversion["non-zeros per cell"], conversion["ours, bytes per non-zero"]
    decode = ROW_GROUP / loader["cells/s of a decoding thread"]
    group_bytes = ROW_GROUP * tokens * size
    stored = CELLS * tokens * size
    hours = CELLS / conversion["ours, cells per CPU second"] / 3600
    n_epoch = math.ceil(CELLS / (GPUS * BAG * BAGS))
    month = stored / 1e9 * assumed.gigabyte_month
    store = [
        ("stored", f"{stored / 1e12:.2f} TB", "tokens per cell × bytes per non-zero"),
        ("as CSR int32 + float32", f"{CELLS * tokens * 8 / 1e12:.2f} TB", "8 bytes per non-zero"),
        ("storage", f"${month:,.0f} per month", "assumed price"),
        ("conversion", f"{hours:,.0f} core hours", "cells per CPU second"),
        ("steps per epoch", f"{n_epoch:,}", f"{GPUS} GPUs × {BAGS} bags × {BAG} cells"),
    ]

    use = []
    for name, what, per in (
        ("embedding", "embed all cells (`tadvae embed`)", "cells per CPU second"),
        ("prediction", "as many mean profiles (`tadvae predict`)", "rows per CPU second"),
    ):
        if (options.results / f"{name}.json").exists():
            core_hours = CELLS / read(options.results, name)[per] / 3600
            use.append((what, f"{core_hours:,.0f} core hours", f"{per}, 2,000 genes"))

    plans = []
    for speed in (1_000, 5_000, 20_000):
        pipeline = Pipeline(decode, 1, BAG * BAGS / speed, BAG * BAGS, read_bytes=group_bytes)
        threads, wait, simulated = needed_threads(pipeline, assumed, GPUS, n_steps)
        hours = EPOCHS * CELLS / simulated / 3600
        cores = (threads + 1) * GPUS
        plans.append(
            {
                "cells/s per GPU (assumed)": speed,
                "decoding threads a GPU": threads,
                "cores for data": cores,
                "from storage, GB/s": speed * GPUS * tokens * size / 1e9,
                "into a node, Gbit/s": speed * GPUS_A_NODE * tokens * size * 8 / 1e9,
                "waiting, simulated": wait,
                "cells/s, simulated": simulated,
                f"hours for {EPOCHS} epochs": hours,
                "$ for GPUs": hours * GPUS * assumed.gpu_hour,
                "$ for cores": hours * cores * assumed.core_hour,
            }
        )
    claims.table("Plan", plans)

    # check: simulate the run that train_step measured
    step = 2 * BAG / training["cells/s of a training worker"]
    local = Assumed(latency=0.0, bandwidth=math.inf)
    wait, speed = simulate(Pipeline(decode, 1, step, 2 * BAG), local, 1, n_steps)
    check = [
        {"what": "share of waiting", "measured": training["share of waiting"], "simulated": wait},
        {"what": "cells/s of a training worker", "measured": training["cells/s of a training worker"],
         "simulated": speed},
        {"what": "cells/s of the loader, one thread", "measured": loader["cells/s of a decoding thread"],
         "simulated": simulate(Pipeline(decode, 1, 1e-6, BAG * BAGS), local, 1, n_steps)[1]},
    ]  # fmt: skip
    claims.table("The simulation against what was measured", check)
    worst = max(abs(row["simulated"] / row["measured"] - 1) for row in check[1:])
    claims.aim("simulated over measured cells/s, largest departure", worst, at_most=0.15)
    claims.finish(options, timed=False)
    options.page.write_text(page(store, use, plans, check, assumed, claims.found["machine"]))


def rows(found: list[dict]) -> list[str]:
    """A Markdown table."""
    names = list(found[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return [*lines, *("| " + " | ".join(show(row[name]) for name in names) + " |" for row in found)]


PAGE = """# 100 million cells on 64 GPUs

Written by `benchmarks/scale.py` (`make bench`) from stored figures; do not edit. The plan is a calculation:
rates per core and bytes were measured on {machine}; no run of this size was made.

## The store

{store}

## Training

The training speed of a GPU was not measured (none was available), so the plan is given for three speeds.
Decoding runs in CPU threads of each GPU's worker (`stream.threads`). The table has the smallest number of
threads for which the simulation waits for data at most 5% of the time; one more core per GPU assembles
batches.

{plans}

Assumed, not measured: an object store that answers after {latency:g} ms and gives {bandwidth:g} MB/s
per stream; read and decoding times that vary by {jitter:.0%} and steps by {step_jitter:.0%}; ${gpu_hour:g}
per GPU hour, ${core_hour:g} per core hour, ${month:g} per gigabyte and month. Averaging gradients between
GPUs is included in a GPU's assumed speed.

## Use

Both run in bounded memory; what a tenfold size takes was measured ([Benchmarks](benchmarks.md#embedding)).

{use}

## The simulation

Every rank has its threads, a shuffle window of row groups, a queue of batches, and a barrier at each step.
With the step time and the decoding rate that were measured for one worker, the simulation should reproduce
the other figures that were measured in that worker's run:

{check}
"""


def page(
    store: list[tuple],
    use: list[tuple],
    plans: list[dict],
    check: list[dict],
    assumed: Assumed,
    machine: str,
) -> str:
    """The page: the plan as text and tables."""

    def figures(found: list[tuple]) -> str:
        return "\n".join(rows([dict(zip(("what", "figure", "from"), row, strict=True)) for row in found]))

    return PAGE.format(
        machine=machine,
        store=figures(store),
        use=figures(use) if use else "Not measured.",
        plans="\n".join(rows(plans)),
        check="\n".join(rows(check)),
        latency=1e3 * assumed.latency,
        bandwidth=assumed.bandwidth / 1e6,
        jitter=assumed.jitter,
        step_jitter=assumed.step_jitter,
        gpu_hour=assumed.gpu_hour,
        core_hour=assumed.core_hour,
        month=assumed.gigabyte_month,
    )


if __name__ == "__main__":
    main()
