"""Training steps with unmasked attention and with the encoder, compared with the default, in one run.

The store of ``tadvae simulate`` (5,100 cells, 600 genes a screen, 24 pathways), one process, one thread,
default settings but for masking and encoder, and without the regression. The batches of the first epoch are
read and packed before; each variant then learns from the same batches. Times are CPU seconds of the process,
so that other programs on the machine disturb them less. Bags of a batch in one context share their controls:
"encoded" is the number of cells that went through the network.

    python benchmarks/encoders.py [--json FILE] [--folder FOLDER] [--quick]
"""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from claims import Claims, about, parse, scratch

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
    store: Store, pathways: Path, masking: str, encoder: str
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

    return Learner(config, build_module(config, prepared.vocabulary)), list(
        data.stream(Position(), range(1), read)
    )


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
            learner, batches = variant(store, folder / "screens" / "pathways.gmt", masking, encoder)
            few = encoder != "none" or options.quick
            batches = batches[: 1 if options.quick else WITH_ENCODER] if few else batches
            learner.step(batches[0][0], 1.0, rank=0, number=0)  # compiles kernels
            start = time.process_time()
            for number, (packed, _) in enumerate(batches):
                learner.step(packed, 1.0, rank=0, number=number)
            seconds = time.process_time() - start
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
    claims.table("Training steps", rows)
    default = speed["hard", "none"]
    claims.aim("masking none over hard", speed["none", "none"] / default, at_least=0.5)
    claims.aim("encoder inducing over none", speed["hard", "inducing"] / default, at_least=0.08)
    claims.finish(options)


if __name__ == "__main__":
    main()
