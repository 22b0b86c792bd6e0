"""Permuted pathways: the control that shows whether it matters which genes a pathway contains.

Genes swap their identities before pathways are looked up, so every pathway keeps its size and its overlap
with every other pathway, and only the biology is gone.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tadvae.pathways.membership import Membership


def permuted_genes(membership: Membership, panels: Sequence[np.ndarray], seed: int) -> Membership:
    """Exchange the measured genes of a membership by a random permutation.

    Only genes that the same datasets measure change places. A pathway therefore has as many measured genes as
    before in every dataset, and is available in the same datasets. Genes that no dataset measures stay.

    Parameters
    ----------
    panels
        Positions of the measured genes, one array per dataset.
    seed
        Seed of the permutation, 0 or more; the same seed and panels give the same one.
    """
    measured = np.zeros((membership.n_genes, len(panels)), bool)  # (G, D)
    for dataset, panel in enumerate(panels):
        measured[panel, dataset] = True
    image = np.arange(membership.n_genes)  # (G,): whose place each gene takes
    rng = np.random.default_rng(seed)
    for pattern in np.unique(measured, axis=0):
        if pattern.any():
            (genes,) = np.nonzero((measured == pattern).all(axis=1))
            image[genes] = rng.permutation(genes)
    gene = image[membership.gene]
    order = np.lexsort((gene, membership.pathway))
    return replace(membership, gene=gene[order], permuted=seed)
