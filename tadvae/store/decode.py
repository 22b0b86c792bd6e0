"""Stored rows → normalised tokens of the genes that the model sees."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tadvae.batch import Cells
from tadvae.preprocess import normalize

COLUMNS = ("gene_ids", "counts", "total_counts")
"""Stored columns that decoding reads."""


@dataclass(frozen=True)
class DatasetView:
    """What a model sees of a dataset.

    Attributes
    ----------
    genes
        Sorted vocabulary indices of the chosen genes, shape (G,).
    method
        Normalisation (``cpm``, ``cp10k``, ``tpm``), or ``none`` where stored values are log1p already.
    lengths
        Transcript lengths by vocabulary index, shape (n_genes,), for ``tpm``.
    """

    genes: np.ndarray
    method: str
    lengths: np.ndarray | None = None


def decode(table: pa.Table, view: DatasetView) -> Cells:
    """Normalise stored cells (over all their genes) and keep the tokens of the view's genes.

    Parameters
    ----------
    table
        Rows with at least :data:`COLUMNS`, of one dataset.
    """
    ids, counts = flat_column(table, "gene_ids"), flat_column(table, "counts")
    gene_ids, offsets = ids
    total = table["total_counts"].to_numpy().astype(np.float64)
    if view.method == "none":
        values = counts[0].astype(np.float32)
    else:
        values = normalize(counts[0], gene_ids, offsets, total, view.method, view.lengths)
    kept = np.zeros(int(max(gene_ids.max(initial=-1), view.genes.max(initial=-1))) + 1, bool)
    kept[view.genes] = True
    keep = kept[gene_ids]
    below = np.concatenate([[0], np.cumsum(keep)])
    return Cells(gene_ids[keep], values[keep], below[offsets], total)


def flat_column(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of a list column, without a copy where it is one chunk."""
    chunks = table[column].combine_chunks()
    array = chunks.chunk(0) if isinstance(chunks, pa.ChunkedArray) else chunks
    offsets = array.offsets.to_numpy().astype(np.int64)
    values = array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]]
    return values.astype(np.int64) if column == "gene_ids" else values, offsets - offsets[0]
