"""Cells by guide and number of guides: a table of the store."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.writer import DatasetPlan


def guide_table(
    datasets: Sequence[DatasetPlan], contexts: Sequence[str], codes: Sequence[Sequence[int]]
) -> pd.DataFrame:
    """Number of cells of every group by guide and number of guides (-1: not known).

    Parameters
    ----------
    datasets
        The datasets; those whose spec names no such columns have no rows.
    contexts
        All contexts of the store.
    codes
        By dataset, the store's indices of its perturbations.
    """
    columns = [*GROUP_KEYS, "guide", "n_guides", "n_cells"]
    parts = [pd.DataFrame(columns=columns)]
    index = {name: i for i, name in enumerate(contexts)}
    for dataset, code in zip(datasets, codes, strict=True):
        labels = dataset.labels
        if labels.guide is None and labels.n_guides is None:
            continue
        n = len(labels.source_row)
        context = np.array([index[name] for name in labels.contexts])
        frame = pd.DataFrame(
            {
                "dataset": np.full(n, dataset.index, np.int32),
                "context": context[labels.context].astype(np.int32),
                "perturbation": np.array(code)[labels.perturbation].astype(np.int32),
                "guide": np.full(n, "", object) if labels.guide is None else labels.guide.astype(object),
                "n_guides": np.full(n, -1) if labels.n_guides is None else labels.n_guides,
            }
        )
        parts.append(frame.groupby(columns[:-1], as_index=False).size().rename(columns={"size": "n_cells"}))
    return pd.concat(parts[1:], ignore_index=True) if len(parts) > 1 else parts[0]
