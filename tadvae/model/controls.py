"""Control cells that are kept with a run, so that it can predict cells by itself."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.cells.ragged import Cells

KEPT_CONTROLS = 128
"""Control cells of each context kept with a run."""


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


def unpack_controls(data: bytes) -> dict[int, Cells]:
    """Inverse of :func:`pack_controls`."""
    table = pq.read_table(io.BytesIO(data)).combine_chunks()
    context = table["context"].to_numpy()
    ids, values = table["gene_ids"].combine_chunks(), table["values"].combine_chunks()
    cells = Cells(
        ids.flatten().to_numpy().astype(np.int64),
        values.flatten().to_numpy(),
        np.concatenate([[0], np.cumsum(ids.value_lengths().to_numpy(), dtype=np.int64)]),
        table["total_counts"].to_numpy(),
    )
    return {int(row): cells.take(np.flatnonzero(context == row)) for row in np.unique(context)}


def profile_cell(profile: np.ndarray, genes: np.ndarray) -> Cells:
    """A mean profile as one cell."""
    at = np.flatnonzero(profile)
    return Cells(genes[at], profile[at].astype(np.float32), np.array([0, len(at)]), np.array([np.nan]))
