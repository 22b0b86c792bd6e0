"""Cells that come from outside a store: a user's AnnData, and the control cells kept with a run."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from scipy import sparse

from tadvae.base.errors import UserError, clause
from tadvae.cells.normalize import PreprocessConfig, normalize
from tadvae.cells.ragged import Cells
from tadvae.data.entries import DatasetEntry
from tadvae.data.vocabulary import Vocabulary
from tadvae.genes.features import FEATURE_TYPES, listed, other_features
from tadvae.genes.harmonise import harmonise, shared_prefix
from tadvae.store.source import SYMBOL_COLUMNS
from tadvae.store.values import Advice, ValueCheck, library_sizes, sample_rows

log = logging.getLogger("tadvae")

WHERE = "the given AnnData"
"""What messages call it."""
SAME_PANEL = 0.5
"""Share of the genes of two panels that both have, from which on they count as the same panel."""


@dataclass(frozen=True)
class Panel:
    """The genes of a file in a model's terms.

    Attributes
    ----------
    columns
        Positions of the n columns of the file's matrix that are genes.
    gene_of
        Vocabulary index of each, shape (n,); 0 where it is not matched.
    matched
        Whether the model was trained on it, bool, shape (n,).
    genes
        Sorted vocabulary indices of the matched genes, shape (G,).
    available
        Which pathways this panel can see, bool, shape (P,).
    n_trained
        Genes that the model was trained on.
    names
        Names of the matched genes in the file, in the order of ``genes``.
    n_given
        Columns of the file's matrix.
    library
        Column of ``obs`` with library sizes; None: they are the sums of the counts.
    """

    columns: np.ndarray
    gene_of: np.ndarray
    matched: np.ndarray
    genes: np.ndarray
    available: np.ndarray
    n_trained: int
    names: list[str]
    n_given: int
    library: str | None = None


@dataclass(frozen=True)
class NewCells:
    """Cells of a new panel in a model's terms.

    Attributes
    ----------
    cells
    genes
        Sorted vocabulary indices of the panel's genes that the model was trained on, shape (G,).
    available
        Which pathways this panel can see, bool, shape (P,).
    n_trained
        Genes that the model was trained on.
    names
        Names of the genes in the panel's own ``var_names``, in the order of ``genes``.
    """

    cells: Cells
    genes: np.ndarray
    available: np.ndarray
    n_trained: int
    names: list[str]

    @classmethod
    def of(cls, cells: Cells, panel: Panel) -> "NewCells":
        """Cells on a panel."""
        return cls(cells, panel.genes, panel.available, panel.n_trained, panel.names)


def cells_of(
    adata: ad.AnnData,
    vocabulary: Vocabulary,
    preprocess: PreprocessConfig,
    *,
    layer: str | None,
    values: Literal["counts", "log1p"],
) -> NewCells:
    """Match the genes of an AnnData to a model and normalise its cells as in training.

    Raises
    ------
    UserError
        Where no pathway of the model can be seen by this panel, or the values are not what they are said
        to be, or the model has never read a cell.
    """
    require_reads_cells(vocabulary, WHERE)
    matrix = matrix_of(adata, layer)
    panel = match_panel(adata.var, adata.obs, vocabulary, WHERE, values)
    if len(panel.columns) < panel.n_given:
        matrix = matrix[:, panel.columns]
    rows = np.concatenate([np.arange(*span) for span in sample_rows(matrix.shape[0])])
    names = adata.var.index[panel.columns]
    check = value_check(WHERE, values, lambda: matrix[rows])
    note = check.check_sample(adata.obs_names[rows], names)
    check.check(matrix, adata.obs_names, names)
    if note is not None:
        log.warning("%s", note)
    library = sizes_for(adata.obs, panel, WHERE)
    cells = normalised(matrix, panel, preprocess, values, library)
    say_matched(panel)
    return NewCells.of(cells, panel)


def require_reads_cells(vocabulary: Vocabulary, where: str) -> None:
    """Raise a UserError for a model that has never read a cell."""
    if all(dataset.has_effects for dataset in vocabulary.datasets):
        raise UserError(
            f"{where}: the model was trained on signatures alone and has never read a cell, so that it says "
            "nothing about cells; train with a dataset of cells or profiles too."
        )


def match_panel(
    var: pd.DataFrame,
    obs: pd.DataFrame,
    vocabulary: Vocabulary,
    where: str,
    values: Literal["counts", "log1p"],
) -> Panel:
    """Match the genes of a file, by the names in the index of ``var``, to those of a model.

    Library sizes of counts come from a column of ``obs`` where the panel is that of a training dataset whose
    cells were normalised by this column.

    Raises
    ------
    UserError
        Where no pathway of the model can be seen by this panel.
    """
    names = var.index.astype(str).tolist()
    n_given = len(names)
    types = var[FEATURE_TYPES] if FEATURE_TYPES in var.columns else None
    others = other_features(names, types, vocabulary.gene_reference)
    kept = np.flatnonzero([kind is None for kind in others])
    if len(kept) < n_given:
        log.warning(
            "%s: columns that are not genes are left out (%s).", where, listed(Counter(filter(None, others)))
        )
        names = [names[i] for i in kept]
    var = var.iloc[kept]
    column = next((name for name in SYMBOL_COLUMNS if name in var.columns), None)
    symbols = None if column is None else var[column].astype(str).tolist()
    found = harmonise(names, vocabulary.gene_reference, where=where, symbols=symbols, max_unknown=1.0)
    index = found["gene"].map(vocabulary.gene_index)
    trained = np.zeros(vocabulary.n_genes, bool)
    for dataset in vocabulary.datasets:
        trained[dataset.genes] = True
    matched = index.notna().to_numpy()
    gene_of = np.where(matched, index.fillna(0), 0).astype(np.int64)
    matched &= trained[gene_of]
    order = np.argsort(gene_of[matched])
    genes = gene_of[matched][order]
    available = vocabulary.membership.availability(genes, vocabulary.min_measured)
    if not available.any():
        prefix = shared_prefix(names, vocabulary.gene_reference)
        advice = prefix or "give symbols or Ensembl ids in var_names"
        raise UserError(
            f"{where}: {len(genes)} of its {len(names)} genes are known to the model, and no pathway has "
            f"{vocabulary.min_measured} of them; {advice}."
        )
    own_names = np.array(names, dtype=object)[matched][order].tolist()
    library = library_column(genes, obs, vocabulary, where) if values == "counts" else None
    return Panel(kept, gene_of, matched, genes, available, int(trained.sum()), own_names, n_given, library)


def library_column(genes: np.ndarray, obs: pd.DataFrame, vocabulary: Vocabulary, where: str) -> str | None:
    """The column of ``obs`` with library sizes for a panel, given as sorted vocabulary indices.

    It is that of the training dataset whose panel is most like this one. Where the file lacks the column, a
    warning says that its cells are normalised in another way than those of the training.
    """

    def overlap(dataset: DatasetEntry) -> float:
        return len(np.intersect1d(dataset.genes, genes)) / max(len(np.union1d(dataset.genes, genes)), 1)

    likest = max(vocabulary.datasets, key=overlap)
    column = likest.total_counts if overlap(likest) >= SAME_PANEL else None
    if column is None or column in obs.columns:
        return column
    log.warning(
        "%s: its genes are the panel of dataset '%s', whose cells were normalised by the library sizes in "
        "obs column '%s'; it is absent here, so these cells are normalised by their sums over the panel, and "
        "their values are higher than in training; add the column.",
        where,
        likest.name,
        column,
    )
    return None


def sizes_for(obs: pd.DataFrame, panel: Panel, where: str) -> np.ndarray | None:
    """Library sizes of cells, (n,); None: they are the sums of the counts.

    Raises
    ------
    UserError
        If one is no number, or below 0.
    """
    if panel.library is None:
        return None
    sizes = library_sizes(obs[panel.library])
    if sizes is None:
        raise UserError(
            f"{where}: obs column '{panel.library}' must hold a library size for every cell, as the model's "
            "cells of this panel were normalised by it; fix it."
        )
    return sizes


def say_matched(panel: Panel, where: str | None = None) -> None:
    """Say how many genes of a file the model knows."""
    log.info(
        "%s%d of %d given genes matched, of %d that the model knows; %d of %d pathways can be seen",
        "" if where is None else f"{where}: ",
        len(panel.genes),
        len(panel.columns),
        panel.n_trained,
        panel.available.sum(),
        len(panel.available),
    )


def normalised(
    matrix: sparse.csr_matrix,
    panel: Panel,
    preprocess: PreprocessConfig,
    values: Literal["counts", "log1p"],
    library: np.ndarray | None,
) -> Cells:
    """Rows of a file, with the columns ``panel.columns`` and their library sizes, as the model reads them."""
    if library is None:
        library = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    if values == "counts":
        if preprocess.normalize == "tpm":
            raise UserError("the model was trained on TPM: give log1p TPM values and say values='log1p'.")
        expression = normalize(matrix.data, matrix.indices, matrix.indptr, library, preprocess.normalize)
    else:
        expression = matrix.data.astype(np.float32)
    kept = sparse.csr_matrix((expression, matrix.indices, matrix.indptr), shape=matrix.shape)
    kept = kept[:, panel.matched]
    kept = sparse.csr_matrix((kept.data, panel.gene_of[panel.matched][kept.indices], kept.indptr))
    kept.sort_indices()
    kept.eliminate_zeros()
    return Cells(
        kept.indices.astype(np.int64), kept.data.astype(np.float32), kept.indptr.astype(np.int64), library
    )


def matrix_of(adata: ad.AnnData, layer: str | None) -> sparse.csr_matrix:
    """The values of an AnnData, in memory or backed, as CSR.

    Raises
    ------
    UserError
        If there is no such layer, no ``X``, or they are not numbers.
    """
    if layer is not None and layer not in adata.layers:
        raw = "; for counts in .raw give adata.raw.to_adata()" if adata.raw is not None else ""
        raise UserError(
            f"{WHERE}: no layer '{layer}' (layers: {', '.join(adata.layers) or 'none'}); give the layer with "
            f"raw counts (layer=…){raw}."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        raise UserError(f"{WHERE}: it has no X; give the layer with raw counts (layer=…).")
    try:
        if hasattr(matrix, "to_memory"):  # sparse and backed
            matrix = matrix.to_memory()
        elif hasattr(matrix, "compute"):  # dask
            matrix = matrix.compute()
        elif isinstance(matrix, h5py.Dataset | zarr.Array):
            matrix = matrix[:]
        return matrix_rows(matrix, WHERE)
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise UserError(
            f"{WHERE}: its values cannot be read ({clause(error)}); give a matrix of numbers."
        ) from None


def matrix_rows(matrix: Any, where: str) -> sparse.csr_matrix:
    """Rows of a matrix as CSR in canonical form; values that are not real numbers are a UserError."""
    result = sparse.csr_matrix(matrix)
    numbers = np.issubdtype(result.dtype, np.number) or result.dtype == np.bool_
    if not numbers or np.issubdtype(result.dtype, np.complexfloating):
        raise UserError(
            f"{where}: its values are {result.dtype}, not real numbers; give raw counts (layer=…)."
        )
    if not result.has_canonical_format:
        result = result.copy()
        result.sum_duplicates()
    return result


def keep_results(
    adata: ad.AnnData, key: str, values: np.ndarray, about: dict[str, Any] | None = None
) -> None:
    """Put results into ``adata.obsm[key]`` and ``adata.uns["tadvae"]``, where the object can hold them."""
    if adata.is_view and adata.isbacked:
        log.warning("%s: a view of a backed AnnData cannot keep the result; use the returned one.", WHERE)
        return
    adata.obsm[key] = values
    if about is not None:
        adata.uns["tadvae"] = about


def value_check(
    where: str, values: Literal["counts", "log1p"], sample: Callable[[], sparse.csr_matrix]
) -> ValueCheck:
    """What compares values with what the user says they are; the rule of ``tadvae convert``.

    Parameters
    ----------
    sample
        Returns some rows, see :func:`tadvae.store.values.sample_rows`.
    """
    if values not in ("counts", "log1p"):
        raise UserError(f"values={values!r}: expected 'counts' or 'log1p'.")
    advice = Advice(
        raw="give raw counts (layer=…)",
        counts="say values='counts'",
        log1p="say values='log1p'",
        rounded="round them first (adata.X = np.rint(adata.X))",
    )
    return ValueCheck(where, values, False, sample, lambda: advice)


def unique_names(names: list[str]) -> list[str]:
    """Names made unique as AnnData wants them; duplicates get a suffix."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        result.append(name if not seen[name] else f"{name}-{seen[name]}")
    return result
