"""Removing redundant gene sets: the two published definitions of redundancy.

Both work on the sparse intersections ``M Mᵀ``, so their cost depends on the number of pairs with common
genes. The order of the sets breaks ties (:func:`tadvae.pathway_selection.selection.select` sorts them by id).
"""

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform

ROWS_AT_ONCE = 512
"""Rows of ``M Mᵀ`` in memory at a time: with large sets almost all pairs intersect."""


def jaccard_survivors(members: sparse.csr_matrix, cut: float = 0.5) -> tuple[np.ndarray, int]:
    """Keep the largest set of every cluster, until nothing merges (NetActivity).

    Clusters are those of complete linkage on Jaccard distances, cut at ``cut`` (merges at exactly this height
    count). Of equally large sets the first is kept. In the end no pair of sets has this distance or less:
    the closest such pair would have merged.

    Parameters
    ----------
    members : (P, G) of ones
        Genes of each set.
    cut
        Distance below 1, so that sets without a common gene never merge.

    Returns
    -------
    Whether each set is kept, bool, shape (P,), and the number of rounds.
    """
    sizes = np.diff(members.indptr)
    kept = np.arange(members.shape[0])
    rounds = 0
    while True:
        cluster = clusters(members[kept], cut)
        rounds += 1
        # largest first, then first in order; the first of each cluster stays
        order = np.lexsort((kept, -sizes[kept]))
        _, first = np.unique(cluster[order], return_index=True)
        survivors = np.sort(kept[order[first]])
        if len(survivors) == len(kept):
            keep = np.zeros(members.shape[0], bool)
            keep[kept] = True
            return keep, rounds
        kept = survivors


def clusters(members: sparse.csr_matrix, cut: float) -> np.ndarray:
    """Complete-linkage clusters at a height: for each set the index of the first set of its cluster, (P,).

    All pairs within such a cluster have at most this distance. A cluster therefore lies within one connected
    component of the graph of these pairs, and each component is clustered separately. This avoids a P × P
    matrix of distances.
    """
    sizes = np.diff(members.indptr).astype(np.int64)
    rows, columns = [], []
    for start, block in _intersections(members):
        pair = block.tocoo()
        distance = _jaccard_distance(pair.data, sizes[start + pair.row], sizes[pair.col])
        near = distance <= cut
        rows.append(start + pair.row[near])
        columns.append(pair.col[near])
    row, column = np.concatenate([*rows, []]).astype(int), np.concatenate([*columns, []]).astype(int)
    shape = (members.shape[0], members.shape[0])
    graph = sparse.csr_matrix((np.ones(len(row), bool), (row, column)), shape=shape)
    n, component = connected_components(graph, directed=False)
    result = np.arange(members.shape[0])
    inside = np.split(
        np.argsort(component, kind="stable"), np.cumsum(np.bincount(component, minlength=n))[:-1]
    )
    for part in inside:
        if len(part) > 1:
            common = (members[part] @ members[part].T).toarray()
            distance = _jaccard_distance(common, sizes[part][:, None], sizes[part][None, :])
            label = fcluster(linkage(squareform(distance, checks=False), "complete"), cut, "distance")
            _, first = np.unique(label, return_index=True)
            result[part] = part[first[label - 1]]
    return result


def overlap_survivors(members: sparse.csr_matrix, bound: float = 0.5) -> np.ndarray:
    """Remove sets with more than ``bound`` of their genes in common with a selected one (the paper).

    Sets are visited from the largest to the smallest (equal sizes in order), and each is kept unless a kept
    one has too many of its genes. A kept set is never smaller than those visited after it, so in the end no
    selected set has more than this share of its genes in common with another.

    Parameters
    ----------
    members : (P, G) of ones
        Genes of each set.
    bound
        Largest share of common genes, from 0 to 1.

    Returns
    -------
    Whether each set is kept, bool, shape (P,).
    """
    n = members.shape[0]
    sizes = np.diff(members.indptr).astype(np.int64)
    keep = np.zeros(n, bool)
    order = np.argsort(-sizes, kind="stable")
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    above: list[np.ndarray] = [np.empty(0, np.int64)] * n  # larger sets with too many of its genes
    for start, block in _intersections(members):
        for i in range(block.shape[0]):
            span = slice(block.indptr[i], block.indptr[i + 1])
            others, common = block.indices[span], block.data[span]
            above[start + i] = others[(common > bound * sizes[start + i]) & (rank[others] < rank[start + i])]
    for i in order:
        keep[i] = not keep[above[i]].any()
    return keep


def _intersections(members: sparse.csr_matrix) -> Iterator[tuple[int, sparse.csr_matrix]]:
    transposed = members.T.tocsr()
    starts = range(0, members.shape[0], ROWS_AT_ONCE)
    return ((start, members[start : start + ROWS_AT_ONCE] @ transposed) for start in starts)


def _jaccard_distance(common: np.ndarray, size: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Jaccard distance by one division of integers: a distance of ½ is then exactly 0.5, the usual cut."""
    union = size + other - common
    result: np.ndarray = (union - common) / union
    return result
