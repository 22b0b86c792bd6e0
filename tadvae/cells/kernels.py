"""Loops over ragged cells, compiled by numba."""

import math

import numpy as np

from tadvae.base.numba_jit import kernel


@kernel
def take_cells(
    gene_ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of some cells, in the order of ``rows``; gene ids, values, offsets."""
    taken = np.zeros(len(rows) + 1, np.int64)
    for i in range(len(rows)):
        taken[i + 1] = taken[i] + offsets[rows[i] + 1] - offsets[rows[i]]
    ids = np.empty(taken[-1], gene_ids.dtype)
    data = np.empty(taken[-1], values.dtype)
    for i in range(len(rows)):
        start, at = np.uint64(offsets[rows[i]]), np.uint64(taken[i])
        for j in range(np.uint64(taken[i + 1]) - at):
            ids[at + j] = gene_ids[start + j]
            data[at + j] = values[start + j]
    return ids, data, taken


@kernel
def add_moments(
    data: np.ndarray,
    gene_ids: np.ndarray,
    offsets: np.ndarray,
    per_cell: np.ndarray,
    log1p: bool,
    total: np.ndarray,
    square: np.ndarray,
    detected: np.ndarray,
) -> None:
    """Add every cell's values to the sums by gene.

    Parameters
    ----------
    data, gene_ids, offsets
        Of B cells.
    per_cell
        Factor of each cell's values, float64, shape (B,).
    log1p
        The values are log1p values; the factor is then not used.
    total, square, detected
        Sums of values and of their squares, and how many are above zero; float64, shape (n_genes,).
    """
    for cell in range(len(offsets) - 1):
        for i in range(offsets[cell], offsets[cell + 1]):
            value = math.expm1(np.float64(data[i])) if log1p else data[i] * per_cell[cell]
            gene = np.uint64(gene_ids[i])
            total[gene] += value
            square[gene] += value * value
            detected[gene] += value > 0
