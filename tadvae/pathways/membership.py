"""Which genes of the vocabulary belong to which pathway: the mask ``M``, kept as its edges.

The mask ``M ∈ {0,1}^{P×G}`` of the paper's attention (T-AD-VAE, "Masking in Attention Scores") has about
0.2% ones for GO, so it is stored as a sorted edge list over the *global* gene vocabulary, once for all
datasets. Which pathways a dataset can use depends on its measured panel: a pathway with fewer than
``min_measured`` measured genes is unavailable there (SENA and the paper require five).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tadvae.base.errors import UserError
from tadvae.pathways.sets import PathwaySets

MIN_MEASURED = 5
"""Measured genes that a pathway needs to be available: "at least five genes" (T-AD-VAE, "Pathways")."""

MOST_LOGIT = 40
"""Largest logit: its exponential, and sums of many, are numbers in single precision."""


@dataclass(frozen=True)
class Coverage:
    """How well pathway sets match the measured genes.

    Attributes
    ----------
    n_sets, n_kept
        Pathways in the file, and those with ``min_measured`` or more measured genes.
    n_identifiers, n_identifiers_matched
        Different gene identifiers in the file, and those that are measured genes.
    n_genes_matched
        Measured genes that belong to at least one kept pathway.
    n_edges
        Number of (pathway, gene) pairs kept.
    min_measured
        The threshold that was applied.
    dropped
        Identifiers of the pathways left out.
    """

    n_sets: int
    n_kept: int
    n_identifiers: int
    n_identifiers_matched: int
    n_genes_matched: int
    n_edges: int
    min_measured: int
    dropped: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.n_kept} of {self.n_sets} pathways have {self.min_measured} or more measured genes; "
            f"{self.n_identifiers_matched} of {self.n_identifiers} gene identifiers are measured; "
            f"{self.n_genes_matched} genes in {self.n_edges} memberships"
        )


@dataclass(frozen=True, eq=False)
class Membership:
    """Edges of the pathway mask over a vocabulary of ``n_genes`` genes.

    Parameters
    ----------
    pathway_ids, names
        Identifier and readable name of each of the P pathways.
    pathway, gene
        Edge ends, ``(E,)`` int64 each: positions of pathway and gene, sorted by (pathway, gene),
        without repeats.
    n_genes
        Size G of the vocabulary.
    coverage
        What :func:`membership` kept and dropped; ``None`` for a membership made in another way.
    permuted
        Seed of the permutation of genes, for the control with permuted pathways
        (:func:`tadvae.pathways.permuted.permuted_genes`); ``None``: the genes are those of the pathways.
    logit
        Logit of the attention weight of each edge, ``(E,)`` float32, where it was learned before training
        (:mod:`tadvae.training.agreement`); ``None``: not learned.
    late
        Whether fine-tuning added an edge, ``(E,)`` bool: such a gene contributes to the activity, but does
        not count in the size and the mean of its pathway, so that the activity of other panels stays as it
        was; ``None``: no edge was added.

    Raises
    ------
    ValueError
        If the edges are unsorted, repeated, out of range or of another type, or the logits do not fit them.
    """

    pathway_ids: list[str]
    names: list[str]
    pathway: np.ndarray  # (E,)
    gene: np.ndarray  # (E,)
    n_genes: int
    coverage: Coverage | None = None
    permuted: int | None = None
    logit: np.ndarray | None = None  # (E,)
    late: np.ndarray | None = None  # (E,)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.pathway_ids):
            raise ValueError(f"{len(self.pathway_ids)} pathway ids, {len(self.names)} names")
        if self.pathway.ndim != 1 or self.pathway.shape != self.gene.shape:
            raise ValueError(f"edge arrays of shapes {self.pathway.shape} and {self.gene.shape}")
        for name, ends, limit in (
            ("pathway", self.pathway, self.n_pathways),
            ("gene", self.gene, self.n_genes),
        ):
            if ends.dtype != np.int64:
                raise ValueError(f"{name}: expected int64, found {ends.dtype}")
            if ends.size and (ends.min() < 0 or ends.max() >= limit):
                raise ValueError(f"{name}: expected values in [0, {limit})")
        if np.any(np.diff(self.pathway * self.n_genes + self.gene) <= 0):
            raise ValueError("edges are not sorted by (pathway, gene) without repeats")
        if self.logit is not None and (
            self.logit.shape != self.gene.shape
            or self.logit.dtype != np.float32
            or not (np.abs(self.logit) <= MOST_LOGIT).all()
        ):
            raise ValueError(f"logits: expected a float32 from {-MOST_LOGIT} to {MOST_LOGIT} for each edge")
        if self.late is not None and (self.late.dtype != np.bool_ or self.late.shape != self.gene.shape):
            raise ValueError("late: expected one bool per edge")

    @property
    def warning(self) -> str | None:
        """What everyone must know who reads pathways of this membership; None: nothing."""
        if self.permuted is None:
            return None
        return (
            f"PERMUTED PATHWAYS (seed {self.permuted}): this is a control. The genes of all pathways were "
            "exchanged at random, so names and activities of pathways have no biological meaning."
        )

    @property
    def n_pathways(self) -> int:
        """Number P of pathways."""
        return len(self.pathway_ids)

    def __len__(self) -> int:
        return self.n_pathways

    def size(self, panel: np.ndarray | None = None) -> np.ndarray:
        """Count the genes of each pathway, ``(P,)`` int64: all, or those of a panel.

        Parameters
        ----------
        panel
            Positions of the measured genes in the vocabulary, ``(n,)`` integers; ``None``: all genes.

        Raises
        ------
        ValueError
            If ``panel`` is not a vector of positions in the vocabulary.
        """
        ends = self.pathway if panel is None else self.pathway[self._measured(panel)[self.gene]]
        return np.bincount(ends, minlength=self.n_pathways)

    def availability(self, panel: np.ndarray, min_measured: int = MIN_MEASURED) -> np.ndarray:
        """Tell which pathways have ``min_measured`` or more genes in ``panel``, ``(P,)`` bool.

        Raises
        ------
        ValueError
            If ``panel`` is not a vector of positions in the vocabulary.
        """
        return self.size(panel) >= min_measured

    def dense(self) -> np.ndarray:
        """The mask ``M`` itself, ``(P, G)`` bool: for small cases and reference computations."""
        mask = np.zeros((self.n_pathways, self.n_genes), dtype=bool)
        mask[self.pathway, self.gene] = True
        return mask

    def _measured(self, panel: np.ndarray) -> np.ndarray:
        measured = np.zeros(self.n_genes, dtype=bool)
        measured[_positions(panel, self.n_genes, "panel")] = True
        return measured  # (G,)


def membership(
    sets: PathwaySets,
    vocabulary: Sequence[str],
    resolve: Callable[[list[str]], list[str | None]],
    panels: Sequence[np.ndarray] | None = None,
    min_measured: int = MIN_MEASURED,
) -> Membership:
    """Match pathway sets to a gene vocabulary.

    Identifiers that resolve to the same gene count once. Pathways with fewer than ``min_measured``
    genes in the union of the panels are dropped; a kept pathway keeps all its genes of the vocabulary.

    Parameters
    ----------
    sets
        Pathways with gene identifiers as given.
    vocabulary
        Gene keys, unique, one per position.
    resolve
        Maps identifiers as given to gene keys, ``None`` where unknown, one answer each.
    panels
        Positions of the measured genes, one array per dataset; ``None``: every gene is measured.
    min_measured
        Measured genes a pathway needs, at least 1.

    Returns
    -------
    Membership
        With its :class:`Coverage`.

    Raises
    ------
    UserError
        If no pathway has ``min_measured`` measured genes.
    ValueError
        If the vocabulary repeats a key, ``resolve`` returns another number of answers, a panel is out
        of range, or ``min_measured`` is below 1.
    """
    position = {key: i for i, key in enumerate(vocabulary)}
    n_genes = len(position)
    if n_genes != len(vocabulary):
        raise ValueError("the vocabulary repeats a gene key")
    if min_measured < 1:
        raise ValueError(f"min_measured: expected 1 or more, found {min_measured}")
    measured = np.full(n_genes, panels is None)
    for panel in panels or ():
        measured[_positions(panel, n_genes, "panel")] = True

    identifiers = list(dict.fromkeys(gene for genes in sets.genes for gene in genes))
    keys = resolve(identifiers)
    if len(keys) != len(identifiers):
        raise ValueError(f"resolve returned {len(keys)} answers for {len(identifiers)} identifiers")
    found = {
        given: position[key]
        for given, key in zip(identifiers, keys, strict=True)
        if key is not None and key in position
    }
    members = [
        np.unique(np.array([found[given] for given in genes if given in found], dtype=np.int64))
        for genes in sets.genes
    ]
    kept = [p for p, genes in enumerate(members) if int(measured[genes].sum()) >= min_measured]
    matched = sum(bool(measured[i]) for i in found.values())
    if not kept:
        raise UserError(
            f"{sets.source}: none of its {len(sets)} pathways has {min_measured} or more measured genes "
            f"({matched} of its {len(identifiers)} gene identifiers match the {int(measured.sum())} measured "
            f"genes; identifiers look like {_example(identifiers)}, measured genes like "
            f"{_example([vocabulary[i] for i in np.flatnonzero(measured)[:1]])}); give pathways of the same "
            "organism and kind of identifier, or lower min_measured."
        )
    pathway = np.repeat(np.arange(len(kept), dtype=np.int64), [members[p].size for p in kept])
    gene = np.concatenate([members[p] for p in kept])
    dropped = set(range(len(sets))).difference(kept)
    return Membership(
        pathway_ids=[sets.ids[p] for p in kept],
        names=[sets.names[p] for p in kept],
        pathway=pathway,
        gene=gene,
        n_genes=n_genes,
        coverage=Coverage(
            n_sets=len(sets),
            n_kept=len(kept),
            n_identifiers=len(identifiers),
            n_identifiers_matched=matched,
            n_genes_matched=int(measured[np.unique(gene)].sum()),
            n_edges=gene.size,
            min_measured=min_measured,
            dropped=tuple(sets.ids[p] for p in sorted(dropped)),
        ),
    )


def _positions(values: np.ndarray, limit: int, name: str) -> np.ndarray:
    """Check that ``values`` are positions in [0, limit): numpy would accept negative ones."""
    positions = np.asarray(values)
    if positions.size == 0:
        return np.zeros(0, dtype=np.int64)
    if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(f"{name}: expected a vector of integers, found {positions.dtype} {positions.shape}")
    if positions.min() < 0 or positions.max() >= limit:
        raise ValueError(f"{name}: expected positions in [0, {limit})")
    return positions.astype(np.int64)


def _example(values: Sequence[str]) -> str:
    return f"'{values[0]}'" if values else "(none)"


def hidden_units(n: int, n_genes: int) -> Membership:
    """``n`` units that every gene belongs to: a plain hidden layer in place of pathways (D-VAE)."""
    names = [f"unit_{i}" for i in range(n)]
    return Membership(names, names, np.repeat(np.arange(n), n_genes), np.tile(np.arange(n_genes), n), n_genes)
