"""protoplast on the file: shuffled blocks of contiguous cells, which its own strategy lays out.

Its samples are torch tensors of sparse rows; a batch of 64 is a part of one block.

    python run_protoplast.py CASE OUT
"""

# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "protoplast==0.1.3", "torch==2.13.0", "anndata==0.12.19", "numpy==2.4.6", "scipy==1.17.1",
# ]
# [tool.tadvae-peer]
# python = "3.11"
# job = "loading"
# ///

import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import MagicMock, patch

import torch
from loading_case import BATCH, measure
from scipy import sparse

FETCH = 16
ABSENT = ("torchvision", "torchvision.models", "torchvision.transforms")
"""Imported by torchmetrics, and not called here; the build on the index needs CUDA."""


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with patch.dict(sys.modules, {name: MagicMock() for name in ABSENT}):
        from protoplast.scrna.anndata.strategy import SequentialShuffleStrategy
        from protoplast.scrna.anndata.torch_dataloader import DistributedAnnDataset
    strategy = SequentialShuffleStrategy(
        [str(case / "cells.h5ad")], batch_size=BATCH, total_workers=1, test_size=0.0, validation_size=0.0,
        prefetch_factor=FETCH, random_seed=1,
    )  # fmt: skip
    cells = DistributedAnnDataset.create_distributed_ds(strategy.split(), "X")

    def batches() -> Iterator[sparse.csr_matrix]:
        for X in cells:
            parts = [part.numpy() for part in (X.values(), X.col_indices(), X.crow_indices())]
            yield sparse.csr_matrix(tuple(parts), shape=tuple(X.shape))

    measure(batches(), out, case / "cells.h5ad")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
