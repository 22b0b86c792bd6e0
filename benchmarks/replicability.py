"""Whether activities are the same after a training with another seed."""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import pandas as pd


def replicability(activities: Iterable[pd.DataFrame]) -> float:
    """Mean over pathways of the correlation over cells, in the pair of networks where it is least."""
    found = []
    for first, second in combinations(activities, 2):
        common = [name for name in first if name in second]
        a, b = (part[common] - part[common].mean() for part in (first, second))
        size = np.sqrt((a**2).sum() * (b**2).sum())
        found.append(float(((a * b).sum() / size.where(size > 0)).fillna(0).mean()))
    return min(found, default=float("nan"))
