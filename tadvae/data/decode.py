"""Decode stored cells to normalised values of the genes that the model sees."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tadvae.base.errors import UserError
from tadvae.cells.normalize import SCALE, normalize
from tadvae.cells.ragged import Cells
from tadvae.store import tokens as varint

COLUMNS = (*varint.COLUMNS, "total_counts")
"""Columns of a shard that decoding reads."""


@dataclass(frozen=True)
class DatasetView:
    """Genes of a dataset that a model sees, and their normalisation.

    Attributes
    ----------
    genes
        Sorted vocabulary indices of the chosen genes, shape (G,).
    method
        Normalisation: ``cpm``, ``cp10k``, ``tpm``, or ``none`` if the stored values are log1p values or
        effects.
    lengths
        Transcript lengths in bases by vocabulary index, shape (n_genes,); only for ``tpm``.
    """

    genes: np.ndarray
    method: str
    lengths: np.ndarray | None = None


def decode(table: pa.Table, view: DatasetView, n_genes: int) -> Cells:
    """Normalise stored cells (over all their genes) and keep the tokens of the view's genes.

    Parameters
    ----------
    table
        Rows with at least :data:`COLUMNS`, of one dataset.
    n_genes
        Size of the store's vocabulary.

    Raises
    ------
    UserError
        If the rows are damaged.
    """
    if table.schema.field("total_counts").type != pa.float64() or table["total_counts"].null_count:
        raise UserError("column total_counts does not hold numbers; convert the store again.")
    total = table["total_counts"].to_numpy().astype(np.float64)
    if not (np.isfinite(total) & (total >= 0)).all():
        raise UserError("column total_counts is negative or not finite; convert the store again.")
    if view.method in ("cpm", "cp10k") and varint.holds_whole(table):
        per_cell = np.divide(SCALE[view.method], total, out=np.zeros(len(total)), where=total > 0)
        kept = np.zeros(int(view.genes.max(initial=-1)) + 1, bool)
        kept[view.genes] = True
        return Cells(*varint.unpack_normalized(table, per_cell, kept, n_genes), total)
    gene_ids, counts, offsets = varint.unpack_tokens(table, n_genes)
    if view.method == "none":
        values = counts.astype(np.float32)
    else:
        values = normalize(counts, gene_ids, offsets, total, view.method, view.lengths)
    keep = np.isin(gene_ids, view.genes)
    below = np.concatenate([[0], np.cumsum(keep)])
    return Cells(gene_ids[keep].astype(np.int32), values[keep], below[offsets], total)
