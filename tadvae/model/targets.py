"""Names of targets in a model's terms, and why a model cannot answer for some."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from tadvae.base.errors import UserError
from tadvae.data.vocabulary import Vocabulary
from tadvae.genes.harmonise import canonical_targets

KnownBy = Literal["identity", "gene"]
"""``model.causal.targets``."""


def why_unknown(target: int, vocabulary: Vocabulary, known_by: KnownBy) -> str | None:
    """Why a model cannot answer for a target, None if it can; see :meth:`tadvae.TADVAE.unknown`."""
    named = vocabulary.targets[target] if target < len(vocabulary.targets) else None
    if named is not None and named.seen:
        return None
    if known_by == "identity":
        return "it was not perturbed in training, and this model knows targets by identity only"
    gene = named.gene if named is not None else target - len(vocabulary.targets)
    if any(np.isin(gene, entry.genes).item() for entry in vocabulary.datasets):
        return None
    return "it was not perturbed in training, and its gene is measured in no dataset"


def find_target(name: str, dataset: int, vocabulary: Vocabulary, known_by: KnownBy) -> tuple[int, int]:
    """(target, modality) of a name in a dataset.

    Raises
    ------
    UserError
        With the reason, where the name is unknown or the model cannot answer for it.
    """
    entry = vocabulary.datasets[dataset]
    index = vocabulary.target_index.get(name)
    if index is None:
        (key,) = canonical_targets([name], vocabulary.gene_reference)
        gene = vocabulary.gene_index.get(key) if key is not None else None
        if gene is None:
            raise UserError(
                f"target '{name}': no prediction, because it is neither a target of the training screens "
                "nor one of their genes; see model.vocabulary.targets for those that are."
            )
        by_gene = {t.gene: i for i, t in enumerate(vocabulary.targets) if t.gene >= 0}
        index = by_gene.get(gene, len(vocabulary.targets) + gene)
    reason = why_unknown(index, vocabulary, known_by)
    if reason is not None:
        raise UserError(
            f"target '{name}': no prediction, because {reason}; train with cells of this perturbation, "
            "or with model.causal.targets=gene on screens that measure it."
        )
    return index, entry.target_modality.get(index, entry.modality)


def dataset_like(names: Sequence[str], dataset: str | None, vocabulary: Vocabulary) -> int:
    """Index of the dataset whose way of perturbing is meant: the named one, or the only one with the targets.

    Raises
    ------
    UserError
        If there is no such dataset, or none is named and several or none have all targets.
    """
    known = [entry.name for entry in vocabulary.datasets]
    if dataset is not None:
        if dataset not in known:
            raise UserError(f"dataset '{dataset}' was not in training (known: {', '.join(known)}).")
        return known.index(dataset)
    wanted = {vocabulary.target_index.get(name.strip()) for name in names}
    holders = [i for i, entry in enumerate(vocabulary.datasets) if wanted <= set(entry.target_modality)]
    if len(holders) != 1:
        raise UserError(
            "with your own controls, say which screen's way of perturbing is meant: "
            f"--dataset, one of {', '.join(known)}."
        )
    return holders[0]
