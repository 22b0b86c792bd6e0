"""What a network reads in cells: activities, latent means, and the genes behind an activity."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds

from tadvae.cells.ragged import Cells
from tadvae.model.device import device_of, to_numpy
from tadvae.model.new_cells import NewCells
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells

CELLS_AT_ONCE = 1024
AXES = 20
"""Principal axes onto which cells are projected before their activities are read."""


@dataclass(frozen=True)
class Smoothed:
    """Cells projected onto n principal axes, ``x̃ = m + AᵀA (x − m)``, less each cell's mean over its genes.

    What many genes of a cell agree on remains, in every measured gene; most of the noise of counts does not.
    The mean over genes is subtracted because counts are relative: where some genes of a cell go up, all
    others go down. An activity read from it is still a sum over the pathway's own genes, of x̃ in place of x.

    Attributes
    ----------
    mean : (G,)
        m, the mean of the cells, less its own mean over genes.
    axes : (n, G)
        A, orthonormal rows, each less its own mean over genes.
    scores : (n_cells, n)
        A (x − m), with A and m as they were before.
    """

    mean: np.ndarray
    axes: np.ndarray
    scores: np.ndarray


def encode(module: TADVAEModule, cells: NewCells) -> tuple[np.ndarray, np.ndarray]:
    """Activities, shape (n_cells, P), whatever the panel can see, and latent means, shape (n_cells, K)."""
    device = device_of(module)
    available = torch.from_numpy(cells.available).to(device)
    activities, latents = [], []
    with torch.no_grad():
        for start in range(0, len(cells.cells), CELLS_AT_ONCE):
            part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], device, panels=[cells.genes])
            activity, mean, _ = module.encode(part, available.expand(part.n_cells, -1))
            activities.append(to_numpy(activity))
            latents.append(to_numpy(mean))
    return np.concatenate(activities), np.concatenate(latents)


def project(cells: NewCells, n_axes: int) -> Smoothed:
    """Project cells onto their n leading principal axes; onto all of them, if they have no more."""
    mean, axes = principal_axes(cells, n_axes)
    return project_onto(cells, mean, axes)


def project_onto(cells: NewCells, mean: np.ndarray, axes: np.ndarray) -> Smoothed:
    """Project cells onto given axes (n, G) through a mean (G,), each cell by itself."""
    scores = cells.cells.to_csr(cells.genes).astype(np.float64) @ axes.T - mean @ axes.T
    return Smoothed(mean - mean.mean(), axes - axes.mean(axis=1, keepdims=True), scores)


def principal_axes(cells: NewCells, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of cells (G,), and their n leading principal axes (n, G); all of them, if they have no more."""
    return axes_of(cells.cells.to_csr(cells.genes).astype(np.float64), n_axes)


def axes_of(X: sparse.csr_matrix, n_axes: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`principal_axes` of a matrix (n_cells, G).

    Many cells are never made dense: the axes come from the sparse matrix (ARPACK, with a fixed start).
    """
    mean = np.asarray(X.mean(axis=0)).ravel() if X.shape[0] else np.zeros(X.shape[1])
    if n_axes < min(X.shape) - 1:
        # (X − 1 mᵀ) v and its transpose, without the dense X − 1 mᵀ
        centred = LinearOperator(
            X.shape,
            matvec=lambda v: X @ v.ravel() - mean @ v.ravel(),
            rmatvec=lambda u: X.T @ u.ravel() - mean * u.sum(),
            dtype=X.dtype,
        )
        start = np.random.default_rng(0).normal(size=min(X.shape))
        axes = svds(centred, k=n_axes, v0=start, return_singular_vectors="vh")[2]
    else:
        axes = np.linalg.svd(X.toarray() - mean, full_matrices=False)[2]
    return mean, axes


def smoothed_activities(module: TADVAEModule, cells: NewCells, smoothed: Smoothed) -> np.ndarray:
    """Activities of smoothed cells, whatever the panel can see, shape (n_cells, P).

    The pathway layer has to be linear in expression (``PathwayLayer.is_linear``): then the activity of
    ``m + Σ_k s_k A_k`` is the bias plus the linear part at m and at every axis, and no dense cell is read.
    """
    bias = to_numpy(module.pathway.bias)
    rows = np.concatenate([smoothed.mean[None], smoothed.axes])
    linear = _read_dense(module, rows, cells.genes) - bias  # (1 + n, P)
    result: np.ndarray = linear[0] + smoothed.scores.astype(np.float32) @ linear[1:] + bias
    return result


def _read_dense(module: TADVAEModule, values: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Activities of rows with a value for every gene of a panel, (n, G) to (n, P)."""
    device, (n, width) = device_of(module), values.shape
    offsets = np.arange(n + 1, dtype=np.int64) * width
    rows = Cells(np.tile(genes, n), values.astype(np.float32).ravel(), offsets, np.full(n, np.nan))
    with torch.no_grad():
        return to_numpy(module.pathway(PackedCells.of(rows, device, panels=[genes])))


def smoothed_contributions(
    module: TADVAEModule, cells: NewCells, smoothed: Smoothed, pathway: int, genes: np.ndarray
) -> np.ndarray:
    """:func:`contributions` of smoothed cells: each gene's weight times its smoothed value."""
    n = len(cells.genes)
    one = Cells(cells.genes, np.ones(n, np.float32), np.array([0, n]), np.array([np.nan]))
    weight = contributions(module, replace(cells, cells=one), pathway, genes)[0]  # (G,)
    at = np.searchsorted(cells.genes, genes)
    result: np.ndarray = weight * (smoothed.mean[at] + smoothed.scores @ smoothed.axes[:, at])
    return result.astype(np.float32)


def contributions(module: TADVAEModule, cells: NewCells, pathway: int, genes: np.ndarray) -> np.ndarray:
    """What each of some genes (sorted vocabulary indices) adds to a pathway, shape (n_cells, G)."""
    result = np.zeros((len(cells.cells), len(genes)), np.float32)
    device = device_of(module)
    for start in range(0, len(cells.cells), CELLS_AT_ONCE):
        part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], device, panels=[cells.genes])
        with torch.no_grad():
            parts = module.pathway.contributions(part, pathway)
        column = np.searchsorted(genes, to_numpy(parts.gene))
        result[start + to_numpy(parts.cell), column] = to_numpy(parts.value)
    return result
