"""Normalisation and highly variable genes, from streaming moments.

Source: the paper's section "Data" (CPM, log1p, the most variable genes); the choice of genes follows
scanpy's ``highly_variable_genes`` with ``flavor="seurat"``, which needs only each gene's mean and
variance, so one pass over any number of cells is enough.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import sparse

from tadvae.config import Config
from tadvae.errors import UserError
from tadvae.store.kernels import add_moments

SCALE = {"cpm": 1e6, "cp10k": 1e4, "tpm": 1e6}


class PreprocessConfig(Config):
    """How stored counts become the model's values, and which genes it sees."""

    normalize: Literal["cpm", "cp10k", "tpm"] = "cp10k"
    """Counts per million (the paper), per ten thousand, or per million by transcript length."""
    genes: str = "all"
    """Genes that may be tokens: ``all`` of the store, ``protein_coding``, or a file with one gene a line;
    perturbation targets are always kept."""
    n_top_genes: int | Literal["all"] = Field("all")
    """Highly variable genes of each dataset, chosen on training cells; perturbation targets are kept too."""


@dataclass(frozen=True)
class Moments:
    """Sums over cells, by gene of the vocabulary, of linear normalised values (CP10K scale).

    Attributes
    ----------
    n
        Number of cells.
    total, square
        Sums of values and of their squares, float64, shape (n_genes,).
    detected
        Number of cells with a value above zero, shape (n_genes,).
    """

    n: int
    total: np.ndarray
    square: np.ndarray
    detected: np.ndarray

    @classmethod
    def of(cls, values: sparse.csr_matrix, library: np.ndarray, *, log1p: bool) -> "Moments":
        """Moments of some cells.

        Parameters
        ----------
        values
            Raw counts, or log1p values where ``log1p``; shape (n, n_genes).
        library
            Total counts of each cell, shape (n,); unused where ``log1p``.
        """
        per_cell = np.divide(SCALE["cp10k"], library, out=np.zeros(len(library)), where=library > 0)
        sums = [np.zeros(values.shape[1]) for _ in range(3)]
        add_moments(values.data, values.indices, values.indptr, per_cell, log1p, *sums)
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
        """Merge in the order given, so that the last bit does not depend on who finished first."""
        result = cls(0, np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes))
        for part in parts:
            result = result + part
        return result

    def arrays(self) -> dict[str, np.ndarray]:
        """For an ``.npz`` file."""
        return {"n": np.array(self.n), "total": self.total, "square": self.square, "detected": self.detected}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Moments":
        """Inverse of :meth:`arrays`."""
        return cls(int(arrays["n"]), arrays["total"], arrays["square"], arrays["detected"])

    @property
    def mean(self) -> np.ndarray:
        """Mean by gene, shape (n_genes,)."""
        return self.total / max(self.n, 1)

    @property
    def variance(self) -> np.ndarray:
        """Unbiased variance by gene, shape (n_genes,)."""
        if self.n < 2:
            return np.zeros_like(self.total)
        return np.maximum(self.square - self.total**2 / self.n, 0.0) / (self.n - 1)

    def scaled(self, factor: float) -> "Moments":
        """Moments of the same values times ``factor``."""
        return Moments(self.n, self.total * factor, self.square * factor**2, self.detected)


def rank_variable_genes(mean: np.ndarray, variance: np.ndarray, n_bins: int = 20) -> np.ndarray:
    """Rank genes by normalised dispersion, most variable first (0).

    Parameters
    ----------
    mean, variance
        Of the linear normalised values of each measured gene, shape (G,).

    Returns
    -------
    Ranks, int64, shape (G,). Genes without any dispersion come last.

    Notes
    -----
    Satija et al. 2015 as scanpy computes it (``flavor="seurat"``): log dispersion, standardised within
    20 bins of log mean; a bin of one gene has its dispersion as its own standard deviation.
    """
    mean = np.where(mean == 0, 1e-12, mean)
    dispersion = variance / mean
    dispersion[dispersion == 0] = np.nan
    frame = pd.DataFrame({"mean": np.log1p(mean), "dispersion": np.log(dispersion)})
    frame["bin"] = pd.cut(frame["mean"], bins=n_bins, labels=False)
    binned = frame.groupby("bin")["dispersion"]
    centre, spread = binned.mean(), binned.std(ddof=1)
    alone = spread.isna()
    spread[alone] = centre[alone]
    centre[alone] = 0.0
    score = (frame["dispersion"] - frame["bin"].map(centre)) / frame["bin"].map(spread)
    # Rounded: scores tie (as in every bin of two genes), and the last bit hangs on how moments were merged.
    order = np.argsort(-score.fillna(-np.inf).to_numpy().round(9), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def choose_genes(
    moments: Moments, measured: np.ndarray, targets: np.ndarray, config: PreprocessConfig
) -> np.ndarray:
    """Genes of one dataset that the model sees.

    Parameters
    ----------
    moments
        Of the dataset's training cells.
    measured
        Sorted vocabulary indices of the dataset's panel, shape (G,).
    targets
        Vocabulary indices of perturbation targets; those measured are always kept.

    Returns
    -------
    Sorted vocabulary indices, shape (<= G,).
    """
    if config.n_top_genes == "all" or config.n_top_genes >= len(measured):
        return measured
    scaled = moments.scaled(SCALE[config.normalize] / SCALE["cp10k"])
    rank = rank_variable_genes(scaled.mean[measured], scaled.variance[measured])
    kept = (rank < config.n_top_genes) | np.isin(measured, targets)
    return measured[kept]


def normalize(
    counts: np.ndarray,
    gene_ids: np.ndarray,
    offsets: np.ndarray,
    library: np.ndarray,
    method: str,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Log-normalise ragged counts: ``log(1 + scale * count / total)``.

    Parameters
    ----------
    counts, gene_ids
        Of T tokens, shape (T,).
    offsets
        Where each of B cells starts, shape (B + 1,).
    library
        Total counts of each cell, shape (B,). A cell without counts stays empty.
    method
        ``cpm``, ``cp10k`` or ``tpm``; ``tpm`` needs ``lengths`` (bases, by vocabulary index) and takes the
        cell's total from its own length-scaled counts.

    Returns
    -------
    float32, shape (T,).
    """
    n_tokens = np.diff(offsets)
    values = counts.astype(np.float64)
    if method == "tpm":
        if lengths is None:
            raise UserError(
                "normalize: tpm needs gene lengths; name their column as 'genes: {length: …}' "
                "of the dataset in the spec and convert again, or use cp10k."
            )
        values = values / (lengths[gene_ids] / 1e3)
        library = np.bincount(
            np.repeat(np.arange(len(n_tokens)), n_tokens), weights=values, minlength=len(n_tokens)
        )
    per_cell = np.divide(SCALE[method], library, out=np.zeros(len(library)), where=library > 0)
    result: np.ndarray = np.log1p(values * np.repeat(per_cell, n_tokens)).astype(np.float32)
    return result
