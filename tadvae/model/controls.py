"""Control cells that are kept with a run, so that it can predict cells by itself."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.filesystem import Location
from tadvae.cells.ragged import Cells

CONTROLS = "controls.parquet"

KEPT_CONTROLS = 128
"""Control cells of each context kept with a run."""


def write_controls(run: Location, controls: dict[int, Cells]) -> None:
    """Keep some control cells of each context with a run, so that it can predict cells by itself."""
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
    (run / CONTROLS).write_bytes(buffer.getvalue())


def read_controls(run: Location) -> dict[int, Cells]:
    """Inverse of :func:`write_controls`; no file, no cells."""
    if not (run / CONTROLS).exists():
        return {}
    table = pq.read_table(io.BytesIO((run / CONTROLS).read_bytes())).combine_chunks()
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
