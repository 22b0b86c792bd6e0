"""Candidate edges of the soft strategies: genes outside a pathway that training may add to it.

A model computes them again from its vocabulary when it is loaded. Scores are therefore integers, so that
every machine finds the same edges.
"""

from typing import Literal

import numpy as np
from scipy import sparse

from tadvae.nn.edges import Ends
from tadvae.pathways.membership import Membership


def candidate_edges(membership: Membership, n: int | Literal["all"]) -> Ends | None:
    """Candidate edges from the pathways: every gene, or the ``n`` best of :func:`by_shared_pathways`."""
    if n == 0:
        return None
    return every_gene(membership) if n == "all" else by_shared_pathways(membership, n)


def every_gene(membership: Membership) -> Ends:
    """All (pathway, gene) edges, members included: the full matrix W of the paper."""
    P, G = membership.n_pathways, membership.n_genes
    return np.repeat(np.arange(P), G), np.tile(np.arange(G), P)


def by_shared_pathways(membership: Membership, n: int) -> Ends:
    """The ``n`` genes that share most pathways with a pathway's members; fewer where fewer share any.

    The score of gene g for pathway p is ``(Σ_{m in p} shared(g, m))² / degree(g)``: the square of a cosine,
    so that genes in very many pathways do not rank first everywhere. Ties go to the lower index.
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


def _mask(membership: Membership) -> sparse.csr_matrix:
    ones = np.ones(len(membership.pathway), np.int64)
    shape = membership.n_pathways, membership.n_genes
    return sparse.csr_matrix((ones, (membership.pathway, membership.gene)), shape=shape)
