"""Measured genes of datasets, and how many of them each pathway has."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from tadvae.pathways.sets import PathwaySets


@dataclass(frozen=True)
class Measured:
    """Measured genes of each dataset.

    Attributes
    ----------
    datasets
        Names of the D datasets.
    keys
        Maps identifiers to gene keys, None where unknown.
    genes
        Measured gene keys, one collection per dataset.
    """

    datasets: list[str]
    keys: Callable[[list[str]], list[str | None]]
    genes: list[Collection[str]]

    @classmethod
    def of_names(cls, names: Collection[str], source: str) -> "Measured":
        """One list of genes, named in the same way as the genes of the sets."""
        return cls([source], lambda given: list(given), [set(names)])

    def counts(self, sets: PathwaySets) -> np.ndarray:
        """Number of measured genes of each set in each dataset, int64, shape (D, P); synonyms count once."""
        key_of = self.key_of(sets)
        panels = [set(genes) for genes in self.genes]
        result = np.zeros((len(panels), len(sets)), np.int64)
        for p, genes in enumerate(sets.genes):
            members = {key_of[gene] for gene in genes} - {None}
            result[:, p] = [len(members & panel) for panel in panels]
        return result

    def restrict(self, sets: PathwaySets) -> PathwaySets:
        """The sets with the genes that any dataset measures, synonyms merged; empty ones are dropped."""
        key_of = self.key_of(sets)
        measured: set[str | None] = set().union(*self.genes)
        rows = []
        for key, name, genes in zip(sets.ids, sets.names, sets.genes, strict=True):
            kept = {key_of[gene]: gene for gene in reversed(genes) if key_of[gene] in measured}
            if kept:
                rows.append((key, name, list(kept.values())[::-1]))
        return PathwaySets([r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows], sets.source)

    def key_of(self, sets: PathwaySets) -> dict[str, str | None]:
        """Gene key of every identifier of the sets."""
        names = list(dict.fromkeys(gene for genes in sets.genes for gene in genes))
        return dict(zip(names, self.keys(names), strict=True))
