"""Which pathways the datasets of a store can see, as tables and sentences."""

from dataclasses import dataclass

import numpy as np

from tadvae.pathways.measured import Measured
from tadvae.pathways.sets import PathwaySets
from tadvae.store.reader import Store


def measured_of(store: Store) -> Measured:
    """Measured genes of each dataset of a store."""
    keys = store.genes["gene"].to_numpy(dtype=object)
    panels = [store.panel(i)["gene_index"].to_numpy() for i in range(len(store.manifest.datasets))]
    return Measured(
        datasets=[entry.name for entry in store.manifest.datasets],
        keys=store.gene_names.keys,
        genes=[keys[panel].tolist() for panel in panels],
    )


@dataclass(frozen=True)
class Visibility:
    """Number of measured genes of pathways in each dataset, and which pathways are visible.

    Attributes
    ----------
    datasets, n_genes
        Names and sizes of the panels.
    measured
        Number of measured genes of each pathway in each dataset, int64, shape (D, P).
    sizes
        Number of genes of each pathway, int64, shape (P,).
    min_measured
        Measured genes that a pathway needs to be visible.
    """

    datasets: list[str]
    n_genes: list[int]
    measured: np.ndarray
    sizes: np.ndarray
    min_measured: int

    @classmethod
    def of(cls, sets: PathwaySets, measured: Measured, min_measured: int) -> "Visibility":
        """Count the measured genes of each pathway in each dataset."""
        return cls(
            datasets=list(measured.datasets),
            n_genes=[len(genes) for genes in measured.genes],
            measured=measured.counts(sets),
            sizes=np.array([len(genes) for genes in sets.genes], np.int64),
            min_measured=min_measured,
        )

    @property
    def seen(self) -> np.ndarray:
        """Whether each pathway is visible in each dataset, bool, shape (D, P)."""
        return self.measured >= self.min_measured

    def sentences(self) -> list[str]:
        """One sentence per dataset: how many pathways it can see and how many it cannot."""
        result = []
        for name, size, counts, seen in zip(
            self.datasets, self.n_genes, self.measured, self.seen, strict=True
        ):
            n, blind = len(seen), int((counts == 0).sum())
            result.append(
                f"{name} measures {size:,} genes: it can see {int(seen.sum()):,} of {n:,} pathways "
                f"({self.min_measured} or more measured genes) and cannot see {int((~seen).sum()):,}, "
                f"{blind:,} of them without any measured gene."
            )
        return result


def describe_set(sets: PathwaySets, row: int, measured: Measured, min_measured: int) -> list[str]:
    """One sentence per dataset on one pathway: whether it is visible, and through which genes."""
    one = PathwaySets([sets.ids[row]], [sets.names[row]], [sets.genes[row]], sets.source)
    key_of = measured.key_of(one)
    view = Visibility.of(one, measured, min_measured)
    result = []
    for name, size, panel, count in zip(
        view.datasets, view.n_genes, measured.genes, view.measured[:, 0], strict=True
    ):
        panel = set(panel)
        found = [gene for gene in one.genes[0] if key_of[gene] in panel]
        lacking = [gene for gene in one.genes[0] if key_of[gene] not in panel]
        words = "can see it" if count >= min_measured else "cannot see it"
        result.append(
            f"{name} ({size:,} genes) {words}: {count} of {view.sizes[0]} genes measured, {min_measured} "
            f"needed (measured: {_some(found)}; not measured: {_some(lacking)})."
        )
    return result


def _some(names: list[str], most: int = 12) -> str:
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
