"""scDataset on the backed file: blocks of 16 cells and a fetch factor of 16, the values of its documentation.

python run_scdataset.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["scdataset==0.3.0", "torch==2.13.0", "anndata==0.12.19", "numpy==2.4.6", "scipy==1.17.1"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "loading"
# ///

import sys
from pathlib import Path

import anndata as ad
import torch
from loading_case import BATCH, measure
from scdataset import BlockShuffling, scDataset
from scipy import sparse

BLOCK, FETCH = 16, 16


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    adata = ad.read_h5ad(case / "cells.h5ad", backed="r")
    batches = scDataset(
        adata, BlockShuffling(block_size=BLOCK), batch_size=BATCH, fetch_factor=FETCH,
        fetch_callback=lambda cells, rows: sparse.csr_matrix(cells.X[rows]),
    )  # fmt: skip
    measure(batches, out, case / "cells.h5ad")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
