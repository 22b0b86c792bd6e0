"""An ``.h5ad`` file or ``.zarr`` folder of cells whose values are read some rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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

    def spread(self, n: int, blocks: int = 64) -> sparse.csr_matrix:
        """At most n rows: all of them, or some blocks of rows spread evenly over the file."""
        if len(self) <= n:
            return self.rows(0, len(self))
        size = n // blocks
        starts = np.linspace(0, len(self) - size, blocks).astype(int).tolist()
        return sparse.vstack([self.rows(start, start + size) for start in starts], format="csr")


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
