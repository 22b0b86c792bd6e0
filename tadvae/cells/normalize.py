"""Normalisation and highly variable genes, from streaming moments.

Source: the paper's section "Data" (CPM, log1p, the most variable genes); the choice of genes follows
scanpy's ``highly_variable_genes`` with ``flavor="seurat"``, which needs only each gene's mean and
variance, so one pass over any number of cells is enough.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from tadvae.base.config import Config
from tadvae.base.errors import UserError

SCALE = {"cpm": 1e6, "cp10k": 1e4, "tpm": 1e6}


class PreprocessConfig(Config):
    """How stored counts become the model's values, and which genes it sees."""

    normalize: Literal["cpm", "cp10k", "tpm"] = "cp10k"
    """Counts per million (the paper), per ten thousand, or per million by transcript length."""
    genes: str = "all"
    """Genes that may be tokens: ``all`` of the store, ``protein_coding``, or a file with one gene a line;
    perturbation targets are always kept."""
    n_top_genes: int | Literal["all"] = Field("all")
    """Highly variable genes of each dataset, chosen on training cells; perturbation targets are kept too."""


def normalize(
    counts: np.ndarray,
    gene_ids: np.ndarray,
    offsets: np.ndarray,
    library: np.ndarray,
    method: str,
    lengths: np.ndarray | None = None,
) -> np.ndarray:
    """Log-normalise ragged counts: ``log(1 + scale * count / total)``.

    Parameters
    ----------
    counts, gene_ids
        Of T tokens, shape (T,).
    offsets
        Where each of B cells starts, shape (B + 1,).
    library
        Total counts of each cell, shape (B,). A cell without counts stays empty.
    method
        ``cpm``, ``cp10k`` or ``tpm``; ``tpm`` needs ``lengths`` (bases, by vocabulary index) and takes the
        cell's total from its own length-scaled counts.

    Returns
    -------
    float32, shape (T,).
    """
    n_tokens = np.diff(offsets)
    values = counts.astype(np.float64)
    if method == "tpm":
        if lengths is None:
            raise UserError(
                "normalize: tpm needs gene lengths; name their column as 'genes: {length: …}' "
                "of the dataset in the spec and convert again, or use cp10k."
            )
        values = values / (lengths[gene_ids] / 1e3)
        library = np.bincount(
            np.repeat(np.arange(len(n_tokens)), n_tokens), weights=values, minlength=len(n_tokens)
        )
    per_cell = np.divide(SCALE[method], library, out=np.zeros(len(library)), where=library > 0)
    result: np.ndarray = np.log1p(values * np.repeat(per_cell, n_tokens)).astype(np.float32)
    return result
