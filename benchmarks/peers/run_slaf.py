"""SLAF, converted with its defaults: raw batches of 64 cells of its mixture of scanners.

python run_slaf.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "slafdb==0.5.2", "torch==2.13.0", "pylance==14.0.2", "polars==2.1.0", "anndata==0.12.19", "numpy==2.4.6",
#   "scipy==1.16.3", "psutil==7.2.2",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "loading"
# ///

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from loading_case import BATCH, measure
from scipy import sparse
from slaf import SLAFArray
from slaf.data.converter import SLAFConverter
from slaf.ml.dataloaders import SLAFDataLoader


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    place = out / "cells.slaf"
    if not place.exists():
        partial = out / "partial.slaf"
        SLAFConverter().convert(str(case / "cells.h5ad"), str(partial))
        partial.rename(place)
    array = SLAFArray(str(place))
    n_genes = int(array.shape[1])

    def batches() -> Iterator[sparse.csr_matrix]:
        for batch in SLAFDataLoader(array, batch_size=BATCH, raw_mode=True, verbose=False):
            columns = ("cell_integer_id", "gene_integer_id", "value")
            cell, gene, value = (batch["x"][name].to_numpy() for name in columns)
            _, row = np.unique(cell, return_inverse=True)
            n = len(batch["cell_ids"])
            yield sparse.csr_matrix((value.astype(np.float32), (row, gene)), shape=(n, n_genes))

    measure(batches(), out, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
