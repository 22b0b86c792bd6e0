"""Which genes beyond its members a pathway could recruit: candidate edges for the soft strategies.

What a model can rebuild from its vocabulary alone (:func:`candidate_edges`) is compared in whole numbers,
so that every machine finds the same edges. What comes from data, such as :func:`by_embedding` or
co-expression, belongs into ``Vocabulary.candidates``, which is saved with the model.
"""

from typing import Literal

import numpy as np
from scipy import sparse

from tadvae.nn.edges import Ends
from tadvae.pathways.membership import Membership

_BLOCK = 128  # pathways compared with all genes at once


def candidate_edges(membership: Membership, n: int | Literal["all"]) -> Ends | None:
    """Candidates by the pathways alone: every gene, or the ``n`` best of :func:`by_shared_pathways`."""
    if n == 0:
        return None
    return every_gene(membership) if n == "all" else by_shared_pathways(membership, n)


def every_gene(membership: Membership) -> Ends:
    """All edges, members too: the whole matrix W of the paper."""
    P, G = membership.n_pathways, membership.n_genes
    return np.repeat(np.arange(P), G), np.tile(np.arange(G), P)


def by_shared_pathways(membership: Membership, n: int) -> Ends:
    """The ``n`` genes that share most pathways with a pathway's members; fewer where fewer share any.

    The score of gene g for pathway p is ``(Σ_{m in p} shared(g, m))² / degree(g)``: the square of a cosine,
    so that a gene of very many pathways is not everybody's neighbour. Ties go to the lower index.
    """
    M = _mask(membership)  # (P, G)
    shared = ((M @ M.T) @ M).tocsr()  # (P, G): Σ_{q ∋ g} |p ∩ q|
    degree = np.bincount(membership.gene, minlength=membership.n_genes)
    pathway = np.repeat(np.arange(membership.n_pathways), np.diff(shared.indptr))
    gene, score = shared.indices.astype(np.int64), 1000 * shared.data**2 // degree[shared.indices]
    key = pathway * membership.n_genes + gene
    outside = ~np.isin(key, membership.pathway * membership.n_genes + membership.gene)
    pathway, gene, score = pathway[outside], gene[outside], score[outside]
    order = np.lexsort((gene, -score, pathway))
    pathway, gene = pathway[order], gene[order]
    rank = np.arange(len(order)) - np.searchsorted(pathway, pathway)  # within the pathway
    return pathway[rank < n], gene[rank < n]


def by_embedding(membership: Membership, rows: np.ndarray, n: int) -> Ends:
    """The ``n`` genes nearest to the mean direction of a pathway's members, by their cosine.

    Parameters
    ----------
    rows
        Gene vectors, shape (G, d); a gene without one (all zeros) is nobody's candidate.
    """
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(length > 0, length, 1.0)  # (G, d)
    mean = _mask(membership) @ unit  # (P, d)
    starts = np.searchsorted(membership.pathway, np.arange(membership.n_pathways + 1))
    pathways, genes = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    n = min(n, membership.n_genes)
    for block in range(0, membership.n_pathways, _BLOCK):
        for p, similar in enumerate(mean[block : block + _BLOCK] @ unit.T, start=block):  # (G,)
            similar[length[:, 0] == 0] = -np.inf
            similar[membership.gene[starts[p] : starts[p + 1]]] = -np.inf
            near = np.flatnonzero(similar >= np.partition(similar, -n)[-n])  # ties of the last place too
            best = near[np.lexsort((near, -similar[near]))][:n]
            genes.append(best[similar[best] > -np.inf])
            pathways.append(np.full(len(genes[-1]), p))
    return np.concatenate(pathways), np.concatenate(genes)


def _mask(membership: Membership) -> sparse.csr_matrix:
    ones = np.ones(len(membership.pathway), np.int64)
    shape = membership.n_pathways, membership.n_genes
    return sparse.csr_matrix((ones, (membership.pathway, membership.gene)), shape=shape)
