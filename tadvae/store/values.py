"""What the values of a matrix are: counts, fractional counts, normalised values or logarithms.

The one place where values are compared with what the user says they are, for ``tadvae convert`` and for every
Python function that takes an AnnData.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.store.tokens import LARGEST

Said = Literal["counts", "log1p", "effects"]
Kind = Literal["counts", "fractional", "normalised", "log1p", "unclear"]

SAMPLE_ROWS = 512
"""Rows that :func:`kind_of` is given at most."""
_LARGEST_LOG = 30.0
"""Logarithms of expression are smaller: e^30 is 10^13."""
_LARGEST_EFFECT = 1e6
"""Effects are smaller, in whatever unit; sums of squares of larger ones would overflow single precision."""
_LOG_OF_CP10K = np.log(1e4 + 1)
_CONSTANT, _ALIKE, _APART = 1.005, 1.5, 1e3
"""Ratio of the 95th to the 5th percentile of row sums: equal but for rounding, similar, very different."""
_DECIMALS = (0.1, 0.01, 0.001)


def library_sizes(column: pd.Series) -> np.ndarray | None:
    """The library sizes in a column of ``obs``, float64; None if one is no number, or below 0."""
    sizes: np.ndarray = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return sizes if (np.isfinite(sizes) & (sizes >= 0)).all() else None


class ValuesError(UserError):
    """Values that are not what they are said to be."""


@dataclass(frozen=True)
class Advice:
    """How the user changes what is said about the values, each a clause of a sentence."""

    raw: str
    """How to give the raw counts."""
    counts: str
    """How to say that the values are counts."""
    log1p: str
    """How to say that they are log1p values."""
    rounded: str
    """How to round fractional counts."""


@dataclass(frozen=True)
class ValueCheck:
    """Compares values with what is said of them; what does not fit is a UserError.

    Attributes
    ----------
    where
        The dataset or object, for messages.
    said
        What the user says the values are.
    rounds
        Whether the user asks for fractional counts to be rounded.
    sample
        Returns some rows, spread evenly over all (:func:`sample_rows`).
    advise
        Returns ways to fix it; called only where something is wrong or unclear.
    """

    where: str
    said: Said
    rounds: bool
    sample: Callable[[], sparse.csr_matrix]
    advise: Callable[[], Advice]

    @functools.cached_property
    def kind(self) -> Kind:
        """What the values look like, judged by the sample."""
        return kind_of(self._rows)

    @functools.cached_property
    def advice(self) -> Advice:
        """Ways to fix what is wrong."""
        return self.advise()

    @functools.cached_property
    def _rows(self) -> sparse.csr_matrix:
        return self.sample()

    def check(self, values: sparse.csr_matrix, cells: pd.Index, genes: pd.Index) -> None:
        """Check each value of some rows."""
        data = values.data
        if (bad := ~np.isfinite(data)).any():
            what, fix = "is not a finite number", "remove NaN and infinite values"
        elif self.said == "effects":
            if not (bad := np.abs(data) > _LARGEST_EFFECT).any():
                return
            what, fix = "is too large for an effect", "fix that value"
        elif (bad := data < 0).any():
            what, fix = "is negative, so these values look scaled", self.advice.raw
        elif self.said == "log1p" and (bad := data > _LARGEST_LOG).any():
            what, fix = self._not_logarithms()
        elif self.said == "counts" and not self.rounds and (bad := data != np.rint(data)).any():
            what, fix = self._not_whole()
        # LARGEST itself is not a float32; LARGEST + 1 is
        elif self.said == "counts" and (bad := data >= LARGEST + 1).any():
            what, fix = f"is more than {LARGEST:,}, too large for a count of molecules", "fix the counts"
        else:
            return
        raise self._wrong(values, bad, cells, genes, what, fix)

    def check_sample(self, cells: pd.Index, genes: pd.Index) -> str | None:
        """Check the sample, also as a whole; return a note where nothing tells what the values are.

        Parameters
        ----------
        cells, genes
            Names of the sample's rows and columns.
        """
        sample = self._rows
        self.check(sample, cells, genes)
        if self.said == "effects":
            return None if (sample.data < 0).any() else self._no_negative()
        largest = sample.data == sample.data.max(initial=0)
        if self.said == "log1p" and self.kind in ("counts", "fractional", "normalised"):
            raise self._wrong(sample, largest, cells, genes, *self._not_logarithms())
        if self.said == "counts" and self.rounds and self.kind in ("normalised", "log1p"):
            broken = sample.data != np.rint(sample.data)
            raise self._wrong(sample, broken, cells, genes, *self._not_whole())
        if self.said == "log1p" and self.kind == "unclear":
            return (
                f"{self.where}: taken for log1p values as you say, but nothing in them proves it; if they "
                f"are fractional counts (SoupX, alevin, RSEM), {self.advice.rounded} and "
                f"{self.advice.counts}."
            )
        return None

    def _no_negative(self) -> str:
        """A note for effects of which none is negative."""
        return (
            f"{self.where}: taken for signed effects (0: no response) as you say, but none of its values is "
            "negative; if they are expression or counts, say 'kind: profiles' or 'kind: cells'."
        )

    def _not_whole(self) -> tuple[str, str]:
        """What a value that is not whole means where counts are expected, and the fix."""
        raw, advice = self.advice.raw, self.advice
        if self.kind in ("counts", "fractional"):
            what = "is not a whole number, so these are fractional counts (SoupX, alevin, RSEM) or normalised"
            return what, f"{advice.rounded} to round fractional counts, or {raw}"
        if self.kind == "normalised":
            what = "is not a whole number, so these values look normalised, but not log-transformed"
            return what, f"{raw}, or log-transform them (sc.pp.log1p) and {advice.log1p}"
        what = "is not a whole number, so these values look normalised or log-transformed"
        fix = f"{raw}, or {advice.log1p}"
        if self.kind == "unclear":
            fix += f", or {advice.rounded} if they are fractional counts (SoupX, alevin, RSEM)"
        return what + " where raw counts are expected", fix

    def _not_logarithms(self) -> tuple[str, str]:
        """What a value that cannot be a logarithm means where log1p values are expected, and the fix."""
        advice = self.advice
        if self.kind == "counts":
            return "looks like a raw count where log1p values are expected", advice.counts
        if self.kind == "fractional":
            what = "looks like a fractional count (SoupX, alevin, RSEM) where log1p values are expected"
            return what, f"{advice.rounded} to round them, or {advice.raw}"
        if self.kind == "normalised":
            what = "looks normalised but not log-transformed where log1p values are expected"
            return what, f"log-transform them (sc.pp.log1p), or {advice.raw}"
        return "looks like a raw count among log1p values", "fix that value"

    def _wrong(
        self,
        values: sparse.csr_matrix,
        bad: np.ndarray,
        cells: pd.Index,
        genes: pd.Index,
        what: str,
        fix: str,
    ) -> ValuesError:
        at = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(values.indptr, at, side="right")) - 1
        return ValuesError(
            f"{self.where}: the value {values.data[at]:g} of gene '{genes[values.indices[at]]}' in cell "
            f"'{cells[row]}' {what}; {fix}."
        )


def sample_rows(n: int, blocks: int = 8) -> list[tuple[int, int]]:
    """Ranges of rows (start, stop) for :func:`kind_of`: all, or some blocks spread evenly."""
    if n <= SAMPLE_ROWS:
        return [(0, n)]
    size = SAMPLE_ROWS // blocks
    starts = np.linspace(0, n - size, blocks).astype(int).tolist()
    return [(start, start + size) for start in starts]


def kind_of(rows: sparse.csr_matrix) -> Kind:
    """Judge what the values of some rows are; negative and infinite ones are left aside.

    Notes
    -----
    Normalised cells of whole counts are, before the logarithm, multiples of one number in each row; cells
    normalised on their whole panel have equal sums. Fractional counts are multiples of one number in all
    rows, or many of them are whole, or, taken for logarithms, their sums would differ by orders of
    magnitude. Values that fit none of these (imputed values, mean profiles of a small panel) are "unclear".
    """
    parts = [rows.data[a:b] for a, b in zip(rows.indptr[:-1], rows.indptr[1:], strict=True)]
    parts = [part[np.isfinite(part) & (part > 0)].astype(np.float64) for part in parts]
    parts = [part for part in parts if part.size]
    if not parts:
        return "log1p"  # nothing speaks against it
    data = np.concatenate(parts)
    whole = data == np.rint(data)
    if whole.all():
        return "counts"
    if data.max() <= _LARGEST_LOG:
        linear = [np.expm1(part) for part in parts]
        other_bases = ([np.exp2(part) - 1 for part in parts], [np.power(10.0, part) - 1 for part in parts])
        if any(len(_units(each)) for each in (linear, *other_bases)) or _spread(linear) <= _ALIKE:
            return "log1p"
    units = _units(parts)
    if len(units) and np.quantile(units, 0.9) > _CONSTANT * np.quantile(units, 0.1):
        return "normalised"
    if len(units) and not np.isclose(np.median(units), _DECIMALS, rtol=1e-3).any():
        return "fractional"
    if _spread(parts) <= _CONSTANT:
        return "normalised"
    if data.max() > _LARGEST_LOG or (whole.mean() > 0.2 and len(np.unique(data[whole])) > 2):
        return "fractional"
    if data.max() > _LOG_OF_CP10K and len(parts) >= 10 and _spread(linear) >= _APART:
        return "fractional"
    return "unclear"


def _spread(parts: list[np.ndarray], least: int = 5) -> float:
    """Ratio of the 95th to the 5th percentile of the rows' sums; rows of few values are left aside."""
    sums = [part.sum() for part in parts if len(part) >= least]
    if len(sums) < 2:
        return float("nan")
    low, high = np.quantile(sums, [0.05, 0.95])
    return float(high / low)


def _units(parts: list[np.ndarray]) -> np.ndarray:
    """Unit of each row, where the values of nearly all rows are whole multiples of a unit; otherwise none."""
    units, tested, informative = [], 0, 0
    for part in parts:
        distinct = np.unique(part)
        distinct = distinct[np.diff(distinct, prepend=0.0) > 1e-5 * distinct]  # equal but for rounding
        unit = np.diff(distinct[:64], prepend=0.0).min()
        multiples = distinct[distinct < 64 * unit] / unit  # of larger ones rounding hides the unit
        if len(multiples) < 2:
            continue
        tested += 1
        if np.abs(multiples - np.rint(multiples)).max() < 0.02:
            units.append(unit)
            informative += len(multiples) - 1
    return np.array(units if informative >= 6 and len(units) >= 0.9 * tested else [])
