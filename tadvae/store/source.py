"""Reading one ``.h5ad`` file: labels of its cells, and its values a few rows at a time."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, sparse_dataset
from anndata.utils import make_index_unique
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.base.labels import is_blank
from tadvae.store.labels import ParsedLabels, parse_labels
from tadvae.store.spec import DatasetSpec
from tadvae.store.tokens import LARGEST

SYMBOL_COLUMNS = ("symbol", "gene_symbols", "gene_symbol", "gene_name", "gene_names")


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


class Source:
    """An open ``.h5ad`` file described by its spec; use through :func:`open_source`."""

    def __init__(self, spec: DatasetSpec, file: h5py.File) -> None:
        self.spec = spec
        self.where = f"dataset '{spec.name}' ({spec.path})"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata warns about old files; the contents are checked below
            self.obs: pd.DataFrame = read_elem(file["obs"])
            self.var: pd.DataFrame = read_elem(file["var"])
        if not isinstance(self.obs, pd.DataFrame) or not isinstance(self.var, pd.DataFrame):
            raise ValueError("obs or var is not a table")
        layer = spec.counts.layer
        if layer is not None and layer not in file.get("layers", {}):
            found = ", ".join(file.get("layers", {})) or "none"
            raise UserError(
                f"{self.where}: no layer '{layer}' (layers: {found}); correct 'counts' in the spec."
            )
        node = file["X"] if layer is None else file["layers"][layer]
        matrix = sparse_dataset(node) if isinstance(node, h5py.Group) else node
        if isinstance(node, h5py.Group) and matrix.format == "csc":
            matrix = matrix.to_memory().tocsr()  # CSC stores columns: rows cannot be read one part at a time
        self._matrix = matrix
        self.shape: tuple[int, int] = (len(self.obs), len(self.var))
        if tuple(matrix.shape) != self.shape or not np.issubdtype(matrix.dtype, np.number):
            raise ValueError(
                f"its matrix holds {matrix.dtype} of shape {tuple(matrix.shape)}, but obs and var have "
                f"{self.shape[0]} and {self.shape[1]} rows"
            )
        if 0 in self.shape:
            raise UserError(
                f"{self.where}: {self.shape[0]} cells × {self.shape[1]} genes, nothing to convert; "
                "give another file or take the dataset out of the spec."
            )

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Values of the source rows ``start:stop``, checked, as float32 CSR without stored zeros."""
        try:
            with np.errstate(over="ignore"):  # an overflow becomes infinite, which _check refuses
                values = sparse.csr_matrix(self._matrix[start:stop], dtype=np.float32)
            values.check_format()
        except (OSError, KeyError, ValueError, IndexError) as error:
            reason = _clause(error)
            raise UserError(
                f"{self.where}: the rows {start} to {stop - 1} of the matrix cannot be read ({reason}); "
                "the file is damaged, restore it or write it again."
            ) from None
        values.sum_duplicates()
        self._check(values, start)
        values.eliminate_zeros()
        return values

    def gene_names(self) -> tuple[list[str], list[str] | None]:
        """Gene identifiers, and gene symbols if ``var`` has a column of them."""
        column = self.spec.genes.column
        if column is not None:
            names = self._column(self.var, column, "var", "genes.column").astype(str).tolist()
        else:
            names = self.var.index.astype(str).tolist()
        wanted = self.spec.genes.symbols
        found = [name for name in SYMBOL_COLUMNS if name in self.var.columns and name != column]
        if wanted is not None:
            symbols = self._column(self.var, wanted, "var", "genes.symbols")
        elif found:
            symbols = self.var[found[0]]
        else:
            return names, None
        return names, symbols.astype(object).where(symbols.notna(), "").astype(str).tolist()

    def gene_lengths(self) -> np.ndarray | None:
        """Transcript lengths in bases, shape (G,); None if the spec names no column for them."""
        if self.spec.genes.length is None:
            return None
        column = self._column(self.var, self.spec.genes.length, "var", "genes.length")
        lengths = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise UserError(
                f"{self.where}: var column '{column.name}' must hold a positive length for every "
                "gene; fix it or remove 'genes.length' from the spec."
            )
        result: np.ndarray | None = lengths
        return result

    def labels(self, is_gene: Callable[[str], bool] = lambda name: False) -> CellLabels:
        """Context, perturbation, batch and library size of every cell.

        Parameters
        ----------
        is_gene
            Whether a name is that of a gene; names in ``var`` are such without being asked for.
        """
        obs, spec = self.obs, self.spec
        context = self._text(spec.context.column, "context.column")
        if context is None:
            context = np.full(len(obs), spec.context.value, dtype=object)
        else:
            self._require_names(context)
        parsed = self._parsed(is_gene)
        rows = np.flatnonzero(parsed.keep)
        contexts, context_code = np.unique(context[rows].astype(str), return_inverse=True)
        distinct = sorted(set(parsed.targets[rows]), key=lambda item: (len(item), item))
        code_of = {item: code for code, item in enumerate(distinct)}
        batch = self._text(spec.batch.column if spec.batch else None, "batch.column")
        total = None
        if spec.total_counts is not None:
            column = self._column(obs, spec.total_counts, "obs", "total_counts")
            total = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)[rows]
            if not (np.isfinite(total) & (total >= 0)).all():
                raise UserError(
                    f"{self.where}: obs column '{spec.total_counts}' must hold a library size for "
                    "every cell; fix it or remove 'total_counts' from the spec."
                )
        return CellLabels(
            source_row=rows.astype(np.int64),
            cell_id=obs.index.to_numpy(dtype=object)[rows].astype(str),
            context=context_code.astype(np.int64),
            contexts=[str(name) for name in contexts],
            perturbation=np.array([code_of[item] for item in parsed.targets[rows]], dtype=np.int64),
            perturbations=distinct,
            batch=(batch[rows] if batch is not None else np.full(len(rows), "")).astype(str),
            total_counts=total,
            spelt=parsed.spelt,
        )

    def var_names(self) -> list[str]:
        """The names in the index of ``var``, made unique as anndata does it."""
        index = self.var.index.astype(str)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it may say that a name with the suffix is there too
            names: list[str] = make_index_unique(index).tolist()
        return names

    def _parsed(self, is_gene: Callable[[str], bool]) -> ParsedLabels:
        spec = self.spec.perturbation
        if spec is None:
            targets = np.empty(len(self.obs), dtype=object)
            targets[:] = [()] * len(self.obs)
            return ParsedLabels(targets, np.ones(len(self.obs), dtype=bool), {})
        column = self._column(self.obs, spec.column, "obs", "perturbation.column")
        names, symbols = self.gene_names()
        own = {*names, *(symbols or ()), *self.var.index.astype(str)} - {""}
        return parse_labels(column, self.spec, self.where, lambda name: name in own or is_gene(name))

    def _require_names(self, context: np.ndarray) -> None:
        blank = np.array([is_blank(name) for name in context])
        if blank.any():
            raise UserError(
                f"{self.where}: {int(blank.sum())} cells have no value in obs column "
                f"'{self.spec.context.column}' (the text {context[blank][0]!r}); label them or name another "
                "column in 'context.column'."
            )

    def _column(self, frame: pd.DataFrame, name: str, of: str, setting: str) -> pd.Series:
        if name not in frame.columns:
            found = ", ".join(map(str, frame.columns)) or "none"
            raise UserError(
                f"{self.where}: no column '{name}' in {of} (columns: {found}); correct '{setting}' in the "
                "spec."
            )
        return frame[name]

    def _text(self, column: str | None, setting: str) -> np.ndarray | None:
        if column is None:
            return None
        series = self._column(self.obs, column, "obs", setting)
        if series.isna().any():
            raise UserError(
                f"{self.where}: {int(series.isna().sum())} cells have no value in obs column "
                f"'{column}'; label them or name another column in '{setting}'."
            )
        result: np.ndarray | None = series.astype(str).to_numpy(dtype=object)
        return result

    def _check(self, values: sparse.csr_matrix, start: int) -> None:
        """Raise a UserError if the values are not what the spec says they are."""
        data = values.data
        bad = ~np.isfinite(data)
        if bad.any():
            raise self._wrong(
                values, start, bad, "is not a finite number", "remove NaN and infinite values from the file"
            )
        bad = data < 0
        if bad.any():
            raise self._wrong(
                values,
                start,
                bad,
                "is negative, so these values look scaled",
                "point 'counts' at the raw counts, for example {layer: counts}",
            )
        if self.spec.values == "counts":
            bad = data != np.rint(data)
            if bad.any():
                raise self._wrong(
                    values,
                    start,
                    bad,
                    "is not a whole number, so these values look normalised or "
                    "log-transformed where raw counts are expected",
                    "point 'counts' at the raw counts, for example {layer: counts}, or say 'values: log1p'",
                )
            bad = data >= LARGEST + 1  # LARGEST itself is not a float32; LARGEST + 1 is
            if bad.any():
                raise self._wrong(
                    values,
                    start,
                    bad,
                    f"is more than {LARGEST:,}, too large for a count of molecules",
                    "fix the counts",
                )
        elif data.size and (data.max() > 30 or (data == np.rint(data)).all()):
            bad = data == data.max()
            raise self._wrong(
                values,
                start,
                bad,
                "looks like a raw count where log1p values are expected",
                "say 'values: counts' in the spec",
            )

    def _wrong(
        self, values: sparse.csr_matrix, start: int, bad: np.ndarray, what: str, fix: str
    ) -> UserError:
        at = int(np.flatnonzero(bad)[0])
        row = int(np.searchsorted(values.indptr, at, side="right")) - 1
        cell = self.obs.index[start + row]
        gene = self.var.index[values.indices[at]]
        return UserError(
            f"{self.where}: the value {values.data[at]:g} of gene '{gene}' in cell '{cell}' {what}; {fix}."
        )


@contextmanager
def open_source(spec: DatasetSpec) -> Iterator[Source]:
    """Open the ``.h5ad`` file of a dataset; a file of another kind is a UserError."""
    try:
        file = h5py.File(spec.path, "r")
    except OSError:
        raise UserError(
            f"dataset '{spec.name}': {spec.path} is not an .h5ad (HDF5) file, or is damaged; "
            "give a file written by anndata."
        ) from None
    with file:
        absent = [key for key in ("X", "obs", "var") if key not in file]
        if absent:
            raise UserError(
                f"dataset '{spec.name}': {spec.path} is HDF5 but not an .h5ad: it has no "
                f"{', '.join(absent)}; give a file written by anndata."
            )
        try:
            source = Source(spec, file)
        except (KeyError, ValueError, TypeError, OSError) as error:
            reason = _clause(error)
            raise UserError(
                f"dataset '{spec.name}': {spec.path} cannot be read as .h5ad ({reason}); "
                "write it again with a current anndata."
            ) from None
        yield source


def _clause(error: Exception) -> str:
    """The message of an error of another library, shortened to fit into a sentence."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return re.sub(r"\s+", " ", str(text)).split(". ")[0].rstrip(".")[:200]
