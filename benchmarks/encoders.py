"""Training steps with unmasked attention and with the encoder, compared with the default, in one run.

The store of ``tadvae simulate`` (5,100 cells, 600 genes a screen, 24 pathways), one process, one thread,
default settings but for masking and encoder, and without the regression. The batches of the first epoch are
read and packed before; each variant then learns from the same batches. Times are CPU seconds of the process,
so that other programs on the machine disturb them less. Bags of a batch in one context share their controls:
"encoded" is the number of cells that went through the network.

The encoder also learns from synthetic cells of 20,000 genes with 1,500 expressed, bags of about 50 cells and
200 pathways: CPU time per cell that is learned from, and per encoded one (the controls, which bags share);
the work of the matrix products, counted in one step; and the rate of that work over that of one large
product.

    python benchmarks/encoders.py [--json FILE] [--folder FOLDER] [--quick]
"""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from claims import Claims, about, parse, scratch
from synthetic import make_pathways, make_screen, store_of
from torch.utils.flop_counter import FlopCounterMode

from pipelines.cluster.connection import ray_session
from tadvae.cells.ragged import Cells
from tadvae.data.batches import Batch
from tadvae.data.plan import Window
from tadvae.nn.packed import ModelBatch
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.checkpoint import Position
from tadvae.training.learner import Learner, build_module
from tadvae.training.prepare import prepare_training
from tadvae.training.training_set import TrainingSet

VARIANTS = [("hard", "none"), ("none", "none"), ("hard", "inducing"), ("none", "inducing")]
WITH_ENCODER = 3
"""Steps of the variants with an encoder, which are slow; the others learn from a whole epoch."""


def variant(
    store: Store, pathways: Path, masking: str, encoder: str, n_batches: int | None = None
) -> tuple[Learner, list[tuple[ModelBatch, Batch]]]:
    """A learner and the batches of its first epoch."""
    settings = [
        f"pathways.file={pathways}",
        "effects.weight=0",
        f"model.pathway.masking={masking}",
        f"model.encoder.kind={encoder}",
    ]
    config = ExperimentConfig.load(None, settings)
    prepared = prepare_training(store, config)
    data = TrainingSet(store, prepared.groups, prepared.vocabulary, config)

    def read(windows: Iterable[Window]) -> Iterator[tuple[np.ndarray, Cells]]:
        for window in windows:
            for shard, group, bags in window.reads:
                yield data.reader.read(shard, group, bags)

    batches = islice(data.stream(Position(), range(1), read), n_batches)
    return Learner(config, build_module(config, prepared.vocabulary)), list(batches)


def seconds_of(learner: Learner, batches: list[tuple[ModelBatch, Batch]]) -> float:
    """CPU seconds of a step from each batch, after one that compiles kernels."""
    learner.step(batches[0][0], 1.0, rank=0, number=0)
    start = time.process_time()
    for number, (packed, _) in enumerate(batches):
        learner.step(packed, 1.0, rank=0, number=number)
    return time.process_time() - start


def product_rate() -> float:
    """Floating point operations per CPU second of one large matrix product."""
    x = torch.rand(1024, 1024)
    best = np.inf
    for _ in range(10):
        start = time.process_time()
        for _ in range(4):
            x @ x
        best = min(best, (time.process_time() - start) / 4)
    return 2 * 1024**3 / best


def of_many_tokens(folder: Path, quick: bool) -> dict[str, float]:
    """A cell of 1,500 tokens over 20,000 genes, with the encoder."""
    n_genes, expressed = (2_000, 150) if quick else (20_000, 1_500)
    place = folder / "many-tokens.h5ad"
    make_screen(place, 200 if quick else 2_400, n_genes, expressed, n_targets=2 if quick else 20)
    make_pathways(folder / "many.gmt", 2_000, 20 if quick else 200)
    with ray_session():
        store = Store.open(str(store_of(folder, [place])))
    learner, batches = variant(
        store, folder / "many.gmt", "members", "inducing", 1 if quick else WITH_ENCODER
    )
    cells = sum(batch.n_cells for _, batch in batches)
    encoded = sum(len(packed.dataset) for packed, _ in batches)
    seconds, rate = seconds_of(learner, batches) / cells, product_rate()
    with FlopCounterMode(display=False) as counter:
        learner.step(batches[0][0], 1.0, rank=0, number=0)
    work = counter.get_total_flops() / batches[0][1].n_cells
    return {
        "cells": cells,
        "encoded": encoded,
        "tokens of a cell": sum(len(packed.cells.values) for packed, _ in batches) / encoded,
        "CPU ms a cell": 1e3 * seconds,
        "CPU ms an encoded cell": 1e3 * seconds * cells / encoded,
        "GFLOP of products a cell": work / 1e9,
        "GFLOP/s": work / seconds / 1e9,
        "GFLOP/s of one product": rate / 1e9,
        "share of it": work / seconds / rate,
    }


def main() -> None:
    options = parse(__doc__)
    torch.set_num_threads(1)
    claims = Claims("encoders", about(__doc__))
    rows, speed = [], {}
    with scratch(options) as folder:
        for command in (
            ["simulate", "--out", str(folder / "screens")],
            ["convert", str(folder / "screens" / "spec.yaml"), "--out", str(folder / "store")],
        ):
            subprocess.run(
                [sys.executable, "-m", "pipelines", *command], check=True, stdout=subprocess.DEVNULL
            )
        store = Store.open(str(folder / "store"))
        for masking, encoder in VARIANTS:
            few = 1 if options.quick else WITH_ENCODER if encoder != "none" else None
            learner, batches = variant(store, folder / "screens" / "pathways.gmt", masking, encoder, few)
            seconds = seconds_of(learner, batches)
            cells = sum(batch.n_cells for _, batch in batches)
            encoded = sum(len(packed.dataset) for packed, _ in batches)
            tokens = sum(len(packed.cells.values) for packed, _ in batches)
            speed[masking, encoder] = cells / seconds
            rows.append(
                {
                    "masking": masking,
                    "encoder": encoder,
                    "cells": cells,
                    "encoded": encoded,
                    "cells/s": cells / seconds,
                    "µs per encoded token": seconds / tokens * 1e6,
                    "of hard": speed[masking, encoder] / speed["hard", "none"],
                }
            )
        many = of_many_tokens(folder, options.quick)
    claims.table("Training steps", rows)
    claims.table("Cells of 1,500 tokens, encoder inducing", [many])
    name = "inducing, 1,500 tokens of 20,000 genes: CPU ms an encoded cell"
    claims.aim(name, many["CPU ms an encoded cell"], at_most=15)
    default = speed["hard", "none"]
    claims.aim("masking none over hard", speed["none", "none"] / default, at_least=0.5)
    claims.aim("encoder inducing over none", speed["hard", "inducing"] / default, at_least=0.08)
    claims.finish(options)


if __name__ == "__main__":
    main()
