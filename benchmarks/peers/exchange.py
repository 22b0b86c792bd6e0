"""What goes to a program and what comes back, in files that need nothing of ours to be read.

A case is a folder with ``case.json``. Of pathways: ``cells`` (name to ``.h5ad``: log1p of counts per ten
thousand) and ``pathways`` (a GMT file over the same gene identifiers). A program writes
``METHOD/NAME.npz``: ``activity`` (n, P) and ``pathways`` (P,), or ``METHOD/error.txt``. Of prediction: see
:mod:`peers.prediction_tests`.
"""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

TARGET_SUM = 1e4


def normalised(counts: sparse.csr_matrix, total: np.ndarray | None = None) -> sparse.csr_matrix:
    """log1p of counts per ten thousand, float32, (n, G)."""
    total = np.asarray(counts.sum(axis=1)).ravel() if total is None else total
    return (
        sparse.csr_matrix(sparse.diags(TARGET_SUM / np.maximum(total, 1)) @ counts).log1p().astype(np.float32)
    )


def smoothed(X: sparse.csr_matrix, n_axes: int) -> np.ndarray:
    """Cells projected onto their leading principal axes, (n, G); ``TADVAE.activities`` goes on from there."""
    dense = X.toarray().astype(np.float64)
    mean = dense.mean(axis=0)
    axes = np.linalg.svd(dense - mean, full_matrices=False)[2][:n_axes]
    return (mean + (dense - mean) @ axes.T @ axes).astype(np.float32)


def write_cells(
    place: Path,
    X: sparse.csr_matrix | np.ndarray,
    genes: list[str],
    cells: list[str],
    obs: pd.DataFrame | None = None,
    counts: sparse.csr_matrix | None = None,
) -> None:
    """Write values (n, G) once, with counts as a layer if they are given."""
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        obs = pd.DataFrame(index=cells) if obs is None else obs
        layers = {} if counts is None else {"counts": counts}
        adata = ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes), layers=layers)
        adata.write_h5ad(place, compression="gzip")


def write_case(folder: Path, about: dict) -> Path:
    """Write a case's description, the last of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").write_text(json.dumps(about, indent=1))
    return folder


def read_activity(place: Path) -> pd.DataFrame:
    """What a program gave for the cells of one file: (n, P), columns are pathways."""
    with np.load(place) as found:
        return pd.DataFrame(found["activity"], columns=found["pathways"].astype(str))
