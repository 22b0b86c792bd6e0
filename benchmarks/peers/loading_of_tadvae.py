"""Our store of the same cells, read as training reads it in one process: shuffled bags with their controls.

Genes and normalised values as arrays, as the programs of others give them; a batch is ``bags_per_batch`` bags
of one condition each, and has control cells besides, which the figures count as tokens and not as cells.

    python loading_of_tadvae.py CASE OUT
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from loading_case import finish
from synthetic import store_of

from tadvae.cells.ragged import Cells
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.prepare import prepare_training
from tadvae.training.training_set import TrainingSet

SETTINGS = ["effects.weight=0", "split.kind=none", "model.pathway.masking=linear"]


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    place = store_of(out, [case / "cells.h5ad"])
    store = Store.open(str(place))
    pathways = out / "pathways.gmt"
    genes = store.genes["gene"].tolist()
    rows = ["\t".join([f"P{i}", "x", *genes[i * 20 : i * 20 + 20]]) for i in range(50)]
    pathways.write_text("\n".join(rows) + "\n")
    config = ExperimentConfig.load(None, [f"pathways.file={pathways}", *SETTINGS])
    prepared = prepare_training(store, config)
    data = TrainingSet(store, prepared.groups, prepared.vocabulary, config)
    wall, cpu = time.perf_counter(), time.process_time()
    windows = data.windows(0)

    def read() -> Iterator[tuple[np.ndarray, Cells]]:
        for window in windows:
            for shard, row_group, bag_ids in window.reads:
                yield data.reader.read(shard, row_group, bag_ids)

    first, cells, tokens = 0.0, 0, 0
    for batch in data._assembler.batches(windows, read(), 0):
        arrays([bag.cells for bag in batch.bags])
        first = first or time.perf_counter() - wall
        cells, tokens = cells + batch.n_cells, tokens + batch.n_tokens
    shards = place / "cells"
    finish(out, cells, tokens, first, time.process_time() - cpu, time.perf_counter() - wall, shards)


def arrays(sets: list[Cells]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gene numbers, values and offsets of the cells of a batch, as ``loading_case.normalised`` gives them."""
    ids = np.concatenate([cells.gene_ids for cells in sets], dtype=np.int64)
    values = np.concatenate([cells.values for cells in sets], dtype=np.float32)
    return ids, values, np.cumsum([0, *np.concatenate([np.diff(cells.offsets) for cells in sets])])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
