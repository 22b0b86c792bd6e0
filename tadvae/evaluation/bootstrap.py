"""Bootstrap intervals over perturbations: the uncertainty of a mean score in a report."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_VALUES_AT_ONCE = 10_000_000  # drawn indices in memory at a time


class Interval(NamedTuple):
    """A mean and its percentile interval, in the units of the values."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: ArrayLike, seed: int = 0, n: int = 2000, level: float = 0.95) -> Interval:
    """Mean over perturbations with its percentile bootstrap interval.

    Perturbations, not cells, are resampled with replacement: the interval describes how the mean would
    change with other perturbations of the same kind.

    Parameters
    ----------
    values
        Shape (M,): one score per perturbation; NaN (an undefined score) is left out.
    seed
        The same seed and values give the same interval.
    n
        Number of bootstrap samples.
    level
        Share of the bootstrap means inside the interval, between 0 and 1.

    Returns
    -------
    Interval
        (mean, low, high); three NaN without any defined score; a zero width for a single one.

    Raises
    ------
    ValueError
        ``values`` is not one-dimensional, ``n`` below 1 or ``level`` outside (0, 1).

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1:
        raise ValueError(f"values: expected one score per perturbation, got shape {data.shape}.")
    if n < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"expected n >= 1 and 0 < level < 1, got n={n}, level={level}.")
    data = data[~np.isnan(data)]
    if not data.size:
        return Interval(float("nan"), float("nan"), float("nan"))
    means = _bootstrap_means(data, seed, n)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap_difference(
    a: ArrayLike, b: ArrayLike, seed: int = 0, n: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of a - b over perturbations with its interval; the same perturbations drawn for both.

    ``a`` and ``b`` have shape (M,), row by row the same perturbation; one that is NaN in either is
    left out. An interval that excludes 0 says that the difference is larger than the choice of
    perturbations explains. Parameters, errors and source: as ``bootstrap_mean``.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"expected scores of the same perturbations, got {first.shape} and {second.shape}.")
    return bootstrap_mean(first - second, seed=seed, n=n, level=level)


def _bootstrap_means(data: NDArray[np.float64], seed: int, n: int) -> NDArray[np.float64]:
    """Means of ``n`` samples with replacement, shape (n,)."""
    rng = np.random.default_rng(seed)
    step = max(1, _VALUES_AT_ONCE // data.size)
    parts = [
        data[rng.integers(data.size, size=(min(step, n - start), data.size))].mean(axis=1)
        for start in range(0, n, step)
    ]
    return np.concatenate(parts)
