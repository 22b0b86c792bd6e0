"""Distances between two sets of cells: MMD and energy distance.

Cells are rows of log-normalised expression on measured genes; the caller selects the columns.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Default bandwidths of the RBF kernels, as multiples of the median squared distance."""

_ROUNDING = 1e-12  # relative size below which a median distance is only rounding error
_BLOCK = 1024  # rows of a distance matrix in memory at a time
_MEDIAN_CELLS = 2000  # largest number of cells for a median: the matrix of distances is quadratic in it


def median_bandwidths(cells: ArrayLike, factors: Sequence[float] = BANDWIDTH_FACTORS) -> Array:
    """RBF bandwidths: ``factors`` times the median squared distance between different cells.

    To compare models, compute them once from the observed cells (n, G) and pass them to every call.
    Of more than 2,000 cells, 2,000 evenly spaced rows are used. A median of zero is replaced by 1.

    Source: the median heuristic of Gretton et al. (2012), JMLR 13, 723.
    """
    x = _cells(cells)
    if len(x) > _MEDIAN_CELLS:
        x = x[np.linspace(0, len(x) - 1, _MEDIAN_CELLS).astype(np.int64)]
    centred = x - x.mean(axis=0)  # smaller numbers, so that |a|² + |b|² - 2ab loses fewer digits
    pairs = _squared_distances(centred, centred)[np.triu_indices(len(x), k=1)]
    median = float(np.median(pairs)) if pairs.size else 0.0
    rounding = _ROUNDING * float(np.mean(np.sum(x**2, axis=1)))
    return np.array([factor * (median if median > rounding else 1.0) for factor in factors])


def mmd_unbiased(x: ArrayLike, y: ArrayLike, bandwidths: ArrayLike | None = None) -> float:
    """Squared maximum mean discrepancy of two sets of cells, as an unbiased U-statistic.

    The kernel is the SUM over bandwidths of exp(-d² / bandwidth). Pairs of a cell with itself are
    left out, so the expectation is 0 for equal distributions, for any numbers of cells; single
    values can be negative.

    Parameters
    ----------
    x, y
        Shapes (n, G) and (m, G).
    bandwidths
        Bandwidths in units of squared expression. None: ``median_bandwidths`` of x and y together, which
        differ between calls; pass bandwidths to compare models.

    Returns
    -------
    float
        NaN with fewer than two cells in either set.

    Source: Gretton et al. (2012), JMLR 13, 723, lemma 6.
    """
    x_, y_, ladder = _two_sets(x, y, bandwidths)
    n, m = len(x_), len(y_)
    if n < 2 or m < 2:
        return float("nan")
    within_x = _sum_over_pairs(x_, None, ladder) / (n * (n - 1))
    within_y = _sum_over_pairs(y_, None, ladder) / (m * (m - 1))
    return within_x + within_y - 2.0 * _sum_over_pairs(x_, y_, ladder) / (n * m)


def kernel_matrix(cells: ArrayLike, bandwidths: ArrayLike | None) -> Array:
    """Kernel values (bandwidths None: Euclidean distances) of all pairs of n cells, zero diagonal, (n, n)."""
    x = _cells(cells)
    centred = x - x.mean(axis=0)
    squares = _squared_distances(centred, centred)
    np.fill_diagonal(squares, 0.0)
    if bandwidths is None:
        return np.sqrt(squares)
    kernel = _kernel(squares, np.asarray(bandwidths, dtype=np.float64))
    np.fill_diagonal(kernel, 0.0)
    return kernel


def energy_distance(x: ArrayLike, y: ArrayLike, unbiased: bool = True) -> float:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| of two sets of cells, Euclidean norm.

    Parameters
    ----------
    x, y
        Shapes (n, G) and (m, G), log-normalised expression or scores on principal components.
    unbiased
        True: the means over X, X' leave out a cell's distance to itself (mean 0 for equal
        distributions, can be negative, NaN below two cells). False: they include it (never negative,
        grows as n shrinks).

    Source: Székely and Rizzo (2013); for single cells Peidli et al. (2024, scPerturb).
    """
    x_, y_, _ = _two_sets(x, y, ())
    n, m = len(x_), len(y_)
    less = 1 if unbiased else 0
    if min(n, m) <= less:
        return float("nan")
    within_x = _sum_over_pairs(x_, None, None) / (n * (n - less))
    within_y = _sum_over_pairs(y_, None, None) / (m * (m - less))
    return 2.0 * _sum_over_pairs(x_, y_, None) / (n * m) - within_x - within_y


def _cells(cells: ArrayLike) -> Array:
    x = np.asarray(cells, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"cells: expected a (cells, genes) matrix with cells, got shape {x.shape}.")
    return x


def _two_sets(x: ArrayLike, y: ArrayLike, bandwidths: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Both sets minus their common mean (d² = |a|² + |b|² - 2ab then loses fewer digits), and bandwidths."""
    x_, y_ = _cells(x), _cells(y)
    if x_.shape[1] != y_.shape[1]:
        raise ValueError(f"cells: {x_.shape[1]} genes against {y_.shape[1]}.")
    pooled = np.vstack([x_, y_])
    ladder = median_bandwidths(pooled) if bandwidths is None else np.asarray(bandwidths, dtype=np.float64)
    if (ladder <= 0.0).any():
        raise ValueError("bandwidths: must be above 0.")
    centre = pooled.mean(axis=0)
    return x_ - centre, y_ - centre, ladder


def _squared_distances(x: Array, y: Array) -> Array:
    """Squared distances |a|² + |b|² - 2ab of the rows, by one matrix product."""
    # In place, because the matrix is the largest array here; rounding can make small distances negative.
    squares = x @ y.T  # (n, m)
    squares *= -2.0
    squares += np.sum(x**2, axis=1)[:, None]
    squares += np.sum(y**2, axis=1)
    return np.maximum(squares, 0.0, out=squares)


def _kernel(squares: Array, bandwidths: Array) -> Array:
    """Sum of the RBF kernels, with the shape of ``squares``; added one by one to save memory."""
    total = np.zeros_like(squares)
    for bandwidth in bandwidths:
        total += np.exp(squares / -bandwidth)
    return total


def _sum_over_pairs(x: Array, y: Array | None, bandwidths: Array | None) -> float:
    """Sum over pairs of the kernel (of the distance, if bandwidths is None), in blocks of rows.

    Blocks keep memory linear in the number of cells. ``y`` None: ordered pairs of different rows of x.
    """
    other = x if y is None else y
    total = 0.0
    for start in range(0, len(x), _BLOCK):
        squares = _squared_distances(x[start : start + _BLOCK], other)  # (block, m)
        values = np.sqrt(squares) if bandwidths is None else _kernel(squares, bandwidths)
        if y is None:
            rows = np.arange(len(values))
            values[rows, start + rows] = 0.0
        total += float(values.sum())
    return total
