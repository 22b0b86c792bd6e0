"""Are the pathways and the graph what they seem? Tests of interpretation that can fail.

A knock-out changes the expression of its own target, and the pathways that hold the target read it: that
they respond is partly circular. So the target's gene is taken out of the cells first, and the pathways that
hold it are compared with those of other genes (permuted masks).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

Array = NDArray[np.float64]

HITS_AT = (25, 100)
PERMUTATIONS = 1000


def activation_ratio(change: ArrayLike, member: ArrayLike) -> float:
    """Differential activation ratio: mean |Δ activity| of the pathways with the target over that of the rest.

    Parameters
    ----------
    change
        Mean activity of perturbed less that of control cells, shape (P,); NaN where not available.
    member
        Which pathways hold the target, bool, shape (P,).

    Returns
    -------
    float
        NaN where either side is empty, or nothing else changes.

    Source: SENA (de la Fuente et al. 2025), "differential activation".
    """
    size, inside = _available(change, member)
    if not inside.any() or inside.all():
        return float("nan")
    rest = float(size[~inside].mean())
    return float(size[inside].mean()) / rest if rest > 0.0 else float("nan")


def hits_at(change: ArrayLike, member: ArrayLike, n: int) -> float:
    """Share of the pathways with the target that are among the n of the largest |Δ activity|.

    Arguments as for :func:`activation_ratio`; of equal changes the first counts. NaN without such a pathway.

    Source: SENA (de la Fuente et al. 2025), "Hits@N".
    """
    size, inside = _available(change, member)
    if not inside.any():
        return float("nan")
    top = np.argsort(-size, kind="stable")[:n]
    return float(inside[top].sum() / inside.sum())


class Response(NamedTuple):
    """How the pathways of a target respond to it.

    ``dar_null`` is the mean ratio under permuted masks, ``p_value`` the share of permuted masks that do as
    well, (1 + count) / (1 + permutations); ``hits`` by N.
    """

    n_pathways: int
    dar: float
    dar_null: float
    p_value: float
    hits: dict[int, float]


def target_response(
    change: ArrayLike, masks: ArrayLike, target: int, seed: int = 0, permutations: int = PERMUTATIONS
) -> Response:
    """Compare the pathways of a target with the pathways that other genes have.

    Parameters
    ----------
    change
        As for :func:`activation_ratio`, shape (P,).
    masks
        Pathways × genes, bool, shape (P, G).
    target
        Column of the target's gene.
    permutations
        How many times the genes' names are shuffled: the target then has the pathways of another gene.
    """
    mask = np.asarray(masks, dtype=bool)
    inside = mask[:, target]
    dar = activation_ratio(change, inside)
    rng = np.random.default_rng(seed)
    in_any = np.flatnonzero(mask[~np.isnan(np.asarray(change, dtype=np.float64))].any(axis=0))
    drawn = rng.choice(in_any, permutations) if in_any.size else np.empty(0, np.int64)
    by_gene = {int(g): activation_ratio(change, mask[:, g]) for g in np.unique(drawn)}
    null = np.array([by_gene[int(g)] for g in drawn])
    null = null[~np.isnan(null)]
    defined = not np.isnan(dar) and null.size > 0
    return Response(
        n_pathways=int((inside & ~np.isnan(np.asarray(change, dtype=np.float64))).sum()),
        dar=dar,
        dar_null=float(null.mean()) if null.size else float("nan"),
        p_value=float((1 + (null >= dar).sum()) / (1 + null.size)) if defined else float("nan"),
        hits={n: hits_at(change, inside, n) for n in HITS_AT},
    )


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
    One row an edge that any seed has, most stable first: ``source``, ``target``, ``share`` of the seeds that
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


def _available(change: ArrayLike, member: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    size, inside = np.abs(np.asarray(change, dtype=np.float64)), np.asarray(member, dtype=bool)
    if size.ndim != 1 or size.shape != inside.shape:
        raise ValueError(
            f"expected one change and one membership a pathway, got {size.shape}, {inside.shape}."
        )
    known = ~np.isnan(size)
    return size[known], inside[known]


def _unit_rows(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0.0, norms, 1.0)
