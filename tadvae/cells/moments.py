"""Mean and variance of every gene from streaming sums over cells."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from tadvae.cells.kernels import add_moments
from tadvae.cells.normalize import SCALE


@dataclass(frozen=True)
class Moments:
    """Sums over cells of linear normalised values (CP10K scale) or of effects, per gene of the vocabulary.

    Attributes
    ----------
    n
        Number of cells.
    total, square
        Sums of values and of their squares, float64, shape (n_genes,).
    detected
        Number of cells with a value other than zero, shape (n_genes,).
    """

    n: int
    total: np.ndarray
    square: np.ndarray
    detected: np.ndarray

    @classmethod
    def of(cls, values: sparse.csr_matrix, library: np.ndarray, said: str) -> "Moments":
        """Compute the moments of some cells.

        Parameters
        ----------
        values
            Shape (n, n_genes).
        library
            Total counts of each cell, shape (n,); used for counts only.
        said
            What the values are: ``counts``, ``log1p`` or ``effects``.
        """
        values.check_format(full_check=True)  # the loop writes to where the column indices say
        per_cell = np.ones(len(library))
        if said == "counts":
            per_cell = np.divide(SCALE["cp10k"], library, out=np.zeros(len(library)), where=library > 0)
        sums = [np.zeros(values.shape[1]) for _ in range(3)]
        add_moments(values.data, values.indices, values.indptr, per_cell, said == "log1p", *sums)
        return cls(values.shape[0], *sums)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.n + other.n,
            self.total + other.total,
            self.square + other.square,
            self.detected + other.detected,
        )

    @classmethod
    def sum(cls, parts: Iterable["Moments"], n_genes: int) -> "Moments":
        """Merge in the given order, so that the sums do not depend on which task finished first."""
        result = cls(0, np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes))
        for part in parts:
            result = result + part
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        """The sums as arrays for an ``.npz`` file."""
        return {"n": np.array(self.n), "total": self.total, "square": self.square, "detected": self.detected}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        """Inverse of :meth:`arrays`."""
        return cls(int(arrays["n"]), arrays["total"], arrays["square"], arrays["detected"])

    @property
    def mean(self) -> np.ndarray:
        """Mean per gene, float64, shape (n_genes,)."""
        return self.total / max(self.n, 1)

    @property
    def variance(self) -> np.ndarray:
        """Unbiased variance per gene, float64, shape (n_genes,)."""
        if self.n < 2:
            return np.zeros_like(self.total)
        return np.maximum(self.square - self.total**2 / self.n, 0.0) / (self.n - 1)

    def scaled(self, factor: float) -> "Moments":
        """Moments of the values multiplied by ``factor``."""
        return Moments(self.n, self.total * factor, self.square * factor**2, self.detected)
