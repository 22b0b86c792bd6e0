"""What is known of targets before an experiment: the pathways of which their genes are members."""

from collections.abc import Sequence

import numpy as np

from tadvae.effects.conditions import Floats
from tadvae.pathways.membership import Membership


def target_similarity(membership: Membership, genes: Sequence[int]) -> Floats:
    """Similarity of targets by the pathways that they share, (n_targets, n_targets), from 0 to 1.

    The cosine of two rows of the membership, in which a pathway counts ``log(G / size)`` (inverse document
    frequency): sharing a small pathway says more. Rows of targets that are in no pathway are zero.

    Parameters
    ----------
    membership
        Pathways of the G genes of the vocabulary.
    genes
        Vocabulary index of the gene of each target; −1: not a gene.
    """
    weight = np.log(membership.n_genes / np.maximum(membership.size(), 1))  # (P,)
    rows = np.zeros((len(genes), len(membership)))  # (n_targets, P)
    targets: dict[int, list[int]] = {}
    for target, gene in enumerate(genes):
        targets.setdefault(gene, []).append(target)
    for pathway, gene in zip(membership.pathway.tolist(), membership.gene.tolist(), strict=True):
        if gene in targets:
            rows[targets[gene], pathway] = np.sqrt(weight[pathway])
    length = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    rows /= np.where(length > 0.0, length, 1.0)
    return rows @ rows.T
