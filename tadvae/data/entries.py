"""Datasets, contexts and targets as a vocabulary lists them."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class DatasetEntry:
    """A training dataset.

    Attributes
    ----------
    name
        Name of the dataset.
    genes
        Sorted vocabulary indices of the genes that the model sees, int64, shape (G,).
    method
        Normalisation: ``cpm``, ``cp10k``, ``tpm``, or ``none`` if the values were already log-transformed, or
        are effects.
    kind
        ``cells``, ``profiles`` or ``signatures``.
    modality
        Index of the modality that is most frequent in the dataset.
    target_modality
        Index of the modality by index of the target, for the targets of this dataset.
    names
        Names of the genes in the dataset's own file, G texts; None in models of earlier versions.
    separator
        Text between the targets of a combination in the dataset's labels, if there is one.
    labels
        Indices of targets by label, and by part of a label, as they are spelt in the dataset's file.
    total_counts
        Column of ``obs`` with the library sizes that its cells were normalised by; None: the sums of their
        counts.
    """

    name: str
    genes: np.ndarray
    method: str
    kind: str
    modality: int
    target_modality: dict[int, int]
    names: list[str] | None = None
    separator: str | None = None
    labels: dict[str, tuple[int, ...]] = field(default_factory=dict)
    total_counts: str | None = None

    @property
    def has_effects(self) -> bool:
        """Whether its values are signed effects, so that the control is zero; otherwise expression."""
        return self.kind == "signatures"


@dataclass(frozen=True)
class ContextEntry:
    """A context of one dataset.

    Attributes
    ----------
    dataset
        Index of the dataset.
    name
        Name of the context.
    profile
        Mean log-normalised profile of the control cells on the genes of the dataset, float32, shape (G,).
    n_controls
        Number of control cells behind the profile.
    """

    dataset: int
    name: str
    profile: np.ndarray
    n_controls: int


@dataclass(frozen=True)
class TargetEntry:
    """A target of perturbations.

    Attributes
    ----------
    name
        Name of the target, for a gene its symbol.
    gene
        Vocabulary index of the gene, -1 for a target that is not a gene (a ligand, a stimulus).
    seen
        Whether a training cell was perturbed at this target.
    """

    name: str
    gene: int
    seen: bool
