"""Do the genes of a pathway change more, or less, than other genes? A statistic of one predicted change."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from tadvae.pathways.membership import Membership

Array = NDArray[np.float64]


def rank_biserial(change: ArrayLike, genes: np.ndarray, membership: Membership) -> Array:
    """Rank-biserial correlation of each pathway's membership with the change of genes.

    For a gene i of the pathway and a gene j outside of it, both measured::

        r = P(change_i > change_j) − P(change_i < change_j)

    1: all genes of the pathway rise more than all others; −1: all fall more; 0: like the others. It is
    2 AUC − 1 of the Mann–Whitney statistic. There is no p-value, because genes do not change independently.

    Parameters
    ----------
    change
        Of G genes, shape (G,).
    genes
        Their sorted vocabulary indices, shape (G,).
    membership
        Of P pathways.

    Returns
    -------
    Shape (P,); NaN where all or none of the genes belong to the pathway.

    Source: Cureton (1956), Rank-biserial correlation, Psychometrika 21, 287–290.
    """
    ranks = rankdata(np.asarray(change, dtype=np.float64))  # (G,), ties share their mean rank
    at = np.searchsorted(genes, membership.gene)
    inside = (at < len(genes)) & (genes[np.minimum(at, len(genes) - 1)] == membership.gene)
    pathway, rank = membership.pathway[inside], ranks[at[inside]]
    n = np.bincount(pathway, minlength=membership.n_pathways).astype(np.float64)  # (P,)
    u = np.bincount(pathway, weights=rank, minlength=membership.n_pathways) - n * (n + 1.0) / 2.0
    pairs = n * (len(ranks) - n)
    auc = np.divide(u, pairs, out=np.full(len(n), np.nan), where=pairs > 0.0)
    result: Array = 2.0 * auc - 1.0
    return result
