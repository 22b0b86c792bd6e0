"""Metrics of the agreement between prediction and measurement.

There are two kinds, on measured genes only (the caller selects the columns):

- profile metrics, in ``METRICS``: (pred (G,), true (G,), control (G,)) -> one number per perturbation;
- discrimination metrics over M perturbations: ``rank_score``, ``centroid_accuracy`` -> (M,).

Distances between sets of cells are in :mod:`tadvae.evaluation.distances`, scores on responding genes in
:mod:`tadvae.evaluation.differential_expression`; the effect of sampling noise on all
metrics is computed in :mod:`tadvae.evaluation.ceiling`.

Profiles are mean log-normalised expression. ``HIGHER_IS_BETTER`` gives the direction of every metric.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
ProfileMetric = Callable[[ArrayLike, ArrayLike, ArrayLike], float]

PSEUDOCOUNT = 0.1
"""Added to a mean profile before its log-fold change: the value of PerturBench."""

DE_GENES = 20
"""Genes of the overlap of differential expression: the number that GEARS and PerturBench report."""

RESPONSIVE_GENES = 100
"""Largest number of genes that ``pearson_delta_de`` uses."""

_ROUNDING = 1e-12  # relative size below which a centred difference is only rounding error


# ---------------------------------------------------------------- profile metrics


def pearson_delta(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> float:
    """Pearson correlation of pred - control with true - control over genes; in [-1, 1].

    A prediction that changes no gene, or all genes equally, has no correlation; it counts as 0, so
    that ``no_change`` has a score. NaN only if the true difference is constant (or an input is NaN).

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


def de_overlap(pred: ArrayLike, true: ArrayLike, control: ArrayLike, k: int = DE_GENES) -> float:
    """Overlap of the k genes with the largest true and predicted changes, as a share; in [0, 1].

    Genes are ranked by the absolute change of their mean log expression; of equal ones the first is taken,
    and a gene without any predicted change is never taken. With fewer than k genes, k is their number.
    NaN only if no gene truly changes.

    Source: the overlap of the top k differentially expressed genes, as in cell-eval (Adduri et al. 2025).
    """
    pred_, true_, control_ = _profiles(pred, true, control)
    if np.isnan([pred_, true_, control_]).any():
        return float("nan")
    chosen, changed = _top(pred_ - control_, k), _top(true_ - control_, k)
    return len(chosen & changed) / len(changed) if changed else float("nan")


def cosine_effects(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> float:
    """Cosine of two differences from the control: ``cosine_logfc`` of values that are effects themselves."""
    pred_, true_, control_ = _profiles(pred, true, control)
    return _cosine(pred_ - control_, true_ - control_)


METRICS: dict[str, ProfileMetric] = {
    "pearson_delta": pearson_delta,
    "l2": l2,
    "rmse": rmse,
    "cosine_logfc": cosine_logfc,
    "de_overlap": de_overlap,
}

HIGHER_IS_BETTER: dict[str, bool] = {
    "pearson_delta": True,
    "pearson_delta_de": True,
    "de_overlap": True,
    "de_direction_match": True,
    "de_spearman_lfc_sig": True,
    "de_jaccard": True,
    "de_lfc_error": False,
    "l2": False,
    "rmse": False,
    "cosine_logfc": True,
    "rank_cosine": False,
    "rank_rmse": False,
    "centroid_accuracy": True,
    "mmd_unbiased": False,
    "energy_distance": False,
    "mmd": False,
    "interval_width": False,
}
"""``mmd`` in the tables is the unbiased MMD. Coverage is missing: it should equal its nominal level."""


def score_profiles(
    pred: ArrayLike,
    true: ArrayLike,
    control: ArrayLike,
    metrics: Sequence[str] = tuple(METRICS),
    *,
    effects: bool = False,
) -> dict[str, Array]:
    """Every named profile metric for M perturbations: pred, true (M, G), control (G,) -> {name: (M,)}.

    ``effects``: the values are signed effects, no expression, so that ``cosine_logfc`` takes no logarithm.
    """
    pred_, true_ = _matrices(pred, true)
    chosen = {name: METRICS[name] for name in metrics}
    if effects and "cosine_logfc" in chosen:
        chosen["cosine_logfc"] = cosine_effects
    return {
        name: np.array([metric(p, t, control) for p, t in zip(pred_, true_, strict=True)], dtype=float)
        for name, metric in chosen.items()
    }


def responsive_genes(deltas: ArrayLike, k: int = RESPONSIVE_GENES) -> NDArray[np.int64]:
    """The k genes with the largest response to TRAINING perturbations: sorted columns, (min(k, G // 2),).

    Genes are ranked by the root mean square of their change over the training conditions, ``deltas`` (N, G).
    Held-out conditions are not used, so that the choice of genes does not leak information on them.
    """
    changes = np.asarray(deltas, dtype=np.float64)
    size = np.sqrt(np.mean(changes**2, axis=0))
    n = max(2, min(k, changes.shape[1] // 2))
    return np.sort(np.argsort(-size, kind="stable")[:n])


# ---------------------------------------------------------------- discrimination over perturbations


def rank_score(
    pred: ArrayLike,
    true: ArrayLike,
    control: ArrayLike,
    kind: Literal["cosine", "rmse"] = "cosine",
    among: Literal["observed", "predicted"] = "observed",
    *,
    effects: bool = False,
) -> Array:
    """Rank of the own perturbation by distance to a prediction; in [0, 1]: 0 best, 0.5 chance, 1 worst.

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
    effects
        Whether the values are signed effects; their cosine is taken as they are.

    Returns
    -------
    Array
        Shape (M,). NaN for a single perturbation (M = 1), which has no others, and where the own
        distance is NaN. A tie counts one half, so that a model that ignores the perturbation averages
        0.5; PerturBench's formula counts it 1, while its code breaks it at random.

    Source: PerturBench (Wu et al. 2024), equation 2.
    """
    from scipy.spatial.distance import cdist  # training's workers import this module, and rank nothing

    pred_, true_ = _matrices(pred, true)
    control_ = np.asarray(control, dtype=np.float64)
    if control_.shape != pred_.shape[1:]:
        raise ValueError(f"control: expected shape {pred_.shape[1:]}, got {control_.shape}.")
    if kind == "cosine":
        change = np.subtract if effects else _logfc
        x, y = _unit_rows(change(pred_, control_)), _unit_rows(change(true_, control_))  # (M, G)
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
    closer = np.sum(distance < own, axis=1) + 0.5 * (
        np.sum(distance == own, axis=1) - 1
    )  # minus the tie with itself
    return np.where(np.isnan(own[:, 0]), np.nan, closer / (m - 1))


def centroid_accuracy(pred: ArrayLike, true: ArrayLike) -> Array:
    """Share of the other perturbations' true centroids farther from a prediction than its own.

    Euclidean distance; pred, true: (M, G) -> (M,), 1 best, 0.5 chance; a tie counts one half; NaN for
    M = 1. It equals 1 - ``rank_score(kind="rmse", among="observed")``.

    Source: Systema (Viñas Torné et al. 2025).
    """
    control = np.zeros(np.shape(pred)[1:])
    return 1.0 - rank_score(pred, true, control, kind="rmse")


# ---------------------------------------------------------------- parts


def _profiles(pred: ArrayLike, true: ArrayLike, control: ArrayLike) -> tuple[Array, Array, Array]:
    arrays = [np.asarray(a, dtype=np.float64) for a in (pred, true, control)]
    shapes = [a.shape for a in arrays]
    # Checked, because broadcasting (G,) with (1, G) would give a meaningless number without an error.
    if arrays[0].ndim != 1 or len(set(shapes)) != 1 or not arrays[0].size:
        raise ValueError(f"profiles: expected three vectors of one length, got shapes {shapes}.")
    return arrays[0], arrays[1], arrays[2]


def _matrices(pred: ArrayLike, true: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(pred, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(
            f"profiles: expected two (M, G) matrices of equal shape, got {x.shape} and {y.shape}."
        )
    return x, y


def _top(change: Array, k: int) -> set[int]:
    """The k genes with the largest absolute change, without genes that do not change."""
    order = np.argsort(-np.abs(change), kind="stable")[:k]
    return {int(g) for g in order if change[g] != 0.0}


def _centred(profile: Array, control: Array) -> Array:
    """Profile - control, minus its mean over genes; exactly zero if it is only rounding error."""
    delta = profile - control
    delta = delta - delta.mean()
    size = max(np.abs(profile).max(), np.abs(control).max())
    return np.zeros_like(delta) if np.abs(delta).max() <= _ROUNDING * size else delta


def _logfc(profile: Array, control: Array) -> Array:
    """Log-fold change of (..., G) against (G,); zero if it is only rounding error."""
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
