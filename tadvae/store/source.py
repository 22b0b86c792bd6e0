"""Reading one ``.h5ad`` file or ``.zarr`` folder: labels of cells, and values a few rows at a time."""

import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import sparse_dataset
from anndata.utils import make_index_unique
from scipy import sparse

from tadvae.base.errors import UserError, clause
from tadvae.base.labels import is_blank
from tadvae.genes.features import FEATURE_TYPES, listed, other_features
from tadvae.genes.reference import GeneReference
from tadvae.store.cell_labels import CellLabels
from tadvae.store.covariates import AMOUNTS, Amounts, order_of, read_amounts
from tadvae.store.h5ad import UNREADABLE, names_in, open_file, read_frame, require_own_data
from tadvae.store.labels import ParsedLabels, parse_labels
from tadvae.store.spec import DatasetSpec
from tadvae.store.values import SAMPLE_ROWS, Advice, ValueCheck, kind_of, library_sizes, sample_rows

SYMBOL_COLUMNS = ("symbol", "gene_symbols", "gene_symbol", "gene_name", "gene_names")


class Source:
    """An open ``.h5ad`` file or ``.zarr`` folder described by its spec; use through :func:`open_source`.

    Attributes
    ----------
    obs, var
        Tables of the cells and of the columns of the matrix. With ``.raw``, ``var`` is its table.
    columns
        Positions of the columns of the matrix that are genes; all, until :meth:`leave_out_others` or
        :meth:`keep` is called. ``var`` has only these columns.
    """

    def __init__(self, spec: DatasetSpec, file: Any) -> None:
        self.spec = spec
        self.where = f"dataset '{spec.name}' ({spec.path})"
        self._file = file
        _require_parts(spec, file, self.where)
        self._place, var = self._matrix_and_var(file)
        self.obs = read_frame(file, "obs")
        self.var = read_frame(file, var)
        self._matrix = _matrix(file[self._place])
        if getattr(self._matrix, "format", None) == "csc":
            # CSC stores columns: rows cannot be read one part at a time
            self._matrix = self._matrix.to_memory().tocsr()
        self.shape: tuple[int, int] = (len(self.obs), len(self.var))
        self.columns = np.arange(self.shape[1])
        found = tuple(self._matrix.shape)
        if found != self.shape or not np.issubdtype(self._matrix.dtype, np.number):
            raise ValueError(
                f"its matrix holds {self._matrix.dtype} of shape {found}, but obs and var have "
                f"{self.shape[0]} and {self.shape[1]} rows"
            )
        if 0 in self.shape:
            raise UserError(
                f"{self.where}: {self.shape[0]} cells × {self.shape[1]} genes, nothing to convert; "
                "give another file or take the dataset out of the spec."
            )

    def _matrix_and_var(self, file: Any) -> tuple[str, str]:
        """Paths of the matrix and of the table of its columns."""
        layer = self.spec.counts.layer
        if layer is None:
            return "X", "var"
        if layer in names_in(file, "layers"):
            return f"layers/{layer}", "var"
        if layer == "raw" and "raw/X" in file:
            return "raw/X", "raw/var"
        if layer == "raw" and "raw.X" in file:  # anndata before 0.7
            return "raw.X", "raw.var"
        found = ", ".join(names_in(file, "layers")) or "none"
        no_raw = " and no .raw" if layer == "raw" else ""
        has_raw = "; 'counts: raw' is .raw" if {"raw", "raw.X"} & set(file) and not no_raw else ""
        raise UserError(
            f"{self.where}: no layer '{layer}'{no_raw} (layers: {found}{has_raw}); correct 'counts' "
            "in the spec."
        )

    def leave_out_others(self, reference: GeneReference) -> dict[str, int]:
        """Leave out columns that are not genes; return the number of columns of each kind."""
        if self.spec.genes.features == "all":
            return {}
        types = self.var[FEATURE_TYPES] if FEATURE_TYPES in self.var.columns else None
        others = other_features(self.gene_names()[0], types, reference)
        kept = np.array([kind is None for kind in others])
        counts = dict(Counter(kind for kind in others if kind is not None))
        if not kept.any():
            raise UserError(
                f"{self.where}: none of its {len(others)} columns is a gene ({listed(counts)}); give another "
                "file, or set 'genes: {features: all}' to take them for genes."
            )
        self.keep(self.columns[kept])
        return counts

    def keep(self, columns: np.ndarray) -> None:
        """Leave out all columns of the matrix except these."""
        self.var = self.var.iloc[np.searchsorted(self.columns, columns)]
        self.columns = columns

    def rows(self, start: int, stop: int) -> sparse.csr_matrix:
        """Values of the source rows ``start:stop``, checked, as float32 CSR without stored zeros."""
        values = self._read(start, stop)
        self._checks.check(values, self.obs.index[start:stop], self.var.index)
        if self.spec.counts.round:
            values.data = np.rint(values.data)
        values.eliminate_zeros()
        return values

    def check_values(self) -> str | None:
        """Compare a sample of the rows with what the spec says; return a note where it proves nothing."""
        spans = sample_rows(self.shape[0])
        cells = self.obs.index[np.concatenate([np.arange(*span) for span in spans])]
        return self._checks.check_sample(cells, self.var.index)

    @functools.cached_property
    def _checks(self) -> ValueCheck:
        return ValueCheck(self.where, self.spec.values, self.spec.counts.round, self._sample, self._advice)

    def _advice(self) -> Advice:
        places = [how for how, place in self._other_places() if self._holds_counts(place)]
        raw = "give a file with raw counts"
        if places:
            raw = f"point 'counts' at the raw counts ({' or '.join(places)})"
        return Advice(
            raw=raw,
            counts="say 'values: counts'",
            log1p="say 'values: log1p'",
            rounded="set 'counts: {round: true}'",
        )

    def _other_places(self) -> list[tuple[str, str]]:
        """Matrices besides the one in use: how the spec names each, and its path in the file."""
        places = [("'counts: X'", "X")]
        places += [(f"'counts: {{layer: {n}}}'", f"layers/{n}") for n in names_in(self._file, "layers")]
        places += [("'counts: raw', which is .raw", path) for path in ("raw/X", "raw.X")]
        return [(how, place) for how, place in places if place != self._place]

    def _holds_counts(self, place: str) -> bool:
        """Whether the first rows of a matrix are whole numbers, so that pointing at it helps."""
        try:
            require_own_data(self._file, self.spec.path, [place], self.where)
            rows = sparse.csr_matrix(_matrix(self._file[place])[: min(SAMPLE_ROWS, self.shape[0])])
            return bool(rows.nnz) and bool((rows.data >= 0).all()) and kind_of(rows) == "counts"
        except (UserError, *UNREADABLE):
            return False

    def _sample(self) -> sparse.csr_matrix:
        return sparse.vstack([self._read(*span) for span in sample_rows(self.shape[0])], format="csr")

    def _read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Values of the source rows ``start:stop`` in the kept columns, as they are, float32."""
        try:
            with np.errstate(over="ignore"):  # an overflow becomes infinite, which is refused
                values = sparse.csr_matrix(self._matrix[start:stop], dtype=np.float32)
            values.check_format()
        except UNREADABLE as error:
            raise UserError(
                f"{self.where}: the rows {start} to {stop - 1} of the matrix cannot be read "
                f"({clause(error)}); the file is damaged, restore it or write it again."
            ) from None
        values.sum_duplicates()
        return values if len(self.columns) == self.shape[1] else values[:, self.columns]

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
        context = np.full(len(obs), spec.context.value, dtype=object)
        if spec.context.column is not None:
            context = self._names(spec.context.column, "context.column")
        for name, covariate in spec.covariates.items():
            if covariate.in_context:  # arrays of objects: joined cell by cell
                context = context + f", {name}=" + self._names(covariate.column, f"covariates.{name}.column")
        parsed = self._parsed(is_gene)
        rows = np.flatnonzero(parsed.keep)
        contexts, context_code = np.unique(context[rows].astype(str), return_inverse=True)
        keys = list(zip(parsed.targets[rows], self._amounts(parsed, rows), strict=True))
        distinct = sorted(set(keys), key=lambda key: (len(key[0]), key[0], order_of(key[1])))
        code_of = {key: code for code, key in enumerate(distinct)}
        batch = self._text(spec.batch.column if spec.batch else None, "batch.column")
        total = None
        if spec.total_counts is not None:
            column = self._column(obs, spec.total_counts, "obs", "total_counts")
            total = library_sizes(column.iloc[rows])
            if total is None:
                raise UserError(
                    f"{self.where}: obs column '{spec.total_counts}' must hold a library size for "
                    "every cell; fix it or remove 'total_counts' from the spec."
                )
        guide, n_guides = self._guides(rows)
        labels = CellLabels(
            source_row=rows.astype(np.int64),
            cell_id=obs.index.to_numpy(dtype=object)[rows].astype(str),
            context=context_code.astype(np.int64),
            contexts=[str(name) for name in contexts],
            perturbation=np.array([code_of[key] for key in keys], dtype=np.int64),
            perturbations=[targets for targets, _ in distinct],
            amounts=[amounts for _, amounts in distinct],
            covariates=self._free_covariates(rows),
            batch=(batch[rows] if batch is not None else np.full(len(rows), "")).astype(str),
            total_counts=total,
            spelt=parsed.spelt,
            guide=guide,
            n_guides=n_guides,
        )
        return labels.with_zero_controls(len(obs)) if spec.kind == "signatures" else labels

    def _guides(self, rows: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Guide, and number of guides, of some rows, where the spec names columns."""
        guide = n_guides = None
        qc = self.spec.qc
        if qc is not None and qc.guide is not None:
            column = self._column(self.obs, qc.guide, "obs", "qc.guide")
            guide = column.astype(object).where(column.notna(), "").astype(str).to_numpy()[rows]
        if qc is not None and qc.n_guides is not None:
            column = self._column(self.obs, qc.n_guides, "obs", "qc.n_guides")
            every = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)[rows]
            if not (np.isfinite(every) & (every >= 0) & (every == np.rint(every))).all():
                raise UserError(
                    f"{self.where}: obs column '{qc.n_guides}' must hold a whole number for every cell; fix "
                    "it or remove 'qc.n_guides' from the spec."
                )
            n_guides = every.astype(np.int64)
        return guide, n_guides

    def _amounts(self, parsed: ParsedLabels, rows: np.ndarray) -> list[Amounts]:
        """Dose and time of some cells."""
        perturbed = np.array([len(item) > 0 for item in parsed.targets]) & parsed.keep
        found: list[list[float | None]] = []
        for name in AMOUNTS:
            covariate = self.spec.covariates.get(name)
            if covariate is None:
                found.append([None] * len(rows))
                continue
            column = self._column(self.obs, covariate.column, "obs", f"covariates.{name}.column")
            numbers = read_amounts(column, perturbed, name, self.where)[rows]
            found.append([None if np.isnan(number) else number for number in numbers.tolist()])
        return list(zip(*found, strict=True))

    def _free_covariates(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Labels of the covariates that are neither dose nor time, of some cells."""
        found = {}
        for name, covariate in self.spec.covariates.items():
            if name not in AMOUNTS:
                values = self._text(covariate.column, f"covariates.{name}.column")
                assert values is not None
                found[name] = values[rows].astype(str)
        return found

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

    def _names(self, column: str, setting: str) -> np.ndarray:
        """Labels that name contexts: no cell is without one."""
        labels = self._text(column, setting)
        assert labels is not None
        blank = np.array([is_blank(name) for name in labels])
        if blank.any():
            raise UserError(
                f"{self.where}: {int(blank.sum())} cells have no value in obs column '{column}' (the text "
                f"{labels[blank][0]!r}); label them or name another column in '{setting}'."
            )
        return labels

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


def _matrix(node: Any) -> Any:
    """A matrix of an open file whose rows can be read one part at a time."""
    return sparse_dataset(node) if isinstance(node, h5py.Group | zarr.Group) else node


def _require_parts(spec: DatasetSpec, file: Any, where: str) -> None:
    """Raise a UserError if a table or the matrix is absent or lies elsewhere; nothing was read before."""
    layer = spec.counts.layer
    parts = ["obs", "var", "X" if layer is None else f"layers/{layer}"]
    if layer == "raw":
        parts += ["raw/X", "raw/var", "raw.X", "raw.var"]
    require_own_data(file, spec.path, parts, where)
    present = set(file)
    absent = [key for key in ("obs", "var", *(["X"] if layer is None else [])) if key not in present]
    if absent:
        kind = "HDF5 but not an .h5ad" if isinstance(file, h5py.File) else "zarr, but not an AnnData"
        raise UserError(f"{where} is {kind}: it has no {', '.join(absent)}; give a file written by anndata.")
    if isinstance(file["obs"], h5py.Dataset):  # anndata before 0.7: the categories are in uns
        require_own_data(file, spec.path, ["uns"], where)


@contextmanager
def open_source(spec: DatasetSpec) -> Iterator[Source]:
    """Open the file of a dataset; a file of another kind is a UserError."""
    with open_file(spec.path, f"dataset '{spec.name}': {spec.path}") as file:
        try:
            source = Source(spec, file)
        except UNREADABLE as error:
            kind = ".zarr" if os.path.isdir(spec.path) else ".h5ad"
            raise UserError(
                f"dataset '{spec.name}': {spec.path} cannot be read as {kind} ({clause(error)}); "
                "write it again with a current anndata."
            ) from None
        yield source
