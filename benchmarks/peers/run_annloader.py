"""The experimental AnnLoader of anndata on the backed file: random cells, batches of 64.

python run_annloader.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["anndata==0.12.19", "torch==2.13.0", "numpy==2.4.6", "scipy==1.17.1"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "loading"
# ///

import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import torch
from anndata.experimental import AnnLoader
from loading_case import BATCH, measure
from scipy import sparse


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    adata = ad.read_h5ad(case / "cells.h5ad", backed="r")

    def batches() -> Iterator[sparse.csr_matrix]:
        for batch in AnnLoader(adata, batch_size=BATCH, shuffle=True, use_cuda=False):
            X = batch.X
            if isinstance(X, torch.Tensor):
                X = X.to_dense().numpy()
            yield sparse.csr_matrix(np.asarray(X) if not sparse.issparse(X) else X)

    measure(batches(), out, case / "cells.h5ad")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
