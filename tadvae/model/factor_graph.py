"""Matching the latent factors of models that differ by their seed, and how stable their graph is."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]


def align_factors(reference: ArrayLike, loadings: ArrayLike) -> tuple[NDArray[np.int64], Array]:
    """Which factor of another seed is which of the reference, and with which sign.

    Factors have no names and no order: they are matched one to one so that the sum of |cosine| of their
    pathway loadings is largest (Hungarian algorithm).

    Parameters
    ----------
    reference, loadings
        Factor × pathway loadings, shape (K, P) each.

    Returns
    -------
    order
        ``loadings[order[k]]`` is factor k of the reference, shape (K,).
    similarity
        Signed cosine of each match, shape (K,).
    """
    a, b = _unit_rows(reference), _unit_rows(loadings)
    cosine = a @ b.T  # (K, K)
    rows, order = linear_sum_assignment(-np.abs(cosine))
    return order.astype(np.int64), cosine[rows, order]


def edge_stability(
    graphs: Sequence[ArrayLike], loadings: Sequence[ArrayLike], threshold: float
) -> pd.DataFrame:
    """Edges of a factor graph over seeds, in the factors of the first seed.

    Parameters
    ----------
    graphs
        Effects of factors on each other of S seeds, shape (K, K) each; (i, j) is the effect of i on j.
    loadings
        Their factor × pathway loadings, shape (K, P) each.
    threshold
        Smallest |effect| that counts as an edge.

    Returns
    -------
    One row per edge that any seed has, most stable first: ``source``, ``target``, ``share`` of the seeds that
    have it, ``effect``, its mean over those, ``same_sign``, the share of those that agree with its sign, and
    ``similarity``, the mean |cosine| with which its two factors were matched.
    """
    reference = np.asarray(loadings[0], dtype=np.float64)
    aligned, matched = [], []
    for graph, own in zip(graphs, loadings, strict=True):
        order, similarity = align_factors(reference, own)
        sign = np.where(similarity < 0.0, -1.0, 1.0)
        g = np.asarray(graph, dtype=np.float64)[np.ix_(order, order)]
        aligned.append(g * sign[:, None] * sign[None, :])  # a flipped factor flips its edges
        matched.append(np.abs(similarity))
    stacked = np.stack(aligned)  # (S, K, K)
    has = np.abs(stacked) >= threshold
    rows = []
    for i, j in np.argwhere(has.any(axis=0)):
        effects = stacked[has[:, i, j], i, j]
        mean = float(effects.mean())
        rows.append(
            {
                "source": int(i),
                "target": int(j),
                "share": float(has[:, i, j].mean()),
                "effect": mean,
                "same_sign": float((np.sign(effects) == np.sign(mean)).mean()),
                "similarity": float(np.mean([(m[i] + m[j]) / 2 for m in matched])),
            }
        )
    columns = ["source", "target", "share", "effect", "same_sign", "similarity"]
    frame = pd.DataFrame(rows, columns=columns)
    size = frame["effect"].abs()
    return frame.assign(size=size).sort_values(["share", "size"], ascending=False, kind="stable").drop(
        columns="size"
    ).reset_index(drop=True)  # fmt: skip


def _unit_rows(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0.0, norms, 1.0)
