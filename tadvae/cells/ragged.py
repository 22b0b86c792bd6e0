"""Sparse cells without padding: the expressed genes of many cells in one array, one cell after the other.

It is the CSR layout of a scipy matrix, as plain numpy arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True)
class Cells:
    """B cells with T tokens (expressed genes) in all, in numpy; the network reads :class:`PackedCells`.

    Attributes
    ----------
    gene_ids
        Vocabulary indices, sorted within a cell, shape (T,).
    values
        Log-normalised expression, float32, shape (T,).
    offsets
        Position of each cell's first token, and T at the end, int64, shape (B + 1,).
    total_counts
        Library size of each cell, shape (B,).

    Raises
    ------
    ValueError
        If the shapes contradict each other; compiled loops read beyond arrays that do.
    """

    gene_ids: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    total_counts: np.ndarray

    def __post_init__(self) -> None:
        n, offsets = len(self.gene_ids), self.offsets
        fits = (
            len(offsets) == len(self.total_counts) + 1
            and len(self.values) == n
            and offsets[0] == 0
            and offsets[-1] == n
            and (offsets[1:] >= offsets[:-1]).all()
        )
        if not fits:
            raise ValueError(
                f"cells whose arrays do not fit together: {n} gene ids, {len(self.values)} values, "
                f"{len(offsets)} offsets, {len(self.total_counts)} library sizes"
            )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, span: slice) -> "Cells":
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"cells are sliced without gaps, step {step} is not possible; use take")
        stop = max(start, stop)
        a, b = self.offsets[start], self.offsets[stop]
        return Cells(
            self.gene_ids[a:b],
            self.values[a:b],
            self.offsets[start : stop + 1] - a,
            self.total_counts[start:stop],
        )

    def take(self, rows: np.ndarray) -> "Cells":
        """Return the cells ``rows`` in that order; repeats are allowed."""
        from tadvae.cells.kernels import take_cells  # imported here: the network runs without numba

        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)} cells")
        ids, values, offsets = take_cells(self.gene_ids, self.values, self.offsets, rows)
        return Cells(ids, values, offsets, self.total_counts[rows])

    @classmethod
    def concat(cls, parts: Sequence["Cells"]) -> "Cells":
        """Concatenate the cells of all parts."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(1, np.int64), np.empty(0))
        n_tokens = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            np.concatenate([part.gene_ids for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([[0], np.cumsum(n_tokens)]),
            np.concatenate([part.total_counts for part in parts]),
        )

    def to_csr(self, genes: np.ndarray) -> sparse.csr_matrix:
        """Values on a sorted gene list that holds all of the cells' genes, float32, shape (B, G)."""
        column = np.searchsorted(genes, self.gene_ids)
        return sparse.csr_matrix((self.values, column, self.offsets), (len(self), len(genes)))

    def dense(self, genes: np.ndarray) -> np.ndarray:
        """Values on a sorted gene list that holds all of the cells' genes, float32, shape (B, G)."""
        result = np.zeros((len(self), len(genes)), np.float32)
        row = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        result[row, np.searchsorted(genes, self.gene_ids)] = self.values
        return result


def runs(bag_of_row: np.ndarray) -> list[tuple[int, int]]:
    """Return start and stop of every run of equal bag ids."""
    starts = np.flatnonzero(np.diff(bag_of_row, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(bag_of_row)], strict=True)) if starts else []
