"""Cells that come from outside a store: a user's AnnData, and the control cells kept with a run."""

import logging
from dataclasses import dataclass
from typing import Literal

import anndata as ad
import numpy as np
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.cells.normalize import PreprocessConfig, normalize
from tadvae.cells.ragged import Cells
from tadvae.data.vocabulary import Vocabulary
from tadvae.genes.harmonise import harmonise
from tadvae.store.source import SYMBOL_COLUMNS

log = logging.getLogger("tadvae")


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
        to be.
    """
    names = adata.var_names.astype(str).tolist()
    column = next((name for name in SYMBOL_COLUMNS if name in adata.var.columns), None)
    symbols = None if column is None else adata.var[column].astype(str).tolist()
    found = harmonise(
        names, vocabulary.gene_reference, where="the given AnnData", symbols=symbols, max_unknown=1.0
    )
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
        raise UserError(
            f"the given AnnData: {len(genes)} of its {len(names)} genes are known to the model, and no "
            f"pathway has {vocabulary.min_measured} of them; give symbols or Ensembl ids in var_names."
        )
    matrix = adata.X if layer is None else adata.layers[layer]
    matrix = sparse.csr_matrix(matrix)
    data = matrix.data
    if not np.isfinite(data).all() or (data < 0).any():
        raise UserError(
            "the given AnnData: its values hold NaN, infinite or negative numbers; give raw counts (layer=…)."
        )
    whole = (data == np.rint(data)).all()
    if values == "counts" and not whole:
        raise UserError(
            "the given AnnData: its values are not whole numbers, so they look normalised; give raw "
            "counts (layer=…), or say values='log1p'."
        )
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


def unique_names(names: list[str]) -> list[str]:
    """Names made unique as AnnData wants them; duplicates get a suffix."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        result.append(name if not seen[name] else f"{name}-{seen[name]}")
    return result
