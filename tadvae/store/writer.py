"""Writing cells: source rows → spilled chunks → Parquet shards.

The shuffle of a store needs every cell at a random place, and memory for only a few. So a conversion
goes twice over the data: :func:`spill_chunk` reads consecutive source rows and writes them sorted by
target shard; :func:`write_shard` collects one shard's rows from all chunks and writes them in order.
Each call is independent of the others and leaves its result whole or not at all, so calls can run
anywhere, and a conversion that was interrupted goes on with those still missing.
"""

import hashlib
import io
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from tadvae.filesystem import Location
from tadvae.preprocess import Moments
from tadvae.store.layout import DatasetLayout
from tadvae.store.manifest import ShardEntry
from tadvae.store.source import CellLabels, open_source
from tadvae.store.spec import DatasetSpec

LARGEST_UINT16 = 65_535


@dataclass(frozen=True)
class DatasetPlan:
    """All that a conversion task needs to know of one dataset."""

    index: int
    spec: DatasetSpec
    column_gene: np.ndarray  # (G,) int64: vocabulary index of each source column
    n_vocabulary: int
    labels: CellLabels
    layout: DatasetLayout
    n_source_rows: int

    def chunks(self, rows: int) -> list[tuple[int, int]]:
        """Ranges of source rows, ``rows`` at a time."""
        return [(a, min(a + rows, self.n_source_rows)) for a in range(0, self.n_source_rows, rows)]

    @property
    def shard_starts(self) -> np.ndarray:
        """First stored position of every shard, and the end of the last."""
        return np.concatenate([[0], np.cumsum(self.layout.shard_rows)]).astype(np.int64)


def spill_chunk(plan: DatasetPlan, start: int, stop: int, out: Location) -> None:
    """Write the source rows ``start:stop`` to ``out``.arrow, one record batch a shard, and their moments.

    The moments (``out``.npz) are written last: a chunk that has them is complete.
    """
    with open_source(plan.spec) as source:
        values = source.rows(start, stop)
    first, last = np.searchsorted(plan.labels.source_row, [start, stop])
    kept = slice(int(first), int(last))
    values = values[plan.labels.source_row[kept] - start]
    largest = float(values.data.max(initial=0.0))
    values = _to_vocabulary(values, plan)
    if plan.labels.total_counts is not None:
        total = plan.labels.total_counts[kept]
    else:
        total = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    moments = Moments.of(values, total, log1p=plan.spec.values == "log1p")

    position = plan.layout.position[kept]
    order = np.argsort(position)
    position = position[order]
    table = _cells(plan, np.arange(kept.start, kept.stop)[order], position, values[order], total[order])
    edges = np.searchsorted(position, plan.shard_starts)
    lz4 = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        out.sibling(".arrow").replacing() as place,
        place.filesystem.open_output_stream(place.path) as sink,
        pa.ipc.new_file(sink, table.schema, options=lz4) as writer,
    ):
        for a, b in itertools.pairwise(edges):  # one batch a shard, also where it gets no cell
            part = table.slice(a, b - a).combine_chunks().to_batches()
            writer.write_batch(part[0] if part else pa.RecordBatch.from_pylist([], table.schema))
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"largest": largest, **moments.arrays()}
    np.savez(buffer, **arrays)
    out.sibling(".npz").write_bytes(buffer.getvalue())


def read_spilled_moments(out: Location) -> tuple[Moments, float] | None:
    """Moments and largest value of a spilled chunk, or None where it is not complete."""
    place = out.sibling(".npz")
    if not place.exists():
        return None
    with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as arrays:
        return Moments.from_arrays(arrays), float(arrays["largest"])


def write_shard(
    plan: DatasetPlan, shard: int, chunks: list[Location], out: Location, *, narrow_counts: bool
) -> tuple[ShardEntry, np.ndarray]:
    """Collect one shard's rows from all chunks and write them as Parquet.

    Parameters
    ----------
    narrow_counts
        Store counts as uint16 (none is larger than 65,535) instead of float32.

    Returns
    -------
    The manifest's entry, and the number of tokens of every cell, shape (rows,).
    """
    parts = []
    for chunk in chunks:
        place = chunk.sibling(".arrow")
        with place.filesystem.open_input_file(place.path) as file:
            parts.append(pa.ipc.open_file(file).get_batch(shard))
    table = pa.Table.from_batches(parts).combine_chunks()
    table = table.take(np.argsort(table["position"].to_numpy(), kind="stable")).drop_columns(["position"])
    table = table.combine_chunks().cast(store_schema(plan.n_vocabulary, narrow_counts))
    buffer = pa.BufferOutputStream()
    bags = plan.layout.bags
    group_rows = bags[bags["shard"] == shard].groupby("row_group")["n_cells"].sum()
    with pq.ParquetWriter(
        buffer,
        table.schema,
        compression="zstd",
        use_dictionary=["counts.list.element", "context", "batch", "perturbation"],
        column_encoding={"gene_ids.list.element": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    ) as writer:
        at = 0
        for rows in group_rows.tolist():
            writer.write_table(table.slice(at, rows), row_group_size=rows)
            at += rows
    data = buffer.getvalue()
    out.write_bytes(data)
    n_tokens = table["n_tokens"].to_numpy()
    entry = ShardEntry(
        path=f"cells/dataset={plan.spec.name}/{out.name}",
        dataset=plan.index,
        rows=table.num_rows,
        tokens=int(n_tokens.sum()),
        size=data.size,
        sha256=hashlib.sha256(data).hexdigest(),
    )
    return entry, n_tokens


def store_schema(n_vocabulary: int, narrow_counts: bool) -> pa.Schema:
    """Columns of a shard; ids and counts are as narrow as they can be."""
    gene = pa.uint16() if n_vocabulary <= LARGEST_UINT16 + 1 else pa.int32()
    count = pa.uint16() if narrow_counts else pa.float32()
    return pa.schema(
        [
            ("cell_id", pa.string()),
            ("context", pa.string()),
            ("batch", pa.string()),
            ("perturbation", pa.string()),
            ("total_counts", pa.float64()),
            ("n_tokens", pa.int32()),
            ("gene_ids", pa.list_(pa.field("element", gene))),
            ("counts", pa.list_(pa.field("element", count))),
        ]
    )


def _to_vocabulary(values: sparse.csr_matrix, plan: DatasetPlan) -> sparse.csr_matrix:
    """The same values with vocabulary indices as columns, sorted in every row."""
    result = sparse.csr_matrix(
        (values.data, plan.column_gene[values.indices], values.indptr),
        shape=(values.shape[0], plan.n_vocabulary),
    )
    result.sort_indices()
    return result


def _cells(
    plan: DatasetPlan, kept: np.ndarray, position: np.ndarray, values: sparse.csr_matrix, total: np.ndarray
) -> pa.Table:
    labels = plan.labels
    offsets = pa.array(values.indptr.astype(np.int32))
    return pa.table(
        {
            "position": position,
            "cell_id": pa.array(labels.cell_id[kept], pa.string()),
            "context": pa.array(np.array(labels.contexts, object)[labels.context[kept]], pa.string()),
            "batch": pa.array(labels.batch[kept], pa.string()),
            "perturbation": pa.array(
                np.array([perturbation_label(t) for t in labels.perturbations], object)[
                    labels.perturbation[kept]
                ],
                pa.string(),
            ),
            "total_counts": total,
            "n_tokens": np.diff(values.indptr).astype(np.int32),
            "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(values.indices.astype(np.int32))),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(values.data.astype(np.float32))),
        }
    )


def perturbation_label(targets: tuple[str, ...]) -> str:
    """How a perturbation is written: ``control``, ``A`` or ``A+B``."""
    return "+".join(targets) or "control"
