"""Escaped cells: cells with a guide in which the target is not perturbed.

The method is that of Mixscape (Papalexi et al., Nature Genetics 53:322, 2021): the scores of cells along the
direction of the perturbation are a mixture of two normal distributions, one of which is that of the control
cells. Departures: the direction is that of a regularised discriminant, so that variation which control cells
have too (cell cycle, state) counts less, where Mixscape subtracts the mean of neighbouring control cells; a
cell does not take part in the direction that it is scored with; and the spread of the perturbed cells is
bounded.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tadvae.screen_qc.thresholds import QcConfig

Array = NDArray[np.float64]

_ROUNDS, _STEPS, _CHANGE = 10, 200, 1e-3
"""Most directions, most steps of a mixture, and the change of probabilities below which both end."""
_DETECTED = 0.1
"""Smallest share of cells that express a gene which is tested."""
_NARROWEST, _WIDEST = 0.5, 1.5
"""Bounds of the standard deviation of the perturbed cells' scores, in that of the control cells: a wide
distribution of few cells would otherwise take all cells for perturbed."""


@dataclass(frozen=True, eq=False)
class PerturbedCells:
    """Division of the cells of one perturbation.

    Attributes
    ----------
    probability
        Probability of each cell that it is perturbed, shape (n,); NaN if too few genes respond, or too few
        cells (``min_cells``) would be perturbed.
    score
        Position of each cell along the perturbation's direction: 0 is the mean of the controls, 1 that of
        the perturbed cells, shape (n,).
    n_genes
        Number of responding genes.
    """

    probability: Array
    score: Array
    n_genes: int

    @property
    def share_escaped(self) -> float:
        """Expected share of escaped cells; NaN if it cannot be told."""
        return float(1.0 - self.probability.mean())


@dataclass(frozen=True, eq=False)
class GeneMoments:
    """Log-normalised expression of G genes in n cells.

    Attributes
    ----------
    n
        Number of cells.
    mean, variance, detection
        Mean, variance, and the share of cells in which a gene is expressed, shape (G,).
    """

    n: int
    mean: Array
    variance: Array
    detection: Array

    @classmethod
    def of(cls, values: ArrayLike) -> "GeneMoments":
        """Moments of dense values, shape (n, G)."""
        x = np.asarray(values, np.float64)
        return cls(len(x), x.mean(axis=0), x.var(axis=0), (x != 0).mean(axis=0))


def responding(cells: GeneMoments, controls: GeneMoments, fdr: float) -> NDArray[np.int64]:
    """Genes that respond, the strongest first.

    A test of means ``(m − m₀) / √(v (1/n + 1/n₀))`` with its normal approximation, v the pooled variance,
    and a false discovery rate (Benjamini and Hochberg 1995) over the genes that a tenth of the perturbed or
    of the control cells express. The variance is pooled because a rare gene that few perturbed cells do not
    express has no variance of its own.
    """
    from scipy.special import ndtr
    from scipy.stats import false_discovery_control

    n, n_0 = cells.n, controls.n
    pooled = (n * cells.variance + n_0 * controls.variance) / (n + n_0)
    error = np.sqrt(pooled * (1.0 / n + 1.0 / n_0))
    change = np.abs(cells.mean - controls.mean)
    tested = np.flatnonzero((np.maximum(cells.detection, controls.detection) >= _DETECTED) & (error > 0))
    if not len(tested):
        return tested
    z = change[tested] / error[tested]
    found = false_discovery_control(2.0 * ndtr(-z), method="bh") < fdr
    order = np.argsort(-z, kind="stable")
    result: NDArray[np.int64] = tested[order[found[order]]]
    return result


def divide_cells(cells: ArrayLike, controls: ArrayLike, config: QcConfig) -> PerturbedCells:
    """Divide the cells of one perturbation into perturbed and escaped ones.

    Parameters
    ----------
    cells, controls
        Log-normalised values of the responding genes, shapes (n, G) and (m, G).

    Notes
    -----
    Values are standardised (controls have mean 0 and every gene the pooled variance 1) and multiplied by
    L⁻¹, where ``LLᵀ = γI + (1 − γ)C``, C is the covariance of the standardised controls and γ the setting
    ``shrinkage`` (regularised discriminant analysis, Friedman 1989). Then, with values x and probabilities r,
    at first 1: the direction is ``d = Σ_i r_i x_i / Σ_i r_i``, the score of a control cell ``x·d``, and that
    of a perturbed cell the same with the direction of the other cells. Scores of controls give μ₀, σ₀; those
    of the cells follow ``(1 − π) N(μ₀, σ₀²) + π N(μ₁, σ₁²)`` with μ₁ > μ₀, by expectation
    maximisation. Its probabilities give the next direction, until they do not change.
    """
    from scipy.linalg import solve_triangular

    x, y = np.asarray(cells, np.float64), np.asarray(controls, np.float64)
    n, n_genes = x.shape
    nothing = np.full(n, np.nan)
    if n < config.min_cells or n_genes < config.min_genes or len(y) < config.min_cells:
        return PerturbedCells(nothing, nothing, n_genes)
    pooled = np.sqrt((x.var(axis=0) * n + y.var(axis=0) * len(y)) / (n + len(y)))
    pooled[pooled == 0] = 1.0
    x, y = (x - y.mean(axis=0)) / pooled, (y - y.mean(axis=0)) / pooled
    covariance = config.shrinkage * np.eye(n_genes) + (1.0 - config.shrinkage) * (y.T @ y / len(y))
    root = np.linalg.cholesky(covariance)
    x, y = (solve_triangular(root, each.T, lower=True).T for each in (x, y))
    r = np.ones(n)
    square = np.einsum("ng,ng->n", x, x)
    for _ in range(_ROUNDS):
        total = r.sum()
        if total < 2.0:  # the direction would be that of one cell
            break
        d = r @ x / total
        score = (total * (x @ d) - r * square) / (total - r)
        before, r = r, mixture(score, y @ d)
        if np.abs(r - before).max() < _CHANGE:
            break
    if r.sum() < config.min_cells:  # so few cells say little about the direction of the others
        return PerturbedCells(nothing, nothing, n_genes)
    length = d @ d
    return PerturbedCells(r, score / length if length > 0 else nothing, n_genes)


def mixture(score: Array, control: Array) -> Array:
    """Probability that a score is of the second component, where the first is that of the controls.

    Scores below the controls' mean are no more probable than the mean itself, although the wider of two
    normal distributions is the larger one at both ends.

    Parameters
    ----------
    score, control
        Scores of the cells and of the control cells, shapes (n,) and (m,).
    """
    centre, width = control.mean(), max(float(control.std()), 1e-12)
    upper = score[score >= np.median(score)]
    share, mean, spread = 0.5, max(float(upper.mean()), centre + 0.5 * width), width
    r = np.zeros(len(score))
    for _ in range(_STEPS):
        before, r = r, _posterior(score, share, centre, width, mean, spread)
        if np.abs(r - before).max() < _CHANGE * 0.1:
            break
        total = r.sum()
        if total < 1e-6:
            break
        share = float(np.clip(total / len(score), 1e-3, 1.0 - 1e-3))
        mean = max(float(r @ score / total), centre + 0.1 * width)
        found = float(np.sqrt(r @ (score - mean) ** 2 / total))
        spread = min(max(found, _NARROWEST * width), _WIDEST * width)
    at_centre = _posterior(np.array([centre]), share, centre, width, mean, spread)[0]
    return np.where(score < centre, np.minimum(r, at_centre), r)


def _posterior(score: Array, share: float, centre: float, width: float, mean: float, spread: float) -> Array:
    from scipy.special import expit

    second = np.log(share / spread) - 0.5 * ((score - mean) / spread) ** 2
    first = np.log((1.0 - share) / width) - 0.5 * ((score - centre) / width) ** 2
    result: Array = expit(second - first)
    return result
