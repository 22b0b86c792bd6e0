"""Normalisation of counts, and the settings of preprocessing.

Source: the paper's section "Data" (CPM, log1p, the most variable genes). The variable genes themselves are
chosen in :mod:`tadvae.cells.variable_genes`.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from tadvae.base.config import Config, IsFile
from tadvae.base.errors import UserError

ALL, PROTEIN_CODING = "all", "protein_coding"
"""Genes that need no list."""
SCALE = {"cpm": 1e6, "cp10k": 1e4, "tpm": 1e6}
"""Total to which each method scales a cell."""


class PreprocessConfig(Config):
    """How stored counts are normalised, and which genes the model sees."""

    normalize: Literal["cpm", "cp10k", "tpm"] = "cp10k"
    """How the counts of a cell are scaled before log1p.

    - ``cp10k``: counts per ten thousand; use it for droplet-based single-cell screens.
    - ``cpm``: counts per million, as in the paper; use it to reproduce it.
    - ``tpm``: transcripts per million; use it for full-length protocols and bulk profiles. It needs gene
      lengths in the store (``genes: {length: …}`` in the spec).
    """
    genes: Annotated[str, IsFile(words=(ALL, PROTEIN_CODING))] = ALL
    """Genes that the model may use as input; perturbation targets are always kept.

    - ``all``: all genes of the store; the usual choice.
    - ``protein_coding``: only protein-coding genes; use it for a smaller model. It needs the human reference.
    - a file: one gene per line; use it for a gene list of your own.
    """
    n_top_genes: int | Literal["all"] = Field("all")
    """Highly variable genes to keep per dataset, chosen on training cells; targets are always kept.

    - ``all``: no selection; use it with the packaged pathways.
    - a number: this number of genes, ranked as by scanpy's ``flavor="seurat"``; use it to save memory and
      time.
    """


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
        Count and vocabulary index of each of T tokens, shape (T,).
    offsets
        Position of the first token of each of B cells, shape (B + 1,).
    library
        Total counts of each cell, shape (B,). A cell without counts stays empty.
    method
        ``cpm``, ``cp10k`` or ``tpm``; ``tpm`` needs ``lengths`` (bases, by vocabulary index) and takes the
        cell's total from its own length-scaled counts.

    Returns
    -------
    Log-normalised values, float32, shape (T,).
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
        # TPM divides by the sum of the length-scaled counts, so the stored library size does not apply.
        library = np.bincount(
            np.repeat(np.arange(len(n_tokens)), n_tokens), weights=values, minlength=len(n_tokens)
        )
    per_cell = np.divide(SCALE[method], library, out=np.zeros(len(library)), where=library > 0)
    result: np.ndarray = np.log1p(values * np.repeat(per_cell, n_tokens)).astype(np.float32)
    return result
