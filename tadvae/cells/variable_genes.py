"""Highly variable genes from streaming moments.

Source: the paper's section "Data" (the most variable genes); the ranking follows scanpy's
``highly_variable_genes`` with ``flavor="seurat"``, which needs only each gene's mean and variance, so one
pass over any number of cells is enough.
"""

import numpy as np
import pandas as pd

from tadvae.cells.moments import Moments
from tadvae.cells.normalize import SCALE, PreprocessConfig


def rank_variable_genes(mean: np.ndarray, variance: np.ndarray, n_bins: int = 20) -> np.ndarray:
    """Rank genes by normalised dispersion, most variable first (0).

    Parameters
    ----------
    mean, variance
        Mean and variance of the linear normalised values of each measured gene, shape (G,).

    Returns
    -------
    Ranks, int64, shape (G,). Genes without any dispersion come last.

    Notes
    -----
    Satija et al. 2015 as scanpy computes it (``flavor="seurat"``): log dispersion, standardised within
    20 bins of log mean; a bin of one gene has its dispersion as its own standard deviation.
    """
    mean = np.where(mean == 0, 1e-12, mean)  # as scanpy: avoids 0 / 0 for genes that are never detected
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
    # Rounded because scores tie (in every bin of two genes) and their last bits depend on how the moments
    # were merged; without rounding the order of tied genes would not be reproducible.
    order = np.argsort(-score.fillna(-np.inf).to_numpy().round(9), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def rank_effects(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Rank genes by the mean square of their effects, largest first (0).

    Parameters
    ----------
    mean, variance
        Mean and variance of the signed effects of each measured gene, shape (G,).
    """
    size = (mean**2 + variance).round(9)  # rounded as in rank_variable_genes
    rank = np.empty(len(size), np.int64)
    rank[np.argsort(-size, kind="stable")] = np.arange(len(size))
    return rank


def choose_genes(
    moments: Moments,
    measured: np.ndarray,
    targets: np.ndarray,
    config: PreprocessConfig,
    effects: bool = False,
) -> np.ndarray:
    """Choose the genes of one dataset that the model sees.

    Parameters
    ----------
    moments
        Moments of the dataset's training cells.
    measured
        Sorted vocabulary indices of the dataset's panel, shape (G,).
    targets
        Vocabulary indices of perturbation targets; those measured are always kept.
    effects
        Whether the dataset holds signed effects, which have no dispersion.

    Returns
    -------
    Sorted vocabulary indices, shape (<= G,).
    """
    if config.n_top_genes == "all" or config.n_top_genes >= len(measured):
        return measured
    if effects:
        rank = rank_effects(moments.mean[measured], moments.variance[measured])
    else:
        scaled = moments.scaled(SCALE[config.normalize] / SCALE["cp10k"])
        rank = rank_variable_genes(scaled.mean[measured], scaled.variance[measured])
    kept = (rank < config.n_top_genes) | np.isin(measured, targets)
    return measured[kept]
