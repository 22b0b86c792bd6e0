"""VEGA with its defaults (800 hidden units, 500 epochs at most), on the cells that are scored.

Trained until the budget of CPU seconds is spent, if that comes first. Files are read with h5py: its anndata
is older than their format.

    python run_vega.py CASE OUT
"""

# /// script
# requires-python = ">=3.8,<3.9"
# dependencies = ["scvega==0.0.2", "pytorch-lightning==1.7.7", "torchmetrics==0.9.3", "numpy==1.23.5"]
# [tool.tadvae-peer]
# python = "3.8"
# job = "pathways"
# cases = ["truth", "panels", "targets"]
# ///

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
import vega
from pathway_case import AGAIN, BUDGET, MIN_GENES, each_file
from scipy import sparse
from vega import vega_model


def activity(place: Path, sets: dict[str, list[str]], seed: int = 1) -> pd.DataFrame:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    adata = read(place)
    measured = {name: [gene for gene in genes if gene in adata.var_names] for name, genes in sets.items()}
    measured = {name: genes for name, genes in measured.items() if len(genes) >= MIN_GENES}
    start, before = time.process_time(), vega_model.EarlyStopping.__call__

    def limited(stopping: object, loss: float) -> None:
        before(stopping, loss)
        stopping.early_stop |= time.process_time() - start > BUDGET

    with tempfile.TemporaryDirectory() as folder:
        gmt = Path(folder) / "sets.gmt"
        gmt.write_text("".join("\t".join([name, "x", *genes]) + "\n" for name, genes in measured.items()))
        vega.utils.setup_anndata(adata)
        model = vega.VEGA(adata, gmt_paths=str(gmt), add_nodes=1, positive_decoder=True)
    vega_model.EarlyStopping.__call__ = limited
    model.train_vega(n_epochs=500, use_gpu=False)
    vega_model.EarlyStopping.__call__ = before
    found = model.to_latent(return_mean=True)
    return pd.DataFrame(found[:, : len(measured)], columns=list(measured))


def read(place: Path) -> ad.AnnData:
    """Values of a file of cells as a dense matrix."""
    with h5py.File(place, "r") as file:
        X = file["X"]
        if isinstance(X, h5py.Dataset):
            values = X[:]
        else:
            parts = tuple(X[name][:] for name in ("data", "indices", "indptr"))
            values = sparse.csr_matrix(parts, shape=tuple(X.attrs["shape"])).toarray()
        obs, var = (file[name][file[name].attrs["_index"]].asstr()[:] for name in ("obs", "var"))
    values = values.astype(np.float32)
    return ad.AnnData(values, obs=pd.DataFrame(index=obs), var=pd.DataFrame(index=var))


if __name__ == "__main__":
    place, found = Path(sys.argv[1]), Path(sys.argv[2])
    each_file(place, found, "VEGA", activity)
    if place.name.startswith("truth"):
        each_file(place, found, "VEGA" + AGAIN, partial(activity, seed=2))
