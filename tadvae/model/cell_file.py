"""An ``.h5ad`` file or ``.zarr`` folder of cells whose values are read some rows at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import sparse_dataset
from scipy import sparse

from tadvae.base.errors import UserError, clause
from tadvae.model.new_cells import matrix_rows
from tadvae.store.h5ad import UNREADABLE, names_in, open_file, read_frame, require_own_data


class CellFile:
    """Cells of an open file; use it through :func:`open_cells`.

    Attributes
    ----------
    where
        Its path, for messages.
    obs, var
        Its tables of cells and genes.
    """

    def __init__(self, file: Any, path: str, layer: str | None) -> None:
        self.where = path
        part = "X" if layer is None else f"layers/{layer}"
        if layer is not None and layer not in names_in(file, "layers"):
            found = ", ".join(names_in(file, "layers")) or "none"
            raise UserError(f"{path}: no layer '{layer}' (layers: {found}); give the layer with raw counts.")
        require_own_data(file, path, ["obs", "var", part], path)
        absent = [key for key in ("obs", "var", part) if key not in file]
        if absent:
            raise UserError(f"{path}: it has no {', '.join(absent)}; give a file written by anndata.")
        if isinstance(file["obs"], h5py.Dataset):  # anndata before 0.7: the categories are in uns
            require_own_data(file, path, ["uns"], path)
        self.obs: pd.DataFrame = read_frame(file, "obs")
        self.var: pd.DataFrame = read_frame(file, "var")
        node = file[part]
        self._matrix = sparse_dataset(node) if isinstance(node, h5py.Group | zarr.Group) else node
        if getattr(self._matrix, "format", None) == "csc":
            # CSC stores columns: rows cannot be read one part at a time
            self._matrix = self._matrix.to_memory().tocsr()
        if tuple(self._matrix.shape) != (len(self.obs), len(self.var)):
            raise ValueError(f"its matrix has the shape {tuple(self._matrix.shape)}, not that of obs and var")

    def __len__(self) -> int:
        return len(self.obs)

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Values of some rows, as CSR.

        Raises
        ------
        UserError
            If they cannot be read, or are no numbers.
        """
        try:
            return matrix_rows(self._matrix[start:stop], self.where)
        except (TypeError, *UNREADABLE) as error:
            raise UserError(
                f"{self.where}: the rows {start} to {stop - 1} cannot be read ({clause(error)}); the file is "
                "damaged, restore it or write it again."
            ) from None

    def chosen(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Values of some rows, sorted, one block of neighbours at a time."""
        if not len(rows):
            return self.rows(0, 0)
        blocks = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        return sparse.vstack([self.rows(int(b[0]), int(b[-1]) + 1) for b in blocks], format="csr")

    def spread(self, n: int, blocks: int = 64) -> sparse.csr_matrix:
        """Values of :meth:`spread_rows`."""
        return self.chosen(self.spread_rows(n, blocks))

    def spread_rows(self, n: int, blocks: int = 64) -> np.ndarray:
        """At most n rows: all of them, or some blocks of rows spread evenly over the file."""
        if len(self) <= n:
            return np.arange(len(self))
        size = n // blocks
        starts = np.linspace(0, len(self) - size, blocks).astype(np.int64)
        return np.unique(starts[:, None] + np.arange(size))


@contextmanager
def open_cells(path: str, layer: str | None) -> Iterator[CellFile]:
    """Open a file of cells; one that is none is a UserError."""
    with open_file(path, path) as file:
        try:
            cells = CellFile(file, path, layer)
        except UNREADABLE as error:
            raise UserError(
                f"{path}: not an .h5ad file or .zarr folder, or damaged ({clause(error)}); give one written "
                "by anndata."
            ) from None
        yield cells


def column_and_value(words: str, what: str) -> tuple[str, str]:
    """The parts of ``OBS=value``; ``what`` begins the sentence of an error."""
    column, mark, value = words.partition("=")
    if not mark:
        raise UserError(f"{what}: expected OBS=value, a column of obs and one of its values.")
    return column, value


def read_cells(path: str, n: int, where: tuple[str, str] | None = None) -> ad.AnnData:
    """At most n cells of a file, spread evenly, in memory.

    Parameters
    ----------
    where
        A column of ``obs`` and the value that the cells have in it; None: all cells.

    Raises
    ------
    UserError
        If there is no such file, no such column, or no such cell.
    """
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file; give an .h5ad file or a .zarr folder.")
    with open_cells(path, None) as file:
        rows = np.arange(len(file))
        if where is not None:
            column, value = where
            if column not in file.obs:
                known = ", ".join(map(str, file.obs.columns)) or "none"
                raise UserError(f"{path}: no column '{column}' in obs (columns: {known}); name one of these.")
            texts = file.obs[column].astype(str)
            rows = np.flatnonzero((texts == value).to_numpy())
            if not len(rows):
                common = ", ".join(texts.value_counts().index[:10])
                raise UserError(f"{path}: no cell has the {column} '{value}' (most frequent: {common}).")
        if not len(rows):
            raise UserError(f"{path}: it has no cells; give another file.")
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(np.int64))]
        return ad.AnnData(file.chosen(rows), obs=file.obs.iloc[rows].copy(), var=file.var.copy())
