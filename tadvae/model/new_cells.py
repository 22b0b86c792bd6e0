"""Cells that come from outside a store: a user's AnnData, and the control cells kept with a run."""

import logging
from collections import Counter
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
from tadvae.data.vocabulary import Vocabulary
from tadvae.genes.features import FEATURE_TYPES, listed, other_features
from tadvae.genes.harmonise import harmonise, shared_prefix
from tadvae.store.source import SYMBOL_COLUMNS
from tadvae.store.values import Advice, ValueCheck, sample_rows

log = logging.getLogger("tadvae")

WHERE = "the given AnnData"
"""What messages call it."""


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
    if all(dataset.has_effects for dataset in vocabulary.datasets):
        raise UserError(
            f"{WHERE}: the model was trained on signatures alone and has never read a cell, so that it says "
            "nothing about cells; train with a dataset of cells or profiles too."
        )
    matrix = matrix_of(adata, layer)
    names = adata.var_names.astype(str).tolist()
    types = adata.var[FEATURE_TYPES] if FEATURE_TYPES in adata.var.columns else None
    others = other_features(names, types, vocabulary.gene_reference)
    kept = np.flatnonzero([kind is None for kind in others])
    if len(kept) < len(names):
        log.warning(
            "%s: columns that are not genes are left out (%s).", WHERE, listed(Counter(filter(None, others)))
        )
        names, matrix = [names[i] for i in kept], matrix[:, kept]
    var = adata.var.iloc[kept]
    column = next((name for name in SYMBOL_COLUMNS if name in var.columns), None)
    symbols = None if column is None else var[column].astype(str).tolist()
    found = harmonise(names, vocabulary.gene_reference, where=WHERE, symbols=symbols, max_unknown=1.0)
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
            f"{WHERE}: {len(genes)} of its {len(names)} genes are known to the model, and no pathway has "
            f"{vocabulary.min_measured} of them; {advice}."
        )
    _check_values(matrix, values, adata.obs_names, var.index)
    data = matrix.data
    library = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    if values == "counts":
        if preprocess.normalize == "tpm":
            raise UserError("the model was trained on TPM: give log1p TPM values and say values='log1p'.")
        expression = normalize(data, matrix.indices, matrix.indptr, library, preprocess.normalize)
    else:
        expression = data.astype(np.float32)
    kept = sparse.csr_matrix((expression, matrix.indices, matrix.indptr), shape=matrix.shape)[:, matched]
    kept = sparse.csr_matrix((kept.data, gene_of[matched][kept.indices], kept.indptr))
    kept.sort_indices()
    kept.eliminate_zeros()
    cells = Cells(
        kept.indices.astype(np.int64), kept.data.astype(np.float32), kept.indptr.astype(np.int64), library
    )
    log.info(
        "%d of %d given genes matched, of %d that the model knows; %d of %d pathways can be seen",
        len(genes),
        len(names),
        trained.sum(),
        available.sum(),
        len(available),
    )
    own_names = np.array(names, dtype=object)[matched][order].tolist()
    return NewCells(cells, genes, available, int(trained.sum()), own_names)


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
        result = sparse.csr_matrix(matrix)
        numbers = np.issubdtype(result.dtype, np.number) or result.dtype == np.bool_
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise UserError(
            f"{WHERE}: its values cannot be read ({clause(error)}); give a matrix of numbers."
        ) from None
    if not numbers or np.issubdtype(result.dtype, np.complexfloating):
        raise UserError(
            f"{WHERE}: its values are {result.dtype}, not real numbers; give raw counts (layer=…)."
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


def _check_values(
    matrix: sparse.csr_matrix, values: Literal["counts", "log1p"], cells: pd.Index, genes: pd.Index
) -> None:
    """Raise a UserError if the values are not what they are said to be; the rule of ``tadvae convert``."""
    if values not in ("counts", "log1p"):
        raise UserError(f"values={values!r}: expected 'counts' or 'log1p'.")
    rows = np.concatenate([np.arange(*span) for span in sample_rows(matrix.shape[0])])
    advice = Advice(
        raw="give raw counts (layer=…)",
        counts="say values='counts'",
        log1p="say values='log1p'",
        rounded="round them first (adata.X = np.rint(adata.X))",
    )
    check = ValueCheck(WHERE, values, False, lambda: matrix[rows], lambda: advice)
    note = check.check_sample(cells[rows], genes)
    check.check(matrix, cells, genes)
    if note is not None:
        log.warning("%s", note)


def unique_names(names: list[str]) -> list[str]:
    """Names made unique as AnnData wants them; duplicates get a suffix."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        result.append(name if not seen[name] else f"{name}-{seen[name]}")
    return result
