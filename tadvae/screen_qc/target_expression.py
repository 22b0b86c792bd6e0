"""Expression of a perturbed gene itself: lower after a knock-down, higher after an activation."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

PSEUDOCOUNT = 0.1
"""Added to mean expression (counts per ten thousand) for a finite fold change."""
_QUANTILE = 1.959963984540054


@dataclass(frozen=True)
class TargetChange:
    """Change of one gene between control cells and perturbed cells.

    Attributes
    ----------
    log2_fold_change, low, high
        log₂ fold change of mean expression, and its 95% interval.
    p
        Of a two-sided Wilcoxon rank-sum test.
    """

    log2_fold_change: float
    low: float
    high: float
    p: float


def target_change(cells: ArrayLike, controls: ArrayLike) -> TargetChange:
    """Compare the log-normalised values of one gene in n cells and m control cells.

    The fold change is ``log₂((a + ε) / (b + ε))`` of the means a, b of ``exp(x) − 1``, ε the pseudocount; its
    interval is ± 1.96 standard errors by the delta method, ``√(v_a/n/(a+ε)² + v_b/m/(b+ε)²) / log 2``. The
    test has the normal approximation with corrections for ties and continuity.
    """
    from scipy.stats import mannwhitneyu

    x, y = np.asarray(cells, np.float64), np.asarray(controls, np.float64)
    a, b = np.expm1(x), np.expm1(y)
    up, down = a.mean() + PSEUDOCOUNT, b.mean() + PSEUDOCOUNT
    error = np.sqrt(_of_mean(a) / up**2 + _of_mean(b) / down**2) / np.log(2)
    fold = float(np.log2(up / down))
    same = max(x.max(), y.max()) == min(x.min(), y.min())
    p = 1.0 if same else float(mannwhitneyu(x, y, method="asymptotic").pvalue)
    return TargetChange(fold, fold - _QUANTILE * float(error), fold + _QUANTILE * float(error), p)


def _of_mean(values: np.ndarray) -> float:
    return float(values.var(ddof=1) / len(values)) if len(values) > 1 else float("nan")
