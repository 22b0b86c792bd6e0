"""Effect of sampling noise on the metrics: the noise ceiling, and the uncertainty of a single value.

Both need the cells of a held-out group, so they do not exist for mean profiles.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadvae.evaluation.distances import kernel_matrix
from tadvae.evaluation.metrics import METRICS, score_profiles

Array = NDArray[np.float64]

HALVINGS = 20
"""Number of random halvings of a group from which its ceiling is computed."""

RESAMPLES = 100
"""Number of bootstrap samples of a group's cells for the interval of one value."""


class Ceiling(NamedTuple):
    """Scores of one half of a group's cells as a prediction of the other half.

    Attributes
    ----------
    metrics
        Profile metrics of the mean of one half as a prediction of the mean of the other, and ``mmd`` and
        ``energy_distance`` of the halves; means over halvings.
    null
        The 95% quantile of ``mmd`` and ``energy_distance`` over halvings: smaller distances cannot be
        distinguished from no difference.
    """

    metrics: dict[str, float]
    null: dict[str, float]


def split_half_ceiling(cells: Array, control: Array, bandwidths: Array, seed: int = 0) -> Ceiling | None:
    """Score halves of a group against each other.

    A half has twice the sampling variance of the whole group, so the ceiling is conservative: a perfect model
    that is compared with the whole group can exceed it.

    Parameters
    ----------
    cells
        Held-out cells, shape (n, G).
    control
        Mean control profile, shape (G,).
    bandwidths
        Bandwidths of the MMD, the same as for the methods that are compared with the ceiling.

    Returns
    -------
    The ceiling; None for fewer than four cells, where a half has no pair of cells.
    """
    n = len(cells)
    if n < 4:
        return None
    rng = np.random.default_rng(seed)
    values = np.asarray(cells, dtype=np.float64)
    # Both matrices are computed once: a halving only selects rows and columns of them.
    kernel = kernel_matrix(values, bandwidths)  # (n, n), diagonal zero
    pairs = kernel_matrix(values, None)  # distances
    scores: dict[str, list[float]] = {}
    for _ in range(HALVINGS):
        first = np.zeros(n, bool)
        first[rng.permutation(n)[: n // 2]] = True
        halves = values[first].mean(axis=0), values[~first].mean(axis=0)
        found = {name: float(metric(*halves, control)) for name, metric in METRICS.items()}
        found["mmd"] = _between_halves(kernel, first)
        found["energy_distance"] = -_between_halves(pairs, first)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
    sets = ("mmd", "energy_distance")
    return Ceiling(
        {name: float(np.mean(each)) for name, each in scores.items()},
        {name: float(np.quantile(scores[name], 0.95)) for name in sets},
    )


def resampled_metrics(pred: Array, cells: Array, control: Array, seed: int = 0) -> dict[str, Array]:
    """Profile metrics of one prediction against bootstrap samples of a group's cells.

    Parameters
    ----------
    pred, control
        Predicted and control mean profile, shape (G,).
    cells
        Held-out cells, shape (n, G); resampled with replacement.

    Returns
    -------
    {metric: (RESAMPLES,)}; the 2.5% and 97.5% quantiles are the interval of the value.
    """
    return score_profiles(np.tile(pred, (RESAMPLES, 1)), resampled_means(cells, seed), control)


def resampled_means(cells: Array, seed: int = 0) -> Array:
    """Means of bootstrap samples of n cells (n, G), shape (RESAMPLES, G)."""
    # How often each cell is drawn is multinomial, so one matrix product gives all means; gathering the drawn
    # cells would need (RESAMPLES, n, G) memory.
    n = len(cells)
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES) / n
    return weights @ np.asarray(cells, dtype=np.float64)


def _between_halves(pairs: Array, first: NDArray[np.bool_]) -> float:
    """U-statistic ``within + within - 2 between`` from a matrix over pairs with a zero diagonal."""
    n, m = int(first.sum()), int((~first).sum())
    xx, yy = pairs[np.ix_(first, first)].sum(), pairs[np.ix_(~first, ~first)].sum()
    xy = pairs[np.ix_(first, ~first)].sum()
    return float(xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m))
