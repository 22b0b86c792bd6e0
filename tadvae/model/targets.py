"""Names of targets in a model's terms, and why a model cannot answer for some."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tadvae.base.errors import UserError
from tadvae.data.amounts import Pair, amounts_of, require_amounts
from tadvae.data.lookup import Found
from tadvae.data.vocabulary import Vocabulary
from tadvae.store.covariates import AMOUNTS

KnownBy = Literal["identity", "gene"]
"""``model.causal.targets``."""


def why_unknown(target: int, vocabulary: Vocabulary, known_by: KnownBy) -> str | None:
    """Why a network cannot answer for a target, None if it can."""
    named = vocabulary.targets[target] if target < len(vocabulary.targets) else None
    if named is not None and named.seen:
        return None
    if known_by == "identity":
        return "it was not perturbed in training, and the network knows targets by identity only"
    gene = named.gene if named is not None else target - len(vocabulary.targets)
    if any(np.isin(gene, entry.genes).item() for entry in vocabulary.datasets):
        return None
    return "it was not perturbed in training, and its gene is measured in no dataset"


def find_target(
    found: Found, dataset: int, vocabulary: Vocabulary, unknown: Callable[[int], str | None]
) -> tuple[int, int]:
    """(target, modality) of a part of a perturbation that was asked for in a dataset.

    Parameters
    ----------
    unknown
        Why a model cannot answer for a target, None if it can.

    Raises
    ------
    UserError
        With the reason, where the name is unknown or the model cannot answer for it.
    """
    entry = vocabulary.datasets[dataset]
    if not found.known:
        raise UserError(
            f"target '{found.name}': no prediction, because it is neither a target of the training screens "
            "nor one of their genes; see model.vocabulary.targets for those that are."
        )
    index = _index(found, vocabulary)
    reason = unknown(index)
    if reason is not None:
        raise UserError(
            f"target '{found.name}': no prediction, because {reason}; train with cells of this perturbation, "
            "or with model.causal.targets=gene on screens that measure it."
        )
    return index, entry.target_modality.get(index, entry.modality)


def with_amounts(
    pairs: Sequence[tuple[int, int]], dataset: int, vocabulary: Vocabulary, asked: Sequence[float | None]
) -> list[Pair]:
    """Pairs with the dose and the time that were asked for, where the model reads them.

    Parameters
    ----------
    asked
        Dose and time; None: not said, the largest of training.

    Raises
    ------
    UserError
        If the model reads no dose or time, or one is not above zero.
    """
    amounts = vocabulary.amounts
    require_amounts(amounts, asked)
    if amounts is None:
        return list(pairs)
    names = [vocabulary.targets[t].name if t < len(vocabulary.targets) else "" for t, _ in pairs]
    return amounts.complete(pairs, dataset, names, asked)


def used_amounts(pairs: Sequence[Pair], vocabulary: Vocabulary) -> dict[str, float]:
    """Dose and time of a prediction by name, where they are the same for all pairs."""
    logs = {amounts_of(pair) for pair in pairs}
    if vocabulary.amounts is None or len(logs) != 1:
        return {}
    found = zip(AMOUNTS, next(iter(logs)), strict=True)
    return {name: float(np.exp(each)) for name, each in found if np.isfinite(each)}


def _index(found: Found, vocabulary: Vocabulary) -> int:
    """Model index of a known target; genes that are no targets come after the targets."""
    if found.target is not None:
        return vocabulary.target_index[found.target]
    return len(vocabulary.targets) + vocabulary.gene_index[str(found.gene)]


def dataset_like(asked: str | Sequence[str], dataset: str | None, vocabulary: Vocabulary) -> int:
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
    holders = []
    for i, entry in enumerate(vocabulary.datasets):
        parts = vocabulary.lookup.find(asked, i).parts
        if all(part.known and _index(part, vocabulary) in entry.target_modality for part in parts):
            holders.append(i)
    if len(holders) != 1:
        raise UserError(
            "with your own controls, say which screen's way of perturbing is meant: "
            f"--dataset, one of {', '.join(known)}."
        )
    return holders[0]
