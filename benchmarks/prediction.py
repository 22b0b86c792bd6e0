"""Prediction of 10,000 combinations × 2,000 genes in one call, and of all pairs as Parquet.

A small model is fitted (a screen of 2,000 genes and 200 targets, regression of mean effects included), then
``TADVAE.predict_means`` predicts pairs of targets that no cell had, from 128 control cells, on one thread.
For comparison, ``predict`` in a loop, which makes every cell, is measured on 5 of them. Then all pairs of all
targets are written to Parquet, as ``tadvae predict --all-pairs`` does; memory is that above the memory
before, of a tenth of the pairs and of all of them. All pairs are also ranked towards a state by the energy
score, as ``tadvae rank --pairs`` does. At last, a model of 1,415 targets writes all of their 1,000,405 pairs.

    python benchmarks/prediction.py [--json FILE] [--folder FOLDER] [--quick]
"""

import itertools
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch
from claims import Claims, about, parse, scratch
from measure import Memory, cpu_seconds
from synthetic import make_pathways, make_screen, store_of

from pipelines.cluster.connection import ray_session
from tadvae.evaluation.ranking import rank_towards
from tadvae.model.combinations import Combinations
from tadvae.model.mean_table import MeanTable
from tadvae.model.predict_many import write_many
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit


def written(model: TADVAE, asked: Combinations, context: str, place: Path) -> dict[str, Any]:
    """CPU seconds and memory of writing a table to Parquet."""
    with Memory() as memory:
        time.sleep(0.3)
    before, start = memory.peak, cpu_seconds()
    with Memory() as memory:
        table = MeanTable(model, asked, context=context)
        n = write_many(table, str(place)).n
    used = cpu_seconds() - start
    size = place.stat().st_size
    place.unlink()
    return {
        "perturbations": n, "genes": len(table.genes), "CPU s": used, "CPU s per 1,000": 1_000 * used / n,
        "rows per CPU second": n / used, "memory added, MiB": (memory.peak - before) / 2**20,
        "peak memory, MiB": memory.peak / 2**20, "file, MiB": size / 2**20,
    }  # fmt: skip


def main() -> None:
    options = parse(__doc__)
    torch.set_num_threads(1)
    claims = Claims("prediction", about(__doc__))
    n_cells, n_targets, n_asked = (500, 20, 150) if options.quick else (8_000, 200, 10_000)
    with scratch(options) as folder:
        model = fitted(folder / "some", n_cells, 2_000, n_targets)
        rows = measure(claims, model, n_asked, folder / "pairs.parquet")
        model = fitted(folder / "many", n_cells, 1_500, 40 if options.quick else 1_415)
        context = model.vocabulary.contexts[0].name
        rows.append(written(model, Combinations((), False, True), context, folder / "pairs.parquet"))
        claims.table("Mean profiles as Parquet", rows)
        first, last = rows[0], rows[-1]
        what = f"{last['perturbations']:,} pairs: memory over that of {first['perturbations']:,}, MiB"
        claims.aim(what, last["memory added, MiB"] - first["memory added, MiB"], at_most=300)
    claims.finish(options)


def fitted(folder: Path, n_cells: int, n_genes: int, n_targets: int) -> TADVAE:
    """A small model of a synthetic screen."""
    folder.mkdir(exist_ok=True)
    path = folder / f"targets-{n_cells}.h5ad"
    make_screen(path, n_cells, n_genes, 300, n_targets)
    with ray_session():
        store = store_of(folder, [path])
    make_pathways(folder / "pathways.gmt", n_genes, 100)
    settings = [f"pathways.file={folder / 'pathways.gmt'}", "split.kind=none", "train.epochs=1"]
    return fit(Store.open(str(store)), ExperimentConfig.load(None, settings))[0]


def measure(claims: Claims, model: TADVAE, n_asked: int, place: Path) -> list[dict[str, Any]]:
    """Ask a model for many perturbations; rows of the table of Parquet files."""
    context = model.vocabulary.contexts[0]
    names = [target.name for target in model.vocabulary.targets if target.seen]
    pairs = list(itertools.combinations(names, 2))
    rng = np.random.default_rng(0)
    asked = [pairs[i] for i in rng.choice(len(pairs), n_asked, replace=False)]
    start = cpu_seconds()
    found = model.predict_means(asked, context=context.name)
    seconds = cpu_seconds() - start
    assert np.isfinite(found.to_numpy()).all()
    start = cpu_seconds()
    for target in asked[:5]:
        model.predict(target, context=context.name)
    one = (cpu_seconds() - start) / 5
    claims.table(
        "Prediction",
        [
            {"how": "predict_means, one call", "perturbations": n_asked, "genes": found.shape[1],
             "CPU s": seconds},
            {"how": "predict, one after another (from 5)", "perturbations": n_asked, "genes": found.shape[1],
             "CPU s": one * n_asked},
        ],
    )  # fmt: skip
    some = tuple(pairs[: len(pairs) // 10])
    # the first round warms up what is compiled or loaded once
    rows = [written(model, Combinations(asked), context.name, place) for asked in (some, some)][1:]
    rows.append(written(model, Combinations((), False, True), context.name, place))
    claims.figure("rows per CPU second", rows[1]["rows per CPU second"])
    claims.aim("all pairs as Parquet, CPU s per 1,000", rows[1]["CPU s per 1,000"], at_most=2)
    added = rows[1]["memory added, MiB"] - rows[0]["memory added, MiB"]
    claims.aim("memory of all pairs over that of a tenth of them, MiB", added, at_most=100)
    cells = model.predict(asked[0], context=context.name)
    moved = cells.X.mean(axis=0) + rng.normal(0.5, 0.5, (128, cells.n_vars))
    state = ad.AnnData(np.maximum(moved, 0.0).astype(np.float32), var=cells.var[[]])
    begun = cpu_seconds()
    found_ranks = rank_towards(model, state, "pairs", context=context.name, values="log1p")
    used = 1_000 * (cpu_seconds() - begun) / found_ranks.n_asked
    claims.table(
        "Ranking",
        [{"perturbations": found_ranks.n_asked, "genes": found_ranks.n_genes, "CPU s per 1,000": used}],
    )
    claims.aim(f"{n_asked:,} combinations × {found.shape[1]:,} genes in one call, CPU s", seconds, at_most=30)
    return rows


if __name__ == "__main__":
    main()
