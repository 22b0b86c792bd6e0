"""Scores on the genes that respond: found in the held-out cells by a Wilcoxon test, never in a prediction.

A gene responds to a perturbation if a two-sided Wilcoxon rank-sum test of its log-normalised expression in
perturbed and in control cells has a false discovery rate (Benjamini and Hochberg 1995) below 5% over all
measured genes. The perturbed genes themselves are left out of every score: that a knocked-down gene is lower
says nothing about a model.

A prediction enters only with its mean profile. So all methods are scored in the same way, with or without
cells of their own, and a score does not depend on how many cells were predicted.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

FDR = 0.05
"""False discovery rate below which a gene responds: the value of cell-eval."""

PSEUDOCOUNT = 0.1
"""Added to expression (counts per ten thousand, if cells are normalised so) for a finite fold change."""


@dataclass(frozen=True, eq=False)
class Response:
    """What is scored for one perturbation.

    Attributes
    ----------
    predicted, observed, control
        Mean log-normalised expression, shape (G,).
    responds
        Genes that truly respond, bool, shape (G,); without the perturbed genes.
    kept
        Genes that are scored, bool, shape (G,): all but the perturbed ones.
    """

    predicted: Array
    observed: Array
    control: Array
    responds: NDArray[np.bool_]
    kept: NDArray[np.bool_]


def responding_genes(cells: ArrayLike, controls: ArrayLike, fdr: float = FDR) -> NDArray[np.bool_]:
    """Genes that respond, from cells (n, G) and control cells (m, G): shape (G,).

    The test has the normal approximation with corrections for ties and continuity. A gene with one value in
    all cells does not respond.
    """
    from scipy.stats import false_discovery_control, mannwhitneyu  # training's workers test nothing

    x, y = np.asarray(cells), np.asarray(controls)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"cells: expected (n, G) and (m, G), got {x.shape} and {y.shape}.")
    p = np.ones(x.shape[1])
    lowest, highest = np.minimum(x.min(axis=0), y.min(axis=0)), np.maximum(x.max(axis=0), y.max(axis=0))
    varies = highest > lowest
    if varies.any():
        p[varies] = mannwhitneyu(x[:, varies], y[:, varies], axis=0, method="asymptotic").pvalue
    found: NDArray[np.bool_] = false_discovery_control(p, method="bh") < fdr
    return found


def log2_fold_change(profile: ArrayLike, control: ArrayLike, pseudocount: float = 0.0) -> Array:
    """log₂ fold change of geometric means, from mean log1p expression (..., G) and (G,).

    ``log₂((exp(m) − 1 + ε) / (exp(c) − 1 + ε))``, with m below 0 taken as 0; infinite where one of both is
    zero and ε = 0, and 0 where both are.

    Source: pdex, the test behind cell-eval (Adduri et al. 2025), where ε is 0.
    """
    above = np.expm1(np.maximum(np.asarray(profile, dtype=np.float64), 0.0)) + pseudocount
    below = np.expm1(np.maximum(np.asarray(control, dtype=np.float64), 0.0)) + pseudocount
    with np.errstate(divide="ignore", invalid="ignore"):
        change = np.log2(above) - np.log2(below)
    return np.where((above == 0.0) & (below == 0.0), 0.0, change)


def de_direction_match(response: Response) -> float:
    """Share of responding genes that a prediction moves in the right direction; in [0, 1].

    A gene that a prediction does not move counts as wrong. NaN if no gene responds.

    Source: the metric of this name in cell-eval.
    """
    chosen = response.responds
    if not chosen.any():
        return float("nan")
    predicted = np.sign(log2_fold_change(response.predicted, response.control))
    return float(
        np.mean((predicted == np.sign(log2_fold_change(response.observed, response.control)))[chosen])
    )


def de_spearman_lfc_sig(response: Response) -> float:
    """Rank correlation of predicted and true fold changes over the responding genes; in [-1, 1].

    0 for a prediction that moves all of them equally (cell-eval: NaN); NaN if fewer than two genes respond.

    Source: the metric of this name in cell-eval.
    """
    from scipy.stats import rankdata

    chosen = response.responds
    predicted = rankdata(log2_fold_change(response.predicted, response.control)[chosen])
    observed = rankdata(log2_fold_change(response.observed, response.control)[chosen])
    if len(observed) < 2 or np.ptp(observed) == 0.0:
        return float("nan")
    return float(np.corrcoef(predicted, observed)[0, 1]) if np.ptp(predicted) > 0.0 else 0.0


def de_jaccard(response: Response) -> float:
    """Jaccard index of the n responding genes with the n genes that a prediction moves most; in [0, 1].

    Genes are ranked by the absolute fold change with ``PSEUDOCOUNT``; a gene that is not moved is never
    taken. NaN if no gene responds.
    """
    n = int(response.responds.sum())
    if n == 0:
        return float("nan")
    size = np.abs(log2_fold_change(response.predicted, response.control, PSEUDOCOUNT))
    order = np.argsort(np.where(response.kept, -size, np.inf), kind="stable")[:n]
    taken = {int(g) for g in order if size[g] > 0.0 and response.kept[g]}
    true = {int(g) for g in np.flatnonzero(response.responds)}
    return len(taken & true) / len(taken | true)


def de_lfc_error(response: Response) -> float:
    """Mean absolute error of the log₂ fold change of the responding genes, with ``PSEUDOCOUNT``; 0 is best.

    NaN if no gene responds.
    """
    if not response.responds.any():
        return float("nan")
    predicted = log2_fold_change(response.predicted, response.control, PSEUDOCOUNT)
    observed = log2_fold_change(response.observed, response.control, PSEUDOCOUNT)
    return float(np.mean(np.abs(predicted - observed)[response.responds]))


DE_METRICS: dict[str, Callable[[Response], float]] = {
    "de_direction_match": de_direction_match,
    "de_spearman_lfc_sig": de_spearman_lfc_sig,
    "de_jaccard": de_jaccard,
    "de_lfc_error": de_lfc_error,
}
