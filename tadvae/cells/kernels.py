"""Loops over ragged cells, compiled by numba."""

import math

import numpy as np

from tadvae.base.numba_jit import kernel


@kernel
def take_cells(
    gene_ids: np.ndarray, values: np.ndarray, offsets: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copy the tokens of some cells, in the order of ``rows``: gene ids, values, offsets."""
    # The offsets come first, so that the outputs are allocated once, at their final size.
    taken = np.zeros(len(rows) + 1, np.int64)
    for i in range(len(rows)):
        taken[i + 1] = taken[i] + offsets[rows[i] + 1] - offsets[rows[i]]
    ids = np.empty(taken[-1], gene_ids.dtype)
    data = np.empty(taken[-1], values.dtype)
    for i in range(len(rows)):
        # Unsigned indices: numba would otherwise check each for a negative value, which stops vectorisation.
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
    """Add the values of all cells to the sums per gene.

    Parameters
    ----------
    data, gene_ids, offsets
        Values and gene ids of the T tokens of B cells, shape (T,), and the start of each cell, (B + 1,).
    per_cell
        Factor that each cell's values are multiplied by, float64, shape (B,).
    log1p
        Whether the values are log1p values; ``per_cell`` is then not used.
    total, square, detected
        Changed in place: sums of values, sums of squares, and number of values other than zero; float64,
        shape (n_genes,).
    """
    # Sums in float64, one cell after the other: float32 sums lose digits over millions of cells, and a fixed
    # order makes the result reproducible bit for bit.
    for cell in range(len(offsets) - 1):
        for i in range(offsets[cell], offsets[cell + 1]):
            value = math.expm1(np.float64(data[i])) if log1p else data[i] * per_cell[cell]
            gene = np.uint64(gene_ids[i])
            total[gene] += value
            square[gene] += value * value
            detected[gene] += value != 0
