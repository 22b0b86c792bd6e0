"""Predictions as counts of molecules."""

import numpy as np

from tadvae.base.errors import UserError
from tadvae.cells.normalize import SCALE
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.start import Start


def counts_of(start: Start, vocabulary: Vocabulary, units: str) -> "Counts | None":
    """What turns predictions into counts, None for ``log1p``; other units are a UserError."""
    if units not in ("log1p", "counts"):
        raise UserError(f"units={units!r}: expected 'log1p' or 'counts'.")
    return Counts(start, vocabulary) if units == "counts" else None


class Counts:
    """Predictions as counts, at the library sizes of the cells that they start from.

    A cell whose library size is not known gets that to which the normalisation scales a cell (10,000 for
    ``cp10k``).

    Raises
    ------
    UserError
        If the values of the dataset cannot be brought back to counts.
    """

    def __init__(self, start: Start, vocabulary: Vocabulary) -> None:
        entry, method = vocabulary.datasets[start.dataset], start.method
        if entry.has_effects:
            raise UserError(
                f"dataset '{entry.name}' holds signatures, whose predictions are effects and no counts; "
                "leave out --as counts."
            )
        if method not in ("cpm", "cp10k"):
            reason = (
                "counts from TPM need the lengths of transcripts, which a model does not have"
                if method == "tpm"
                else "it holds values that were log-transformed before, whose scale is not known"
            )
            raise UserError(f"dataset '{entry.name}': no counts, because {reason}; leave out --as counts.")
        self._cell = np.where(np.isnan(start.depth), 1.0, start.depth / SCALE[method])  # (n,)
        self._cells, self._genes = start.cells, start.genes
        self._sums: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def of_cells(self, values: np.ndarray) -> np.ndarray:
        """Counts of predicted cells (n, G), float32; a value below zero is a count of zero."""
        result: np.ndarray = (np.expm1(np.maximum(values, 0.0)) * self._cell[:, None]).astype(np.float32)
        return result

    def of_changes(self, changes: np.ndarray) -> np.ndarray:
        """Mean counts over the cells, each changed by the same mean changes (M, G), float64, shape (M, G).

        ``1/n Σ_i L_i max(exp(x_i + δ) − 1, 0)`` with values x_i (n, G) and library sizes L_i in units of the
        normalisation: ``exp(δ) A − B`` with sums A, B over the cells above −δ, from cumulative sums.
        """
        if self._sums is None:
            self._sums = self._cumulate()
        values, above, weight = self._sums
        zero = np.empty(changes.shape, np.int64)
        for g in range(changes.shape[1]):
            zero[:, g] = np.searchsorted(values[:, g], -changes[:, g], side="right")
        inside = np.take_along_axis(above, zero, axis=0)  # (M, G)
        result: np.ndarray = np.exp(changes) * inside - np.take_along_axis(weight, zero, axis=0)
        result = np.maximum(result, 0.0)  # rounding
        return result

    def _cumulate(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sorted values (n, G), and Σ L exp(x) / n and Σ L / n over the cells from each on, (n + 1, G)."""
        dense = self._cells.dense(self._genes).astype(np.float64)
        order = np.argsort(dense, axis=0, kind="stable")
        values = np.take_along_axis(dense, order, axis=0)
        weight = self._cell[order] / len(dense)
        sums = []
        for part in (weight * np.exp(values), weight):
            sums.append(np.concatenate([np.cumsum(part[::-1], axis=0)[::-1], np.zeros((1, dense.shape[1]))]))
        return values, sums[0], sums[1]
