"""Opening ``.h5ad`` files and ``.zarr`` folders of any age; data that lie outside of them are refused.

HDF5 can keep data of a file in other files (external links, external storage, virtual datasets), and a folder
can hold symbolic links. A downloaded file could import any file of this machine in this way.
"""

import importlib
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import read_elem

from tadvae.base.errors import UserError, clause
from tadvae.base.filesystem import Location

UNREADABLE = (KeyError, ValueError, TypeError, OSError, IndexError, RuntimeError)
"""What the libraries raise for damaged files."""
_FILTERS = {32001: "blosc", 32004: "lz4", 32008: "bitshuffle", 32015: "zstd", 32026: "blosc2"}
"""Names of registered HDF5 filters that hdf5plugin adds."""


@contextmanager
def open_file(path: str, where: str) -> Iterator[Any]:
    """Open an ``.h5ad`` file (yields an h5py.File) or a ``.zarr`` folder (a zarr.Group) for reading.

    Raises
    ------
    UserError
        If it is neither, or damaged.
    """
    if os.path.isdir(path):
        try:
            group = zarr.open_group(path, mode="r")
        except UNREADABLE as error:
            raise UserError(
                f"{where} is not a zarr store, or is damaged ({clause(error)}); give a file or folder "
                "written by anndata."
            ) from None
        yield group
        return
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise UserError(
            f"{where} is not an .h5ad (HDF5) file, or is damaged; give a file written by anndata."
        ) from None
    with file:
        yield file


def require_own_data(file: Any, path: str, parts: Iterable[str], where: str) -> None:
    """Raise a UserError if data of these parts of an open file lie elsewhere, or need a missing filter."""
    if isinstance(file, h5py.File):
        found = _Parts(file, where)
        for part in parts:
            found.visit_path(part.split("/"), file, 0)
    else:
        _require_no_links(Path(path), parts, where)


def names_in(file: Any, name: str) -> list[str]:
    """Names in a group of an open file; none where there is no such group in the file itself."""
    own = not isinstance(file, h5py.File) or isinstance(file.get(name, getlink=True), h5py.HardLink)
    return list(file[name]) if own and name in file else []


def read_frame(file: Any, name: str) -> pd.DataFrame:
    """``obs`` or ``var`` in any layout that anndata has written.

    Raises
    ------
    ValueError
        If it is not a table.
    """
    node = file[name]
    if isinstance(node, h5py.Dataset) and node.dtype.names:
        return _read_records(file, node)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns about old files; the contents are checked later
        frame = read_elem(node)
    if not isinstance(frame, pd.DataFrame):
        raise ValueError("obs or var is not a table")
    return frame


def read_adata(path: str, option: str) -> ad.AnnData:
    """Read a whole ``.h5ad`` file or ``.zarr`` folder into memory.

    Parameters
    ----------
    option
        The option that names the path, for messages.

    Raises
    ------
    UserError
        If there is no such file, it cannot be read, or its data lie elsewhere.
    """
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: no such file; give an .h5ad file or a .zarr folder with {option}.")
    with open_file(path, path) as file:
        require_own_data(file, path, list(file), path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata warns about old files
            return ad.read_zarr(path) if os.path.isdir(path) else ad.read_h5ad(path)
    except UNREADABLE as error:
        raise UserError(
            f"{path}: not an .h5ad file or .zarr folder, or damaged ({clause(error)}); give one written by "
            "anndata."
        ) from None


def write_adata(adata: ad.AnnData, place: Location) -> None:
    """Write an ``.h5ad`` file atomically."""
    with written_locally(place) as local:
        adata.write_h5ad(local)


@contextmanager
def written_locally(place: Location) -> Iterator[str]:
    """Yield the path of a local file that becomes a file anywhere when the block ends without an error.

    The HDF5 library can only write to local files.
    """
    with place.replacing() as partial:
        if partial.is_local:
            yield partial.path
            return
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / place.name
            yield str(local)
            with local.open("rb") as file, partial.filesystem.open_output_stream(partial.path) as stream:
                shutil.copyfileobj(file, stream, 2**24)


def _read_records(file: h5py.File, node: h5py.Dataset) -> pd.DataFrame:
    """A table of anndata before 0.7: one record per row, the index first, categories in ``uns``."""
    records = node[()]
    columns = {field: _decoded(records[field]) for field in node.dtype.names}
    frame = pd.DataFrame(columns)
    frame = frame.set_index(frame.columns[0])
    for column in frame.columns:
        stored = file.get(f"uns/{column}_categories")
        codes = frame[column].to_numpy()
        if isinstance(stored, h5py.Dataset) and np.issubdtype(codes.dtype, np.integer):
            categories = _decoded(np.atleast_1d(stored[()]))
            # obs and var shared the place: the categories may be those of the other table
            if len(codes) == 0 or codes.max() < len(categories):
                frame[column] = pd.Categorical.from_codes(codes, categories)
    return frame


def _decoded(values: np.ndarray) -> np.ndarray:
    """Bytes as text."""
    if values.dtype.kind not in "SO":
        return values
    return np.array(
        [each.decode("utf-8") if isinstance(each, bytes) else each for each in values.tolist()], object
    )


class _Parts:
    """Visits objects of an HDF5 file without leaving the file."""

    def __init__(self, file: h5py.File, where: str) -> None:
        self.file, self.where = file, where
        self._seen: set[Any] = set()

    def visit_path(self, names: list[str], at: Any, depth: int) -> None:
        """Visit what a path leads to, link by link; a path that leads nowhere is left to the reader."""
        for i, name in enumerate(names):
            if not isinstance(at, h5py.Group):
                return
            try:
                link = at.get(name, getlink=True)
            except TypeError:  # neither hard, soft nor external: a link that a plugin defines
                raise self._elsewhere(f"{at.name.rstrip('/')}/{name}") from None
            if isinstance(link, h5py.ExternalLink) or depth > 16:
                raise self._elsewhere(f"{at.name.rstrip('/')}/{name}")
            if isinstance(link, h5py.SoftLink):
                start = self.file if link.path.startswith("/") else at
                target = [part for part in link.path.split("/") if part not in ("", ".")]
                return self.visit_path(target + names[i + 1 :], start, depth + 1)
            if link is None:
                return
            at = at[name]
        self._visit(at)

    def _visit(self, node: Any) -> None:
        key = h5py.h5o.get_info(node.id)
        if (key.fileno, key.addr) in self._seen:
            return
        self._seen.add((key.fileno, key.addr))
        if isinstance(node, h5py.Group):
            for name in node:
                self.visit_path([name], node, 0)
            return
        if not isinstance(node, h5py.Dataset):
            return
        settings = node.id.get_create_plist()
        virtual = settings.get_layout() == h5py.h5d.VIRTUAL and any(
            source.file_name != "." for source in node.virtual_sources()
        )
        if settings.get_external_count() or virtual:
            raise self._elsewhere(node.name)
        for i in range(settings.get_nfilters()):
            self._require_filter(node, settings.get_filter(i)[0])
        for value in node.attrs.values():
            if isinstance(value, h5py.Reference) and value:  # categories of anndata 0.7
                self._visit(self.file[value])

    def _elsewhere(self, name: str) -> UserError:
        return UserError(
            f"{self.where}: the data of '{name}' lie in another file (an HDF5 external link, external "
            "storage or virtual dataset), which is not read; write one whole file, for example with "
            "ad.read_h5ad(…).write_h5ad(…)."
        )

    def _require_filter(self, node: h5py.Dataset, code: int) -> None:
        if not h5py.h5z.filter_avail(code):
            with suppress(ImportError):
                importlib.import_module("hdf5plugin")  # the import adds its filters to HDF5
        if not h5py.h5z.filter_avail(code):
            known = f", {_FILTERS[code]}" if code in _FILTERS else ""
            raise UserError(
                f"{self.where}: '{node.name}' is compressed with a filter that is not installed (HDF5 filter "
                f"{code}{known}); pip install hdf5plugin, or write the file again with compression='gzip'."
            )


def _require_no_links(root: Path, parts: Iterable[str], where: str) -> None:
    """Raise a UserError if a part of a zarr folder leads out of the folder."""
    inside = root.resolve()
    for part in parts:
        for folder, folders, files in os.walk(root / part):
            for name in [".", *folders, *files]:
                place = Path(folder) / name
                leaves = (place.is_symlink() or name == ".") and not place.resolve().is_relative_to(inside)
                if leaves or not (place.is_file() or place.is_dir()):
                    raise UserError(
                        f"{where}: '{place.relative_to(root)}' is no file of the folder but a link out of "
                        "it or a device, which is not read; copy the folder with its data (cp -rL)."
                    )
