"""Batches of embedded cells: each is moved so that its control cells have the mean of all control cells.

Biology that all batches share moves together, and so does what a perturbation does to the cells of its batch;
only the difference between the batches' own controls is taken away.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import h5py
import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.model.cell_file import column_and_value

CORRECTED = ("X_tadvae", "X_tadvae_activity")
"""What is corrected; contributions of genes are not."""


@dataclass(frozen=True)
class Batches:
    """Which cells are of which batch, and which of them are control cells.

    Attributes
    ----------
    of_cell
        Number of each cell's batch, (n,).
    control
        Whether each cell is a control cell, (n,).
    n
        Number of batches.
    """

    of_cell: np.ndarray
    control: np.ndarray
    n: int

    @classmethod
    def of(cls, obs: pd.DataFrame, column: str, controls: str | None) -> "Batches":
        """Batches by a column of ``obs``; control cells are ``OBS=value``, or all cells if None.

        Raises
        ------
        UserError
            If there is no such column or value, a cell has no batch, or a batch has no control cells.
        """
        labels = _column(obs, column, f"batch '{column}'").astype(object)
        missing = labels.isna() | (labels.astype(str) == "")
        if missing.any():
            raise UserError(
                f"batch '{column}': {int(missing.sum())} of {len(obs)} cells have none; give every cell "
                "its batch in the files, or name another column."
            )
        control = np.ones(len(obs), dtype=bool)
        if controls is not None:
            what = f"controls '{controls}'"
            name, value = column_and_value(controls, what)
            control = (_column(obs, name, what).astype(str) == value).to_numpy()
        codes, names = pd.factorize(labels.astype(str), sort=True)
        without = np.setdiff1d(np.arange(len(names)), codes[control])
        if len(without):
            raise UserError(
                f"batch '{column}': {len(without)} of {len(names)} batches have no control cells "
                f"({', '.join(str(names[i]) for i in without[:3])}); name the control cells by a value that "
                "every batch has, or leave them out to compare all cells of the batches."
            )
        return cls(codes, control, len(names))


def _column(obs: pd.DataFrame, name: str, what: str) -> pd.Series:
    if name not in obs:
        known = ", ".join(map(str, obs.columns))
        raise UserError(f"{what}: obs has no column '{name}' in all files; they have {known}.")
    return obs[name]


class BatchMeans:
    """Sums over control cells, collected block by block, and the correction that follows from them."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self._sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, start: int, values: Mapping[str, np.ndarray]) -> None:
        """Add the cells from ``start`` on; their values by key are (n, width), NaN where not measured."""
        for key in CORRECTED:
            block = values[key].astype(np.float64)
            stop = start + len(block)
            chosen = self.batches.control[start:stop]
            codes, own = self.batches.of_cell[start:stop][chosen], block[chosen]
            shape = (self.batches.n, block.shape[1])
            total, count = self._sums.setdefault(key, (np.zeros(shape), np.zeros(shape)))
            np.add.at(total, codes, np.nan_to_num(own))
            np.add.at(count, codes, np.isfinite(own))

    def shift(self, key: str) -> np.ndarray:
        """What is added to the cells of each batch, (n_batches, width); zero where no control measures it."""
        total, count = self._sums[key]
        everywhere = total.sum(axis=0) / np.maximum(count.sum(axis=0), 1)
        return np.where(count > 0, everywhere - total / np.maximum(count, 1), 0.0)

    def correct(self, group: h5py.Group, rows: int) -> None:
        """Move the cells of a written file, some rows at a time."""
        for key in CORRECTED:
            shift, written = self.shift(key), group[key]
            for start in range(0, len(written), rows):
                stop = min(start + rows, len(written))
                own = written[start:stop] + shift[self.batches.of_cell[start:stop]]
                written[start:stop] = own.astype(np.float32)
