"""Labels of the cells of one dataset, as arrays over the cells that are kept."""

from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from tadvae.store.covariates import NO_AMOUNTS, Amounts


@dataclass(frozen=True)
class CellLabels:
    """Labels from ``obs`` of the n cells that are kept, in source order."""

    source_row: np.ndarray  # (n,) int64
    cell_id: np.ndarray  # (n,) str
    context: np.ndarray  # (n,) int64, into contexts
    contexts: list[str]
    perturbation: np.ndarray  # (n,) int64, into perturbations
    perturbations: list[tuple[str, ...]]
    """Sorted targets of each perturbation; the empty tuple is the control."""
    batch: np.ndarray  # (n,) str
    total_counts: np.ndarray | None  # (n,) float64
    spelt: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Targets by label, and by part of a label, as they are spelt in the file."""
    amounts: list[Amounts] = field(default_factory=list)
    """Dose and time of each perturbation."""
    covariates: dict[str, np.ndarray] = field(default_factory=dict)
    """Free covariates by name, (n,) str each."""
    n_implied: int = 0
    """Number of cells at the end that are not in the file; see :meth:`with_zero_controls`."""
    guide: np.ndarray | None = None  # (n,) str
    n_guides: np.ndarray | None = None  # (n,) int64

    def subset(self, keep: np.ndarray) -> Self:
        """The cells for which ``keep``, bool (n,), is true; contexts and perturbations without any go."""
        contexts, context = np.unique(self.context[keep], return_inverse=True)
        codes, perturbation = np.unique(self.perturbation[keep], return_inverse=True)
        chosen: dict[str, Any] = {
            name: None if values is None else values[keep]
            for name, values in vars(self).items()
            if name in ("source_row", "cell_id", "batch", "total_counts", "guide", "n_guides")
        }
        return replace(
            self,
            **chosen,
            context=context.astype(np.int64),
            contexts=[self.contexts[i] for i in contexts],
            perturbation=perturbation.astype(np.int64),
            perturbations=[self.perturbations[i] for i in codes],
            amounts=[self.amounts[i] for i in codes],
            covariates={name: values[keep] for name, values in self.covariates.items()},
        )

    def __post_init__(self) -> None:
        if not self.amounts:
            object.__setattr__(self, "amounts", [NO_AMOUNTS] * len(self.perturbations))

    def with_zero_controls(self, n_rows: int) -> Self:
        """Add the control of every context, which a file of signatures with ``n_rows`` rows does not hold.

        The effect of no perturbation is zero: a control is a row without values after the file's last row.
        """
        n = len(self.contexts)
        return replace(
            self,
            source_row=np.append(self.source_row, n_rows + np.arange(n)),
            cell_id=np.append(self.cell_id, [f"control_{i}" for i in range(n)]).astype(str),
            context=np.append(self.context, np.arange(n)),
            perturbation=np.append(self.perturbation + 1, np.zeros(n, np.int64)),
            perturbations=[(), *self.perturbations],
            amounts=[NO_AMOUNTS, *self.amounts],
            covariates={
                name: np.append(each, np.full(n, "")).astype(str) for name, each in self.covariates.items()
            },
            batch=np.append(self.batch, np.full(n, "")).astype(str),
            n_implied=n,
        )
