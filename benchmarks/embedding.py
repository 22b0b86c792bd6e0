"""Embedding of cells in bounded memory: 100,000 and 1,000,000 cells of 2,000 genes by ``tadvae embed``.

A network of the default size before its first step reads the cells of one file on one thread, with 100
pathways and the usual smoothing, and writes activities and latent means. Memory is that above the memory
before.

    python benchmarks/embedding.py [--json FILE] [--folder FOLDER] [--quick]
"""

import time
from pathlib import Path
from typing import Any

import torch
from claims import Claims, about, parse, scratch
from measure import Memory, cpu_seconds
from synthetic import make_pathways, make_screen, store_of

from pipelines.cluster.connection import ray_session
from tadvae.model.tadvae import TADVAE
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.prepare import prepare_training


def embedded(model: TADVAE, path: Path, n_cells: int, out: Path) -> dict[str, Any]:
    """CPU seconds and memory of embedding one file."""
    with Memory() as memory:
        time.sleep(0.3)
    before, start = memory.peak, cpu_seconds()
    with Memory() as memory:
        model.embed(str(path), str(out))
    used = cpu_seconds() - start
    out.unlink()
    return {
        "cells": n_cells, "CPU s": used, "CPU s per 1,000": 1_000 * used / n_cells,
        "cells per CPU second": n_cells / used, "memory added, MiB": (memory.peak - before) / 2**20,
        "peak memory, MiB": memory.peak / 2**20,
    }  # fmt: skip


def main() -> None:
    options = parse(__doc__)
    torch.set_num_threads(1)
    claims = Claims("embedding", about(__doc__))
    sizes = (500, 1_500) if options.quick else (100_000, 1_000_000)
    with scratch(options) as folder:
        paths = [folder / f"embedded-{n}.h5ad" for n in sizes]
        for n, path in zip(sizes, paths, strict=True):
            make_screen(path, n, 2_000, 300, 20)
        with ray_session():
            store = store_of(folder, paths[:1])
        make_pathways(folder / "pathways.gmt", 2_000, 100)
        settings = [f"pathways.file={folder / 'pathways.gmt'}", "split.kind=none", "effects.weight=0"]
        measure(claims, Store.open(str(store)), settings, paths, sizes)
    claims.finish(options)


def measure(
    claims: Claims, store: Store, settings: list[str], paths: list[Path], sizes: tuple[int, ...]
) -> None:
    """Embed both files; the smaller one once more before, to warm up."""
    config = ExperimentConfig.load(None, settings)
    ready = prepare_training(store, config)
    model = TADVAE(TADVAEModule(config.model, config.loss, ready.vocabulary), ready.vocabulary, config)
    out = paths[0].with_name("out.h5ad")
    rows = [
        embedded(model, path, n, out) for path, n in ((paths[0], sizes[0]), *zip(paths, sizes, strict=True))
    ]
    claims.table("Embedding", rows[1:])
    claims.figure("cells per CPU second", rows[2]["cells per CPU second"])
    growth = rows[2]["memory added, MiB"] - rows[1]["memory added, MiB"]
    claims.aim(f"memory of {sizes[1]:,} cells over that of {sizes[0]:,}, MiB", growth, at_most=100)
    claims.aim("embedding, CPU s per 1,000 cells", rows[2]["CPU s per 1,000"], at_most=2)


if __name__ == "__main__":
    main()
