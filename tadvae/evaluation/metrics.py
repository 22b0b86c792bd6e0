"""Metrics: how close is a prediction to what was measured.

Three kinds, all on measured genes only (the caller selects the columns):

- profile metrics, in ``METRICS``: (pred (G,), true (G,), control (G,)) -> one number per perturbation;
- discrimination metrics over M perturbations: ``rank_score``, ``centroid_accuracy`` -> (M,);
- distances between two sets of cells: ``mmd_unbiased``, ``mmd_biased``, ``energy_distance``.

Profiles are mean log-normalised expression. ``HIGHER_IS_BETTER`` gives every metric's direction.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

Array = NDArray[np.float64]
ProfileMetric = Callable[[ArrayLike, ArrayLike, ArrayLike], float]

PSEUDOCOUNT = 0.1
"""Added to a mean profile before its log-fold change: the value of PerturBench."""

BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The default ladder of RBF bandwidths, times the median squared distance."""

PUBLISHED_KERNELS = 10
_ROUNDING = 1e-12  # relative size below which a centred difference is rounding, not an effect
_BLOCK = 1024  # rows of a distance matrix held at once
_MEDIAN_CELLS = 2000  # most cells a median bandwidth is computed from


# ---------------------------------------------------------------- profile metrics


def pearson_delta(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> float:
    """Pearson correlation of pred - control with true - control over genes; in [-1, 1].

    A prediction that changes no gene, or every gene alike, has no correlation; it counts as 0, so
    that ``no_change`` can be tabled. NaN only if the true difference is constant (or an input is NaN).

    Source: "Pearson delta" of GEARS (Roohani et al. 2024) and Ahlmann-Eltze et al. (2025).
    """
    pred_, true_, control_ = _profiles(pred, true, control)
    x, y = _centred(pred_, control_), _centred(true_, control_)
    return _cosine(x, y)


def l2(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> float:
    """Euclidean distance of the two mean profiles (log-normalised units; grows with G).

    Source: the prediction error of Ahlmann-Eltze et al. (2025). ``control`` is not used.
    """
    pred_, true_, _ = _profiles(pred, true, control)
    return float(np.linalg.norm(pred_ - true_))


def rmse(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> float:
    """Root mean squared error over genes of the two mean profiles (log-normalised units).

    Source: PerturBench (Wu et al. 2024). ``control`` is not used.
    """
    pred_, true_, _ = _profiles(pred, true, control)
    return float(np.sqrt(np.mean((pred_ - true_) ** 2)))


def cosine_logfc(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> float:
    """Cosine of the predicted and the true log-fold change against control; in [-1, 1].

    The log-fold change of a mean log-normalised profile m is log(m + 0.1) - log(control + 0.1), with
    m below 0 taken as 0 (the logarithm's base cancels). A prediction without any change counts as 0;
    NaN only if the true change is zero (or an input is NaN).

    Source: "cosine logFC" of PerturBench (Wu et al. 2024), its pseudocount included.
    """
    pred_, true_, control_ = _profiles(pred, true, control)
    return _cosine(_logfc(pred_, control_), _logfc(true_, control_))


METRICS: dict[str, ProfileMetric] = {
    "pearson_delta": pearson_delta,
    "l2": l2,
    "rmse": rmse,
    "cosine_logfc": cosine_logfc,
}

HIGHER_IS_BETTER: dict[str, bool] = {
    "pearson_delta": True,
    "l2": False,
    "rmse": False,
    "cosine_logfc": True,
    "rank_cosine": False,
    "rank_rmse": False,
    "centroid_accuracy": True,
    "mmd_unbiased": False,
    "mmd_biased": False,
    "energy_distance": False,
}


def score_profiles(
    pred: ArrayLike, true: ArrayLike, control: ArrayLike, metrics: Sequence[str] = tuple(METRICS)
) -> dict[str, Array]:
    """Every named profile metric for M perturbations: pred, true (M, G), control (G,) -> {name: (M,)}."""
    pred_, true_ = _matrices(pred, true)
    return {
        name: np.array([METRICS[name](p, t, control) for p, t in zip(pred_, true_, strict=True)], dtype=float)
        for name in metrics
    }


# ---------------------------------------------------------------- discrimination over perturbations


def rank_score(
    pred: ArrayLike,
    true: ArrayLike,
    control: ArrayLike,
    kind: Literal["cosine", "rmse"] = "cosine",
    among: Literal["observed", "predicted"] = "observed",
) -> Array:
    """Does a prediction single out its own perturbation? 0 is best, 0.5 chance, 1 worst.

    Parameters
    ----------
    pred, true
        Shape (M, G): predicted and observed mean profiles, row by row the same perturbation.
    control
        Shape (G,).
    kind
        ``cosine``: 1 - cosine of the log-fold changes (see ``cosine_logfc``; a vector without change
        has cosine 0). ``rmse``: root mean squared error.
    among
        ``observed``: the share of the OTHER observed perturbations that are closer to the prediction
        than its own observation. ``predicted``: the share of the predictions for OTHER perturbations
        that are closer to the observation than its own prediction, which is PerturBench's formula.

    Returns
    -------
    Array
        Shape (M,). NaN for a single perturbation (M = 1), which has no others, and where the own
        distance is NaN. A tie counts one half, so that a model blind to the perturbation averages
        0.5; PerturBench's formula counts it 1 while its code breaks it at random.

    Source: PerturBench (Wu et al. 2024), equation 2.
    """
    pred_, true_ = _matrices(pred, true)
    control_ = np.asarray(control, dtype=np.float64)
    if control_.shape != pred_.shape[1:]:
        raise ValueError(f"control: expected shape {pred_.shape[1:]}, got {control_.shape}.")
    if kind == "cosine":
        x, y = _unit_rows(_logfc(pred_, control_)), _unit_rows(_logfc(true_, control_))  # (M, G)
        # |u - v|² / 2 = 1 - cosine for unit rows, except where a row is zero: cosine 0, distance 1.
        distance = cdist(x, y, "sqeuclidean") / 2.0  # (M, M): prediction x observation
        distance[~x.any(axis=1)] = 1.0
        distance[:, ~y.any(axis=1)] = 1.0
    elif kind == "rmse":
        distance = cdist(pred_, true_, "euclidean")  # (M, M); the square root of G changes no rank
    else:
        raise ValueError(f"kind: expected 'cosine' or 'rmse', got {kind!r}.")
    if among == "predicted":
        distance = distance.T
    elif among != "observed":
        raise ValueError(f"among: expected 'observed' or 'predicted', got {among!r}.")
    m = len(distance)
    if m < 2:
        return np.full(m, np.nan)
    own = np.diag(distance)[:, None]  # (M, 1)
    closer = np.sum(distance < own, axis=1) + 0.5 * (np.sum(distance == own, axis=1) - 1)  # less itself
    return np.where(np.isnan(own[:, 0]), np.nan, closer / (m - 1))


def centroid_accuracy(pred: ArrayLike, true: ArrayLike) -> Array:
    """Share of the other perturbations' true centroids farther from a prediction than its own.

    Euclidean distance; pred, true: (M, G) -> (M,), 1 best, 0.5 chance; a tie counts one half; NaN for
    M = 1. It equals 1 - ``rank_score(kind="rmse", among="observed")``.

    Source: Systema (Viñas Torné et al. 2025).
    """
    control = np.zeros(np.shape(pred)[1:])
    return 1.0 - rank_score(pred, true, control, kind="rmse")


# ---------------------------------------------------------------- sets of cells


def median_bandwidths(cells: ArrayLike, factors: Sequence[float] = BANDWIDTH_FACTORS) -> Array:
    """RBF bandwidths: ``factors`` times the median squared distance of two different cells.

    To compare models, compute them once from the observed cells (n, G) and give them to every call.
    Beyond 2,000 cells, 2,000 evenly spaced rows serve. A median of zero is taken as 1.

    Source: the median heuristic of Gretton et al. (2012), JMLR 13, 723.
    """
    x = _cells(cells)
    if len(x) > _MEDIAN_CELLS:
        x = x[np.linspace(0, len(x) - 1, _MEDIAN_CELLS).astype(np.int64)]
    centred = x - x.mean(axis=0)
    pairs = _squared_distances(centred, centred)[np.triu_indices(len(x), k=1)]
    median = float(np.median(pairs)) if pairs.size else 0.0
    rounding = _ROUNDING * float(np.mean(np.sum(x**2, axis=1)))
    return np.array([factor * (median if median > rounding else 1.0) for factor in factors])


def published_bandwidths(sigma: float = 1000.0) -> Array:
    """The ten bandwidths sigma / 32 · 2^i of the discrepancy VAE (sigma 1000) and SENA (200)."""
    return np.array([sigma / 32.0 * 2.0**i for i in range(PUBLISHED_KERNELS)])


def mmd_unbiased(x: ArrayLike, y: ArrayLike, bandwidths: ArrayLike | None = None) -> float:
    """Squared maximum mean discrepancy of two sets of cells, as an unbiased U-statistic.

    The kernel is the SUM over bandwidths of exp(-d² / bandwidth). Pairs of a cell with itself are
    left out, so the expectation is 0 for equal distributions, whatever the numbers of cells; single
    values can be negative.

    Parameters
    ----------
    x, y
        Shapes (n, G) and (m, G).
    bandwidths
        In units of squared expression. None: ``median_bandwidths`` of x and y together, which differ
        from call to call; give bandwidths to compare models.

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


def mmd_biased(x: ArrayLike, y: ArrayLike, bandwidths: ArrayLike | None = None) -> float:
    """Squared maximum mean discrepancy as published: a V-statistic, each cell's self-pair included.

    Never negative, and for n cells against n of the same distribution its mean is not 0 but
    ``mmd_null_floor``: compare it only at equal n. ``bandwidths`` None: ``published_bandwidths()``.

    Source: discrepancy VAE (Zhang et al. 2023); Gretton et al. (2012), equation 5.
    """
    x_, y_, ladder = _two_sets(x, y, published_bandwidths() if bandwidths is None else bandwidths)
    n, m = len(x_), len(y_)
    diagonal = len(ladder)  # k(x, x): one per kernel
    within_x = (_sum_over_pairs(x_, None, ladder) + n * diagonal) / n**2
    within_y = (_sum_over_pairs(y_, None, ladder) + m * diagonal) / m**2
    return within_x + within_y - 2.0 * _sum_over_pairs(x_, y_, ladder) / (n * m)


def mean_kernel(cells: ArrayLike, bandwidths: ArrayLike) -> float:
    """Mean kernel value of two different cells (n, G): the k̄ of ``mmd_null_floor``; NaN for n < 2."""
    x = _cells(cells)
    n = len(x)
    ladder = np.asarray(bandwidths, dtype=np.float64)
    return _sum_over_pairs(x - x.mean(axis=0), None, ladder) / (n * (n - 1)) if n > 1 else float("nan")


def mmd_null_floor(k_mean: float, n: int, n_kernels: int = PUBLISHED_KERNELS) -> float:
    """Expected ``mmd_biased`` of n against n cells of one distribution: 2 (n_kernels - k̄) / n."""
    return 2.0 * (n_kernels - k_mean) / n


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


# ---------------------------------------------------------------- parts


def _profiles(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> tuple[Array, Array, Array]:
    arrays = [np.asarray(a, dtype=np.float64) for a in (pred, true, control)]
    shapes = [a.shape for a in arrays]
    # Checked, because a broadcast (G,) against (1, G) would give a number that means nothing.
    if arrays[0].ndim != 1 or len(set(shapes)) != 1 or not arrays[0].size:
        raise ValueError(f"profiles: expected three vectors of one length, got shapes {shapes}.")
    return arrays[0], arrays[1], arrays[2]


def _matrices(pred: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"profiles: expected two (M, G) matrices alike, got {x.shape} and {y.shape}.")
    return x, y


def _cells(cells: ArrayLike) -> Array:
    x = np.asarray(cells, dtype=np.float64)
    if x.ndim != 2 or not len(x):
        raise ValueError(f"cells: expected a (cells, genes) matrix with cells, got shape {x.shape}.")
    return x


def _two_sets(x: ArrayLike, y: ArrayLike, bandwidths: ArrayLike | None) -> tuple[Array, Array, Array]:
    """Both sets about their common mean (d² = |a|² + |b|² - 2ab then loses fewer digits)."""
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
    """|a|² + |b|² - 2ab of the rows: one matrix product."""
    squares = x @ y.T  # (n, m)
    squares *= -2.0
    squares += np.sum(x**2, axis=1)[:, None]
    squares += np.sum(y**2, axis=1)
    return np.maximum(squares, 0.0, out=squares)


def _kernel(squares: Array, bandwidths: Array) -> Array:
    """Sum of the RBF kernels, the shape of ``squares``; one at a time, to hold two matrices only."""
    total = np.zeros_like(squares)
    for bandwidth in bandwidths:
        total += np.exp(squares / -bandwidth)
    return total


def _sum_over_pairs(x: Array, y: Array | None, bandwidths: Array | None) -> float:
    """Sum over pairs of the kernel (of the distance, for bandwidths None), by blocks of rows.

    ``y`` None: ordered pairs of two different rows of x.
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


def _centred(profile: Array, control: Array) -> Array:
    """Profile - control less its mean over genes; exactly zero where that is only rounding."""
    delta = profile - control
    delta = delta - delta.mean()
    size = max(np.abs(profile).max(), np.abs(control).max())
    return np.zeros_like(delta) if np.abs(delta).max() <= _ROUNDING * size else delta


def _logfc(profile: Array, control: Array) -> Array:
    """Log-fold change of (..., G) against (G,); zero where it is only rounding."""
    change = np.log(np.maximum(profile, 0.0) + PSEUDOCOUNT) - np.log(np.maximum(control, 0.0) + PSEUDOCOUNT)
    change[np.abs(change) <= _ROUNDING] = 0.0
    return change


def _cosine(pred: Array, true: Array) -> float:
    """Cosine; 0 for a zero prediction, NaN for a zero truth."""
    x, y = float(np.linalg.norm(pred)), float(np.linalg.norm(true))
    if y == 0.0 or np.isnan(x):
        return float("nan")
    return float(np.clip((pred / x) @ (true / y), -1.0, 1.0)) if x > 0.0 else 0.0


def _unit_rows(x: Array) -> Array:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0.0, norms, 1.0)
