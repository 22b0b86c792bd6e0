"""Whether batches and targets are confounded."""

import numpy as np
from numpy.typing import ArrayLike


def cramers_v(table: ArrayLike) -> tuple[float, float]:
    """Association of rows and columns of a table of counts, from 0 to 1, and the p-value of its χ² test.

    Cramér's V with the correction of Bergsma (2013, J. Korean Stat. Soc. 42:323), which is 0 on average
    without association: with φ² = χ²/n for r rows and c columns, ``φ̃² = max(0, φ² − (r−1)(c−1)/(n−1))``,
    ``r̃ = r − (r−1)²/(n−1)``, c̃ likewise, ``V = √(φ̃² / min(r̃−1, c̃−1))``. NaN for one row or column.
    """
    from scipy.stats import chi2_contingency

    counts = np.asarray(table, np.float64)
    counts = counts[counts.sum(axis=1) > 0][:, counts.sum(axis=0) > 0]
    if min(counts.shape, default=0) < 2:
        return float("nan"), float("nan")
    n, (r, c) = counts.sum(), counts.shape
    found = chi2_contingency(counts, correction=False)
    phi = max(0.0, found.statistic / n - (r - 1) * (c - 1) / (n - 1))
    rows, columns = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)
    smaller = min(rows, columns) - 1
    return (float(np.sqrt(phi / smaller)) if smaller > 0 else float("nan")), float(found.pvalue)
