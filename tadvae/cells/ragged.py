"""Packed batches: ragged cells without padding, grouped in bags.

A batch is plain arrays. ``Cells`` holds any number of cells end to end; ``Batch`` pairs bags of perturbed
cells with control cells of the same dataset and context.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Cells:
    """B ragged cells of T tokens in all (numpy; the model sees :class:`PackedCells`).

    Attributes
    ----------
    gene_ids
        Vocabulary indices, sorted within a cell, shape (T,).
    values
        Log-normalised expression, float32, shape (T,).
    offsets
        Where each cell starts, int64, shape (B + 1,).
    total_counts
        Library size of each cell, shape (B,).
    """

    gene_ids: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    total_counts: np.ndarray

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
        """The cells ``rows``, in that order, repeats allowed."""
        from tadvae.cells.kernels import take_cells  # the network itself runs without numba

        ids, values, offsets = take_cells(self.gene_ids, self.values, self.offsets, rows)
        return Cells(ids, values, offsets, self.total_counts[rows])

    @classmethod
    def concat(cls, parts: Sequence["Cells"]) -> "Cells":
        """Cells of all parts, end to end."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(1, np.int64), np.empty(0))
        n_tokens = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            np.concatenate([part.gene_ids for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([[0], np.cumsum(n_tokens)]),
            np.concatenate([part.total_counts for part in parts]),
        )

    def dense(self, genes: np.ndarray) -> np.ndarray:
        """Values on a sorted gene list that holds all of the cells' genes, float32, shape (B, G)."""
        result = np.zeros((len(self), len(genes)), np.float32)
        row = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        result[row, np.searchsorted(genes, self.gene_ids)] = self.values
        return result


def runs(bag_of_row: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of every run of equal bag ids."""
    starts = np.flatnonzero(np.diff(bag_of_row, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(bag_of_row)], strict=True)) if starts else []
