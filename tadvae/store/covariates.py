"""Covariates of cells: dose and time as numbers of a perturbation, and free ones as labels of a cell.

The dose and the time of a perturbation are its *amounts*: perturbations of equal targets and other amounts
are different perturbations. Control cells have none.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pydantic import field_validator

from tadvae.base.config import Config
from tadvae.base.errors import UserError

AMOUNTS = ("dose", "time")
"""Covariates that are numbers of a perturbation."""
Amounts = tuple[float | None, float | None]
"""Dose and time of a perturbation; None: it has none."""
NO_AMOUNTS: Amounts = (None, None)
MOST_LABELS = 50
"""Labels of a free covariate that the manifest lists."""


class CovariateSpec(Config):
    """A column of ``obs`` with a covariate."""

    column: str
    """Name of the column."""
    unit: str = ""
    """Unit of a dose or a time, such as ``uM`` or ``h``; datasets of one store must agree."""

    in_context: bool = False
    """Whether the label is part of the context of a cell, for a covariate that is neither dose nor time.

    - ``false``: the label is stored with the cells, and the model does not read it; use it for batches, sex
      and other labels to look at.
    - ``true``: cells of another label are another context, such as ``Jurkat, medium=rich``, with control
      cells of their own; use it where controls or effects differ (a medium, a genotype, a stimulation).
    """

    @field_validator("unit")
    @classmethod
    def _short(cls, unit: str) -> str:
        if any(each in unit for each in "+@,") or len(unit) > 20:
            raise ValueError("expected a short unit without '+', '@' and ','")
        return unit


def read_amounts(column: pd.Series, perturbed: np.ndarray, name: str, where: str) -> np.ndarray:
    """Numbers of a dose or a time, (n,); NaN for cells that are not perturbed.

    Raises
    ------
    UserError
        If a perturbed cell has no number above zero.
    """
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    wrong = perturbed & ~(np.isfinite(numbers) & (numbers > 0))
    if wrong.any():
        raise UserError(
            f"{where}: {int(wrong.sum())} perturbed cells have no {name} above 0 in obs column "
            f"'{column.name}' (such as {str(column.to_numpy(dtype=object)[wrong][0])!r}); give numbers, or "
            f"take 'covariates.{name}' out of the spec."
        )
    return np.where(perturbed, numbers, np.nan)


def amounts_text(amounts: Amounts, units: Mapping[str, str]) -> str:
    """What follows the targets in the name of a perturbation: ``@0.1uM``, ``@24h`` or ``@0.1uM,24h``."""
    words = [
        f"{amount:g}{units.get(name, '')}"
        for name, amount in zip(AMOUNTS, amounts, strict=True)
        if amount is not None
    ]
    return f"@{','.join(words)}" if words else ""


def order_of(amounts: Amounts) -> tuple[float, ...]:
    """A key that sorts amounts: those that are none first."""
    return tuple(-1.0 if amount is None else amount for amount in amounts)
