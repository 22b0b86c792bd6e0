"""Time per cell as cells, datasets, tokens and pathways grow; one thread, no Ray.

- cells, datasets: a loading pass over the whole store (plan, read, decode, bags with controls, packing) and
  training steps on some of it, per cell; aim: the slowest at most 15% slower than the smallest.
- tokens: training steps with the encoder ``inducing`` on cells of 200 to 5,000 tokens, per token.
- pathways: training steps with 100 to 5,000 pathways of 20 genes: time above that of 100, per edge.

A time that falls is not a failure: more cells share the fixed costs. Times are the fastest of several
alternating rounds.

    python benchmarks/growth.py [--json FILE] [--folder FOLDER] [--quick]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from claims import Claims, about, parse, scratch
from measure import fastest
from synthetic import TARGETS, make_pathways, make_screen, screen, store_of

from pipelines.cluster.connection import ray_session
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.learner import Learner, build_module
from tadvae.training.prepare import prepare_training
from tadvae.training.training_set import TrainingSet

SMALL = [
    "split.kind=none",
    "effects.weight=0",
    "model.pathway={masking: members, d_embed: 32, n_heads: 2}",
    "model.causal={n_factors: 8, hidden: 16}",
    "model.decoder={d_gene: 16, hidden: 16}",
]
INDUCING = ["model.encoder={kind: inducing, n_layers: 1}", "stream.bags_per_batch=2"]


class Case:
    """A store with its model, and what is timed on it."""

    def __init__(self, store: Path, pathways: Path, *settings: str, steps: int = 4) -> None:
        config = ExperimentConfig.load(None, [f"pathways.file={pathways}", *SMALL, *settings])
        opened = Store.open(str(store))
        prepared = prepare_training(opened, config)
        self.data = TrainingSet(opened, prepared.groups, prepared.vocabulary, config)
        self.learner = Learner(config, build_module(config, prepared.vocabulary))
        self.n_cells = int(self.data.bags["n_cells"].sum())
        self.batches = [pair for pair, _ in zip(self._batches(), range(steps), strict=False)]
        self.step_cells = sum(batch.n_cells for _, batch in self.batches)
        self.step_tokens = sum(len(packed.cells.values) for packed, _ in self.batches)

    def _batches(self):
        windows = self.data.windows(0)
        reads = (self.data.reader.read(*read) for window in windows for read in window.reads)
        return self.data.batches(windows, reads, 0)

    def load(self) -> None:
        """A whole loading pass."""
        assert sum(batch.n_cells for _, batch in self._batches()) == self.n_cells

    def step(self) -> None:
        """Some training steps."""
        for number, (packed, _) in enumerate(self.batches):
            self.learner.step(packed, 0.5, rank=0, number=number)


def timed(
    cases: dict[str, Case], what: Callable[[Case], Callable[[], None]], rounds: int
) -> dict[str, float]:
    """Seconds of each case, the minimum of alternating rounds."""
    return fastest({name: what(case) for name, case in cases.items()}, rounds)


def cells_and_datasets(
    claims: Claims, folder: Path, pathways: Path, options: argparse.Namespace, rounds: int
) -> None:
    sizes = (1_000, 2_000) if options.quick else (10_000, 30_000, 200_000)
    stores = {
        f"{n:,} cells": store_of(folder, [screen(folder, "cells", n, quick=options.quick)]) for n in sizes
    }
    n_datasets = 3 if options.quick else 20
    screens = []
    for i in range(n_datasets):
        screens.append(folder / f"part{i:02d}of{n_datasets}.h5ad")
        if not screens[-1].exists():
            n_genes, expressed, targets = (2_000, 150, 10) if options.quick else (20_000, 1_500, TARGETS)
            # fewer targets in each, so that bags are as large as in one dataset
            make_screen(
                screens[-1], sizes[0] // n_datasets, n_genes, expressed, targets // n_datasets, seed=i + 1
            )
    stores[f"{n_datasets} datasets"] = store_of(folder, screens)
    cases = {name: Case(store, pathways, "stream.bags_per_batch=4") for name, store in stores.items()}
    load = {
        name: 1e6 * s / cases[name].n_cells
        for name, s in timed(cases, lambda case: case.load, rounds).items()
    }
    step = {
        name: 1e6 * s / cases[name].step_cells
        for name, s in timed(cases, lambda case: case.step, rounds).items()
    }
    rows = [
        {
            "store": name,
            "cells": case.n_cells,
            "loading, µs per cell": load[name],
            "step, µs per cell": step[name],
        }
        for name, case in cases.items()
    ]
    claims.table("Cells and datasets", rows)
    first, last, many = f"{sizes[0]:,} cells", f"{sizes[-1]:,} cells", f"{n_datasets} datasets"
    for what, found in (("loading", load), ("step", step)):
        claims.aim(f"{what}: µs per cell, {last} over {sizes[0]:,}", found[last] / found[first], at_most=1.15)
        claims.aim(f"{what}: µs per cell, {many} over 1", found[many] / found[first], at_most=1.15)


def tokens(claims: Claims, folder: Path, pathways: Path, options: argparse.Namespace, rounds: int) -> None:
    lengths = (50, 400) if options.quick else (200, 1_000, 5_000)
    cases = {}
    for length in lengths:
        path = folder / f"tokens-{length}.h5ad"
        if not path.exists():
            make_screen(path, 600, 20_000 if not options.quick else 2_000, length, 10)
        steps = max(1, lengths[-1] // length // 3)
        cases[str(length)] = Case(store_of(folder, [path]), pathways, *INDUCING, steps=min(steps, 4))
    seconds = timed(cases, lambda case: case.step, rounds)
    rows = []
    for name, case in cases.items():
        each = case.step_tokens / sum(packed.cells.n_cells for packed, _ in case.batches)
        rows.append({"tokens per cell": each, "µs per cell": 1e6 * seconds[name] / case.step_cells})
        rows[-1]["µs per token"] = 1e6 * seconds[name] / case.step_tokens
    claims.table("Tokens, encoder inducing", rows)
    worst = max(later["µs per token"] / rows[0]["µs per token"] for later in rows[1:])
    claims.aim(f"µs per token, up to {lengths[-1]:,} tokens over {lengths[0]:,}", worst, at_most=1.15)


def pathways_and_edges(
    claims: Claims, folder: Path, store: Path, options: argparse.Namespace, rounds: int
) -> None:
    numbers = (20, 100, 200) if options.quick else (100, 1_000, 2_500, 5_000)
    n_genes = 2_000 if options.quick else 20_000
    cases, edges = {}, {}
    for n in numbers:
        pathways = folder / f"pathways-{n}.gmt"
        edges[str(n)] = make_pathways(pathways, n_genes, n)
        cases[str(n)] = Case(store, pathways, "stream.bags_per_batch=4", steps=2)
    seconds = timed(cases, lambda case: case.step, rounds)
    base = str(numbers[0])
    rows = []
    for name, case in cases.items():
        row = {
            "pathways": int(name),
            "edges": edges[name],
            "µs per cell": 1e6 * seconds[name] / case.step_cells,
        }
        more = edges[name] - edges[base]
        added = 1e9 * (seconds[name] - seconds[base]) / case.step_cells / max(more, 1)
        rows.append(row | {"ns per cell and added edge": added})
    claims.table("Pathways of 20 genes", rows)
    added = [row["ns per cell and added edge"] for row in rows[1:]]
    claims.aim(
        f"time per cell and added edge, {numbers[-1]:,} pathways over {numbers[1]:,}",
        added[-1] / added[0],
        at_most=1.15,
    )


def main() -> None:
    options = parse(__doc__)
    torch.set_num_threads(1)
    claims = Claims("growth", about(__doc__))
    rounds = 1 if options.quick else 3
    with scratch(options) as folder, ray_session():
        n_genes = 2_000 if options.quick else 20_000
        pathways = folder / "pathways-growth.gmt"
        make_pathways(pathways, n_genes, 100)
        cells_and_datasets(claims, folder, pathways, options, rounds)
        tokens(claims, folder, pathways, options, rounds)
        smallest = store_of(
            folder, [screen(folder, "cells", 1_000 if options.quick else 10_000, quick=options.quick)]
        )
        pathways_and_edges(claims, folder, smallest, options, 2 * rounds)  # differences: noise counts double
    claims.finish(options)


if __name__ == "__main__":
    main()
