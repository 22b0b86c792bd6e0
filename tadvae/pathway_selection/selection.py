"""Selection of less redundant pathways from many overlapping gene sets.

Two published selections are presets. NetActivity (Ruiz-Arenas et al. 2024, doi:10.1093/nar/gkae197) keeps
sets of 10 to 29 measured genes, clusters them by Jaccard distance with complete linkage cut at ½, keeps
the largest of every cluster and repeats until nothing merges. The paper (T-AD-VAE, "Pathways") keeps sets
of fewer than 30 genes, without those that have "more than half of their genes in common with other selected
processes", with five or more measured genes, and without ancestors of other sets. Both then require
replicability (:mod:`tadvae.pathway_selection.replicability`).

Every filter is a pure function of the sets and does not depend on their order in the file: ids break ties.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from pydantic import Field, model_validator
from scipy import sparse

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.pathway_selection.redundancy import jaccard_survivors, overlap_survivors
from tadvae.pathways.measured import Measured
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.table import is_ancestor

Replicability = Callable[[PathwaySets], "np.ndarray | Sequence[float]"]
"""A function that scores sets, one number from 0 to 1 each."""


class Ancestry(Protocol):
    """A function that returns the ancestors among some sets."""

    def __call__(self, terms: Sequence[str], /) -> sparse.csr_matrix:
        """Strict ancestors, bool, shape (n, n); ``[t, a]``: ``a`` is an ancestor of ``t``."""


class SelectionConfig(Config):
    """Which sets are kept. The defaults are those of the preset ``netactivity``."""

    count: Literal["annotated", "measured"] = "measured"
    """Genes that count for sizes and overlaps.

    - ``annotated``: all genes of a set; use it for pathways that are shared by several panels.
    - ``measured``: only measured genes (all, without a store or a list of genes); use it for one panel.
    """
    min_genes: int = Field(10, ge=1)
    """Smallest number of genes of a set."""
    max_genes: int | None = Field(29, ge=1)
    """Largest number of genes of a set; None: no limit."""
    redundancy: Literal["jaccard", "overlap", "none"] = "jaccard"
    """How redundant sets are removed.

    - ``jaccard``: the largest set of each complete-linkage cluster is kept, as in NetActivity; the usual
      choice.
    - ``overlap``: sets with more than ``bound`` of their genes in a larger selected set are removed, as in
      the paper; use it to reproduce the paper.
    - ``none``: all sets are kept; use it for a collection that is not redundant.
    """
    bound: float = Field(0.5, gt=0, lt=1)
    """For ``jaccard`` the distance at which the tree is cut; for ``overlap`` the largest share of common
    genes."""
    min_measured: int | None = Field(None, ge=1)
    """Measured genes that a set needs in at least one dataset; None: no limit."""
    remove_ancestors: bool = False
    """Whether to remove every set that is an ancestor of another kept set."""
    regulates: bool = True
    """Whether ancestors, and with an ontology also genes, follow ``regulates`` (as NetActivity) in addition
    to ``is_a`` and ``part_of`` (which GO recommends)."""
    min_replicability: float | None = Field(None, ge=0, le=1)
    """Replicability above which sets are kept; None: not computed. NetActivity and the paper use 0.7."""

    @model_validator(mode="after")
    def _sizes_in_order(self) -> "SelectionConfig":
        if self.max_genes is not None and self.max_genes < self.min_genes:
            raise ValueError(f"max_genes {self.max_genes} is below min_genes {self.min_genes}")
        return self


PRESETS: dict[str, SelectionConfig] = {
    "netactivity": SelectionConfig(),
    "paper": SelectionConfig(
        count="annotated",
        min_genes=1,
        max_genes=29,
        redundancy="overlap",
        min_measured=5,
        remove_ancestors=True,
        regulates=False,
    ),
    "packaged": SelectionConfig(count="annotated", max_genes=299, regulates=False),
    "none": SelectionConfig(count="annotated", min_genes=1, max_genes=None, redundancy="none"),
}
"""``netactivity`` and ``paper``: as published; ``packaged``: the filters of the packaged default, which suit
small panels too; ``none``: no filter."""


@dataclass(frozen=True)
class FilterReport:
    """The effect of one filter.

    Attributes
    ----------
    filter
        Name of the filter.
    removed
        Number of removed sets, by reason.
    left
        Number of sets after the filter.
    """

    filter: str
    removed: dict[str, int]
    left: int

    def __str__(self) -> str:
        total = sum(self.removed.values())
        reasons = "; ".join(f"{n:,} {reason}" for reason, n in self.removed.items() if n)
        return f"{self.filter}: {total:,} removed{f' ({reasons})' if reasons else ''}, {self.left:,} left"


@dataclass(frozen=True)
class Selection:
    """The kept sets, sorted by id, and the effect of every filter."""

    sets: PathwaySets
    """The kept sets."""
    reports: list[FilterReport]
    """Effect of each filter, in the order in which they were applied."""
    replicability: dict[str, float] = field(default_factory=dict)
    """Replicability by id, from 0 to 1; empty if it was not computed."""


def select(
    sets: PathwaySets,
    config: SelectionConfig,
    *,
    measured: Measured | None = None,
    ancestry: Ancestry | None = None,
    replicability: Replicability | None = None,
) -> Selection:
    """Apply the filters in the paper's order: size, redundancy, measured genes, replicability, ancestors.

    Measured genes are filtered before replicability, which cannot be computed without them.

    Parameters
    ----------
    measured
        Measured genes of the datasets.
    ancestry
        Returns ancestors; needed to remove them.
    replicability
        Scores the sets that earlier filters have kept; called once.

    Raises
    ------
    UserError
        If a filter needs an argument that was not given, or no set is left.
    """
    _require(sets, config, measured, ancestry, replicability)
    sets = _take(sets, sorted(range(len(sets)), key=sets.ids.__getitem__))
    reports: list[FilterReport] = []
    by_id: dict[str, float] = {}
    if config.count == "measured" and measured is not None:
        restricted = measured.restrict(sets)
        lost = len(sets) - len(restricted)
        sets = restricted
        reports.append(FilterReport("genes", {"without a measured gene": lost}, len(sets)))

    sizes = np.array([len(genes) for genes in sets.genes], np.int64)
    small = sizes < config.min_genes
    large = np.zeros_like(small) if config.max_genes is None else sizes > config.max_genes
    sets = _step(
        sets,
        reports,
        "size",
        {
            f"with fewer than {config.min_genes} genes": small,
            f"with more than {config.max_genes} genes": large,
        },
    )
    if config.redundancy == "jaccard":
        keep, rounds = jaccard_survivors(member_matrix(sets), config.bound)
        reason = (
            f"in a cluster of Jaccard distance {config.bound:g} or less with a larger set, or one as large "
            f"with a lower id, in {rounds} rounds"
        )
        sets = _step(sets, reports, "redundancy", {reason: ~keep})
    elif config.redundancy == "overlap":
        keep = overlap_survivors(member_matrix(sets), config.bound)
        reason = f"with more than {config.bound:.0%} of their genes in common with a larger selected set"
        sets = _step(sets, reports, "redundancy", {reason: ~keep})
    if config.min_measured is not None and measured is not None:
        most = measured.counts(sets).max(axis=0, initial=0)
        reason = f"with fewer than {config.min_measured} measured genes in every dataset"
        sets = _step(sets, reports, "measured", {reason: most < config.min_measured})
    if config.min_replicability is not None and replicability is not None:
        scores = np.asarray(replicability(sets), np.float64)
        by_id = dict(zip(sets.ids, scores.tolist(), strict=True))
        reason = f"with a replicability of {config.min_replicability:g} or less"
        sets = _step(sets, reports, "replicability", {reason: ~(scores > config.min_replicability)})
    if config.remove_ancestors and ancestry is not None:
        removed = is_ancestor(ancestry(sets.ids))
        sets = _step(sets, reports, "ancestors", {"that are ancestors of a selected set": removed})
    return Selection(sets, reports, {key: by_id[key] for key in sets.ids if key in by_id})


def member_matrix(sets: PathwaySets) -> sparse.csr_matrix:
    """Genes of the sets as a matrix of ones, int64, shape (P, G)."""
    position: dict[str, int] = {}
    columns = [position.setdefault(gene, len(position)) for genes in sets.genes for gene in genes]
    offsets = np.concatenate([[0], np.cumsum([len(genes) for genes in sets.genes], dtype=np.int64)])
    ones = np.ones(len(columns), np.int64)
    return sparse.csr_matrix((ones, columns, offsets), shape=(len(sets), len(position)))


def _require(
    sets: PathwaySets,
    config: SelectionConfig,
    measured: Measured | None,
    ancestry: Ancestry | None,
    replicability: Replicability | None,
) -> None:
    for wanted, given, what, fix in (
        (config.min_measured, measured, "measured genes", "name a store, or ask for 0 measured genes"),
        (config.min_replicability, replicability, "replicability", "name a store to train on"),
        (
            config.remove_ancestors or None,
            ancestry,
            "ancestors",
            "give the ontology of these pathways, or keep ancestors",
        ),
    ):
        if wanted is not None and given is None:
            raise UserError(
                f"{sets.source}: expected the data that the filter '{what}' needs, found none; {fix}."
            )


def _step(
    sets: PathwaySets, reports: list[FilterReport], name: str, removed: dict[str, np.ndarray]
) -> PathwaySets:
    """Remove sets and report it; raise a UserError if none is left."""
    gone = np.logical_or.reduce(list(removed.values()))
    left = _take(sets, np.flatnonzero(~gone).tolist())
    reports.append(FilterReport(name, {why: int(mask.sum()) for why, mask in removed.items()}, len(left)))
    if not len(left):
        raise UserError(
            f"{sets.source}: expected pathways that pass every filter, found none after {reports[-1]}; relax "
            "this filter or give other pathways."
        )
    return left


def _take(sets: PathwaySets, rows: Sequence[int]) -> PathwaySets:
    return PathwaySets(
        [sets.ids[i] for i in rows], [sets.names[i] for i in rows], [sets.genes[i] for i in rows], sets.source
    )
