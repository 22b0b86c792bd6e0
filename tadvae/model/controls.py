"""Control cells that are kept with a run, so that it can predict cells by itself."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.vocabulary import Vocabulary
from tadvae.store.tokens import one_array

KEPT_CONTROLS = 128
"""Control cells of each context kept with a run."""
_TYPES = {
    "context": pa.int32(),
    "total_counts": pa.float64(),
    "gene_ids": pa.list_(pa.int32()),
    "values": pa.list_(pa.float32()),
}


def pack_controls(controls: dict[int, Cells]) -> bytes:
    """Some control cells of each context, at most :data:`KEPT_CONTROLS`, as a Parquet file."""
    tables = []
    for row, cells in controls.items():
        part = cells[:KEPT_CONTROLS]
        offsets = pa.array(part.offsets.astype(np.int32))
        tables.append(
            pa.table(
                {
                    "context": np.full(len(part), row, np.int32),
                    "total_counts": part.total_counts,
                    "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(part.gene_ids.astype(np.int32))),
                    "values": pa.ListArray.from_arrays(offsets, pa.array(part.values)),
                }
            )
        )
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data


def unpack_controls(table: pa.Table) -> dict[int, Cells]:
    """Inverse of :func:`pack_controls`; a table that is damaged is a ValueError."""
    columns = {}
    for name, kind in _TYPES.items():
        if name not in table.column_names or table.schema.field(name).type != kind:
            raise ValueError(f"no column {name} of {kind}")
        columns[name] = one_array(table[name])
        if columns[name].null_count:
            raise ValueError(f"{name} has missing values")
    ids, values = columns["gene_ids"], columns["values"]
    sizes = ids.value_lengths().to_numpy()
    if not np.array_equal(sizes, values.value_lengths().to_numpy()):
        raise ValueError("cells with more genes than values, or fewer")
    cells = Cells(
        _flat(ids).astype(np.int64),
        _flat(values),
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        columns["total_counts"].to_numpy(),
    )
    if not (
        np.isfinite(cells.values).all()
        and (np.isfinite(cells.total_counts) & (cells.total_counts >= 0)).all()
    ):
        raise ValueError("values or total counts are not finite numbers")
    context = columns["context"].to_numpy()
    return {int(row): cells.take(np.flatnonzero(context == row)) for row in np.unique(context)}


def check_controls(controls: Mapping[int, Cells], vocabulary: Vocabulary, source: object) -> None:
    """Raise a UserError for control cells of other contexts or genes than those of a model.

    Parameters
    ----------
    source
        Where they are from, for the message.
    """
    for row, cells in controls.items():
        known = 0 <= row < len(vocabulary.contexts)
        genes = (
            vocabulary.datasets[vocabulary.contexts[row].dataset].genes if known else np.empty(0, np.int64)
        )
        if not known or not np.isin(cells.gene_ids, genes).all():
            raise UserError(
                f"{source}: the control cells of context {row} do not belong to this model; copy the run "
                "again, or give control cells with --controls."
            )


def _flat(lists: pa.ListArray) -> np.ndarray:
    result = lists.flatten()
    if result.null_count:
        raise ValueError("a cell has missing values")
    array: np.ndarray = result.to_numpy()
    return array


def profile_cell(profile: np.ndarray, genes: np.ndarray) -> Cells:
    """A mean profile as one cell."""
    at = np.flatnonzero(profile)
    return Cells(genes[at], profile[at].astype(np.float32), np.array([0, len(at)]), np.array([np.nan]))
