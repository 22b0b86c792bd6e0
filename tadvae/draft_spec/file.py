"""A look into one file: its table of cells, its table of genes, and the heads of its matrices."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import sparse_dataset
from scipy import sparse

from tadvae.base.errors import UserError, clause
from tadvae.base.labels import is_blank, label_text
from tadvae.store.h5ad import UNREADABLE, names_in, open_file, read_frame, require_own_data
from tadvae.store.values import SAMPLE_ROWS, kind_of, sample_rows

_MOST_LABELS, _MOST_NUMBERS = 100_000, 1_000
"""Most distinct values of a column whose labels are listed; texts, and numbers."""

MatrixKind = Literal["counts", "fractional", "normalised", "log1p", "unclear", "signed", "unreadable"]


@dataclass(frozen=True)
class Head:
    """Some rows of a matrix.

    Attributes
    ----------
    place
        How the spec calls the matrix: ``X``, ``raw`` or the name of a layer.
    kind
        What the values look like; ``signed`` where some are negative.
    rows
        The values of the rows :attr:`row_numbers`, CSR; of a matrix stored by columns only some columns.
    whole_rows
        Whether the rows are complete.
    """

    place: str
    kind: MatrixKind
    rows: sparse.csr_matrix
    whole_rows: bool


@dataclass(frozen=True)
class LookedAt:
    """What a file holds, as far as a spec needs it.

    Attributes
    ----------
    path
        Path of the file or folder.
    obs, var, raw_var
        Its tables; ``raw_var`` None where there is no ``.raw``.
    heads
        Matrices by the name that the spec gives them.
    """

    path: str
    obs: pd.DataFrame
    var: pd.DataFrame
    raw_var: pd.DataFrame | None
    heads: list[Head]

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return Path(self.path).name

    @cached_property
    def row_numbers(self) -> np.ndarray:
        """The rows of which the heads consist."""
        return np.concatenate([np.arange(*span) for span in sample_rows(len(self.obs))])

    @cached_property
    def columns(self) -> dict[str, "Column"]:
        """The columns of obs that a spec can name, in order; a name that occurs twice is none."""
        names = [name for name in self.obs.columns if isinstance(name, str)]
        return {name: Column(name, self.obs[name]) for name in names if names.count(name) == 1}


class Column:
    """A column of obs and its labels.

    Attributes
    ----------
    labels
        Labels of at least one cell with their numbers of cells, the most frequent first; none where there are
        too many to name anything but cells.
    n_missing
        Number of cells without a label.
    """

    def __init__(self, name: str, values: pd.Series) -> None:
        self.name, self.values = name, values
        codes, distinct = pd.factorize(values)
        self.n_distinct = len(distinct)
        counts = np.bincount(codes[codes >= 0], minlength=len(distinct))
        labels: dict[str, int] = {}
        self.n_missing = len(values) - int(counts.sum())
        few = self.n_distinct <= (_MOST_NUMBERS if self.is_number else _MOST_LABELS)
        for value, n in zip(distinct, counts.tolist(), strict=True) if few else ():
            text = label_text(value).strip()
            labels[text] = labels.get(text, 0) + n
        self.n_missing += sum(n for text, n in labels.items() if is_blank(text))
        known = {text: n for text, n in labels.items() if not is_blank(text)}
        self.labels = dict(sorted(known.items(), key=lambda item: -item[1]))

    @property
    def is_number(self) -> bool:
        """Whether the column measures something (fractions, or very many whole numbers)."""
        if not pd.api.types.is_numeric_dtype(self.values.dtype) or pd.api.types.is_bool_dtype(self.values):
            return False
        return pd.api.types.is_float_dtype(self.values.dtype) or self.n_distinct > 50


@contextmanager
def _reading(path: str) -> Iterator[Any]:
    with open_file(path, path) as file:
        try:
            yield file
        except UNREADABLE as error:
            raise UserError(
                f"{path}: cannot be read as AnnData ({clause(error)}); write it again with a current anndata."
            ) from None


def look_at(path: str) -> LookedAt:
    """Look into an ``.h5ad`` file or a ``.zarr`` folder; of its matrices at most 512 rows are read.

    Raises
    ------
    UserError
        If it is no AnnData, is damaged, or keeps data in other files.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; give .h5ad files or .zarr folders.")
    with _reading(path) as file:
        absent = [key for key in ("obs", "var", "X") if key not in set(file)]
        if absent:
            raise UserError(
                f"{path}: not an AnnData file, it has no {', '.join(absent)}; give one written by anndata."
            )
        parts = ["obs", "var", "X", "layers", "raw", "raw.X", "raw.var"]
        parts += ["uns"] if isinstance(file["obs"], h5py.Dataset) else []  # categories before anndata 0.7
        require_own_data(file, path, parts, path)
        obs, var = read_frame(file, "obs"), read_frame(file, "var")
        if 0 in (len(obs), len(var)):
            raise UserError(f"{path}: {len(obs)} cells × {len(var)} genes, nothing to convert; give another.")
        raw = next((place for place in ("raw/var", "raw.var") if place in file), None)
        places = [("X", "X"), *((name, f"layers/{name}") for name in names_in(file, "layers"))]
        places += [("raw", place) for place in ("raw/X", "raw.X") if place in file]
        heads = [_head(name, file[place], len(obs)) for name, place in places]
        return LookedAt(path, obs, var, None if raw is None else read_frame(file, raw), heads)


def _head(name: str, node: Any, n_rows: int) -> Head:
    """Some rows of a matrix, judged."""
    try:
        matrix = sparse_dataset(node) if isinstance(node, h5py.Group | zarr.Group) else node
        by_columns = getattr(matrix, "format", None) == "csc"
        if by_columns:  # rows cannot be read one part at a time
            rows = sparse.csr_matrix(matrix[:, : min(SAMPLE_ROWS // 8, matrix.shape[1])], dtype=np.float64)
        else:
            spans = [matrix[start:stop] for start, stop in sample_rows(n_rows)]
            rows = sparse.vstack([sparse.csr_matrix(span, dtype=np.float64) for span in spans], format="csr")
        finite = np.isfinite(rows.data).all()
    except UNREADABLE:
        return Head(name, "unreadable", sparse.csr_matrix((0, 0)), False)
    if not finite:
        kind: MatrixKind = "unreadable"
    elif (rows.data < 0).any():
        kind = "signed"
    else:
        kind = kind_of(rows)
    return Head(name, kind, rows, not by_columns)
