"""The packaged default: human GO biological processes, selected for gene panels of any size.

A whole-transcriptome screen measures enough genes of small, specific processes; a targeted panel of 300
genes measures five or more genes only of broad ones (of NetActivity's 1,485 published terms, sets of 10 to 29
genes, the panels of Norman 2019 and Papalexi 2021 cover one and none). The packaged file therefore holds
terms of 10 to 299 genes, without redundancy but with their ancestors, and :func:`default_pathways` takes for
each dataset the most specific ones that it covers: the paper's last two filters ("at least five genes
represented in our input datasets", "removing those that are ancestors of other terms within our list"),
applied to each panel.
"""

import functools
from collections.abc import Sequence
from importlib import resources

import numpy as np

from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference
from tadvae.pathways.measured import Measured
from tadvae.pathways.membership import MIN_MEASURED
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.table import PathwayTable, is_ancestor, parse_parquet

FILE = "pathways_human_go_bp.parquet"
NAME = "the packaged default pathways"


@functools.cache
def packaged() -> PathwayTable:
    """The packaged table of pathways, read from a file of the package."""
    data = resources.files("tadvae").joinpath("resources", FILE).read_bytes()
    return parse_parquet(data, NAME)


def default_pathways(
    genes: Sequence[str],
    panels: Sequence[np.ndarray],
    reference: GeneReference,
    min_measured: int = MIN_MEASURED,
) -> PathwaySets:
    """Return the packaged pathways that suit some panels: for each panel the most specific it covers.

    A pathway is kept if a panel has ``min_measured`` genes of it and of none of its descendants. If panels
    differ in size, an ancestor can therefore be kept together with its descendants, for the smaller panel.
    If no panel covers any pathway, all are returned, for :func:`tadvae.pathways.membership.membership` to
    refuse.

    Parameters
    ----------
    genes
        The gene vocabulary.
    panels
        Positions of the measured genes, one array per dataset.
    reference
        Maps identifiers to keys of the vocabulary.
    """
    table = packaged()
    sets = table.sets(genes)
    keys = np.asarray(genes, dtype=object)
    measured = Measured(
        datasets=[str(i) for i in range(len(panels))],
        keys=lambda names: canonical_targets(names, reference),
        genes=[keys[panel].tolist() for panel in panels],
    )
    seen = measured.counts(sets) >= min_measured  # (D, P)
    ancestry = table.ancestry(sets.ids)
    stays = np.zeros(len(sets), bool)
    for panel in seen:
        stays |= panel & ~is_ancestor(ancestry, among=panel)
    rows = np.flatnonzero(stays) if stays.any() else np.arange(len(sets))
    return PathwaySets(
        [sets.ids[i] for i in rows], [sets.names[i] for i in rows], [sets.genes[i] for i in rows], NAME
    )
