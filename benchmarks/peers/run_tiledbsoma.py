"""TileDB-SOMA-ML on an experiment made of the same cells, with its defaults; sparse batches of 64 cells.

python run_tiledbsoma.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "tiledbsoma-ml==0.1.0", "tiledbsoma==2.3.0", "torch==2.13.0", "anndata==0.12.19", "numpy==2.4.6",
#   "scipy==1.17.1",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "loading"
# ///

import sys
from pathlib import Path

import tiledbsoma
import tiledbsoma.io
import torch
from loading_case import BATCH, measure
from tiledbsoma_ml import ExperimentDataset


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    place = out / "experiment"
    if not place.exists():
        partial = out / "experiment.partial"
        tiledbsoma.io.from_h5ad(str(partial), str(case / "cells.h5ad"), measurement_name="RNA")
        partial.rename(place)
    with tiledbsoma.Experiment.open(str(place)) as experiment:
        query = experiment.axis_query(measurement_name="RNA")
        batches = ExperimentDataset(
            query, layer_name="data", batch_size=BATCH, shuffle=True, seed=0, return_sparse_X=True
        )
        measure((X for X, _ in batches), out, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
