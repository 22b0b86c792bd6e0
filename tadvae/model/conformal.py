"""Intervals with guaranteed coverage: conformal calibration on training perturbations, held out in turn.

A perturbation, not a cell and not a gene, is the unit that is exchangeable. The factor q is chosen so that
the expected share of genes outside of their intervals, of a new perturbation like those of the calibration,
is at most 1 - level: conformal risk control, whose guarantee holds for any model and any number of genes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LEVEL = 0.9
SHRINK = 2.0
"""Perturbations' worth of the dataset's mean error in a gene's scale, so that a gene that was right by chance
is not taken for certain."""


@dataclass(frozen=True)
class Errors:
    """Out-of-fold errors of one dataset: N training perturbations, each predicted without having been seen.

    Attributes
    ----------
    error
        Observed less predicted mean profile, shape (N, G); NaN for a gene that the model of a fold lacks.
    spread
        Between-seed standard deviation of the prediction, shape (N, G).
    """

    error: Array
    spread: Array


@dataclass(frozen=True)
class Calibration:
    """Half-widths of intervals: ``factor · (scale_g + spread_g)``.

    Where one model per fold calibrates, out-of-fold predictions have no spread; then the spread of new ones
    does not count either (``with_spread`` False), or intervals would be wider than what was calibrated.

    Attributes
    ----------
    level
        Promised share of genes inside, averaged over perturbations.
    factor
        q; infinite with fewer than ``level / (1 - level)`` perturbations, which can guarantee nothing.
    scale
        By dataset, shape (G,): the root mean square out-of-fold error of each gene, log-normalised units.
    n
        Calibration perturbations.
    kind
        What they are: ``combo`` or ``single``.
    """

    level: float
    factor: float
    scale: Mapping[str, Array]
    n: int
    kind: str
    with_spread: bool = True

    @classmethod
    def fit(cls, errors: Mapping[str, Errors], kind: str, level: float = LEVEL) -> Self:
        """Calibrate on out-of-fold errors, by dataset.

        Each error is measured in the scale of the *other* perturbations: its own would flatter it.

        Source: Angelopoulos et al. (2024), Conformal risk control, ICLR; Barber et al. (2021), Annals of
        Statistics 49, 486, for predictions out of fold.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"expected 0 < level < 1, got {level}.")
        scores: list[Array] = []
        for each in errors.values():
            for j, error in enumerate(each.error):
                others = np.delete(each.error, j, axis=0)
                ratio = _ratio(np.abs(error), error_scale(others) + each.spread[j])
                scores.append(ratio[~np.isnan(ratio)])
        scale = {name: error_scale(each.error) for name, each in errors.items()}
        factor = risk_controlling_factor(scores, 1.0 - level)
        with_spread = any((each.spread > 0.0).any() for each in errors.values())
        return cls(level, factor, scale, len(scores), kind, with_spread)

    def half_width(self, dataset: str, spread: Array) -> Array:
        """Half-width of every interval, the shape of ``spread`` (…, G); infinite where none is guaranteed."""
        width = self.scale[dataset] + (spread if self.with_spread else np.zeros_like(spread))
        return np.full_like(width, np.inf) if np.isinf(self.factor) else self.factor * width


def error_scale(error: Array) -> Array:
    """Root mean square error of each gene over perturbations (N, G), shrunk to their mean: shape (G,)."""
    squares, known = error**2, ~np.isnan(error)
    typical = float(squares[known].mean()) if known.any() else 1.0
    result: Array = np.sqrt((np.nansum(squares, axis=0) + SHRINK * typical) / (known.sum(axis=0) + SHRINK))
    return result


def risk_controlling_factor(scores: list[Array], alpha: float) -> float:
    """The smallest q with ``(1 + Σ_j share of genes with score > q) / (n + 1) ≤ alpha``.

    Parameters
    ----------
    scores
        One array of gene scores for each of n perturbations.
    """
    n = len(scores)
    budget = alpha * (n + 1) - 1.0  # what the shares may add up to
    if n == 0 or budget < 0.0:
        return float("inf")
    values = np.concatenate(scores)
    weights = np.concatenate([np.full(len(each), 1.0 / len(each)) for each in scores])
    order = np.argsort(-values, kind="stable")
    values, outside = values[order], np.cumsum(weights[order])  # outside: with q just below values[i]
    within = outside <= budget * (1.0 + 1e-12)
    # q = values[i] leaves out all that is strictly above: ties are inside
    first = int(within.sum())
    return float(values[first]) if first < len(values) else 0.0


def _ratio(error: Array, scale: Array) -> Array:
    """Error in units of its scale; NaN stays NaN, and an error without a scale is infinite."""
    result = np.where(error > 0.0, np.inf, 0.0)
    np.divide(error, scale, out=result, where=(scale > 0.0) | np.isnan(error))
    return result
