"""Writing cells: source rows → spilled chunks → Parquet shards.

The cells of a store are shuffled over all shards, but only a part of them fits into memory. A conversion
therefore passes twice over the data: :func:`spill_chunk` reads consecutive source rows and writes them
sorted by target shard; :func:`write_shard` collects the rows of one shard from all chunks and writes them
in order. Each call is independent of the others and writes its result atomically, so calls can run on any
machine, and an interrupted conversion runs only those that are missing.
"""

import hashlib
import io
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from tadvae.base.filesystem import Location
from tadvae.cells.moments import Moments
from tadvae.store.cell_labels import CellLabels
from tadvae.store.covariates import amounts_text
from tadvae.store.layout import DatasetLayout
from tadvae.store.manifest import ShardEntry
from tadvae.store.source import open_source
from tadvae.store.spec import DatasetSpec
from tadvae.store.tokens import pack_tokens, token_fields

_LABELS = [
    ("cell_id", pa.string()),
    ("context", pa.string()),
    ("batch", pa.string()),
    ("perturbation", pa.string()),
    ("total_counts", pa.float64()),
    ("n_tokens", pa.int32()),
]


@dataclass(frozen=True)
class DatasetPlan:
    """What a conversion task needs to know about one dataset."""

    index: int
    spec: DatasetSpec
    columns: np.ndarray  # (G,) int64: positions in the source of the columns that are genes
    column_gene: np.ndarray  # (G,) int64: vocabulary index of each of these columns
    n_vocabulary: int
    labels: CellLabels
    layout: DatasetLayout
    n_source_rows: int
    units: dict[str, str] = field(default_factory=dict)
    """Units of dose and time."""

    def chunks(self, rows: int) -> list[tuple[int, int]]:
        """Ranges (start, stop) of source rows, ``rows`` in each; the last also has the implied controls."""
        spans = [(a, min(a + rows, self.n_source_rows)) for a in range(0, self.n_source_rows, rows)]
        return [*spans[:-1], (spans[-1][0], self.n_source_rows + self.labels.n_implied)]

    @property
    def shard_starts(self) -> np.ndarray:
        """First stored position of every shard, and the end of the last, int64."""
        return np.concatenate([[0], np.cumsum(self.layout.shard_rows)]).astype(np.int64)


def spill_chunk(plan: DatasetPlan, start: int, stop: int, out: Location) -> None:
    """Write the source rows ``start:stop`` to ``out``.arrow, one record batch per shard, and their moments.

    The moments (``out``.npz) are written last: a chunk that has them is complete.
    """
    with open_source(plan.spec) as source:
        source.keep(plan.columns)
        values = source.rows(start, min(stop, plan.n_source_rows))
    values.resize(stop - start, values.shape[1])  # rows that the file does not hold are zero
    first, last = np.searchsorted(plan.labels.source_row, [start, stop])
    kept = slice(int(first), int(last))
    if kept.stop - kept.start < stop - start:
        values = values[plan.labels.source_row[kept] - start]
    values = _to_vocabulary(values, plan)
    if plan.labels.total_counts is not None:
        total = plan.labels.total_counts[kept]
    elif plan.spec.values == "effects":  # a sum of effects is no library size
        total = np.zeros(values.shape[0])
    else:
        total = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    moments = Moments.of(values, total, plan.spec.values)

    position = plan.layout.position[kept]
    rows = _cells(plan, np.arange(kept.start, kept.stop), position, values, total)
    edges = np.searchsorted(rows["position"].to_numpy(), plan.shard_starts)
    lz4 = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        out.sibling(".arrow").replacing() as place,
        place.filesystem.open_output_stream(place.path) as sink,
        pa.ipc.new_file(sink, rows.schema, options=lz4) as writer,
    ):
        for a, b in itertools.pairwise(edges.tolist()):  # one batch per shard, also for shards without a cell
            writer.write_batch(rows.slice(a, b - a))
    buffer = io.BytesIO()
    arrays: dict[str, Any] = moments.arrays()
    np.savez(buffer, **arrays)
    out.sibling(".npz").write_bytes(buffer.getvalue())


def read_spilled_moments(out: Location) -> Moments | None:
    """Moments of a spilled chunk, or None where it is not complete."""
    place = out.sibling(".npz")
    if not place.exists():
        return None
    with np.load(io.BytesIO(place.read_bytes()), allow_pickle=False) as arrays:
        return Moments.from_arrays(arrays)


def write_shard(
    plan: DatasetPlan, shard: int, chunks: list[Location], out: Location
) -> tuple[ShardEntry, np.ndarray]:
    """Collect one shard's rows from all chunks and write them as Parquet.

    Returns
    -------
    The entry for the manifest, and the number of tokens of every cell, shape (rows,).
    """
    parts = []
    for chunk in chunks:
        place = chunk.sibling(".arrow")
        with place.filesystem.open_input_file(place.path) as file:
            parts.append(pa.ipc.open_file(file).get_batch(shard))
    schema = store_schema(plan)
    bags = plan.layout.bags
    group_rows = bags[bags["shard"] == shard].groupby("row_group")["n_cells"].sum().to_numpy()
    starts = plan.shard_starts[shard] + np.concatenate([[0], np.cumsum(group_rows)])
    n_tokens = []
    with (
        out.replacing() as place,
        place.filesystem.open_output_stream(place.path) as file,
        _Hashed(file) as hashed,
        pq.ParquetWriter(
            hashed,
            schema,
            compression="zstd",
            use_dictionary=["context", "batch", "perturbation"],
            write_statistics=["total_counts", "n_tokens"],
            write_page_checksum=True,
        ) as writer,
    ):
        for start, stop in itertools.pairwise(starts.tolist()):
            rows = _row_group(parts, start, stop)
            writer.write_table(rows, row_group_size=stop - start)
            n_tokens.append(rows["n_tokens"].to_numpy())
    each = np.concatenate(n_tokens)
    entry = ShardEntry(
        path=f"cells/dataset={plan.spec.name}/{out.name}",
        dataset=plan.index,
        rows=len(each),
        tokens=int(each.sum()),
        size=hashed.size,
        sha256=hashed.digest.hexdigest(),
    )
    return entry, each


class _Hashed(io.RawIOBase):
    """A file that computes the size and the checksum of what is written to it."""

    def __init__(self, file: pa.NativeFile) -> None:
        self._file, self.size, self.digest = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        """Whether the file can be written to: always."""
        return True

    def write(self, data: Any) -> int:
        """Write all of the bytes."""
        self._file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)


def _row_group(parts: list[pa.RecordBatch], start: int, stop: int) -> pa.Table:
    """Rows of the stored positions ``start:stop``, in order, from parts that are sorted by position."""
    inside = []
    for part in parts:
        first, last = np.searchsorted(part["position"].to_numpy(), [start, stop])
        inside.append(part.slice(first, last - first))
    rows = pa.Table.from_batches(inside).combine_chunks()
    order = np.argsort(rows["position"].to_numpy())
    return rows.drop_columns(["position"]).take(order)


def store_schema(plan: DatasetPlan) -> pa.Schema:
    """Arrow schema of a shard."""
    free = [(f"covariate_{name}", pa.string()) for name in plan.labels.covariates]
    return pa.schema([*_LABELS, *free, *token_fields(plan.spec.values)])


def _to_vocabulary(values: sparse.csr_matrix, plan: DatasetPlan) -> sparse.csr_matrix:
    """The same values with vocabulary indices as columns, sorted in every row."""
    result = sparse.csr_matrix(
        (values.data, plan.column_gene.astype(np.int32)[values.indices], values.indptr),
        shape=(values.shape[0], plan.n_vocabulary),
    )
    if (np.diff(plan.column_gene) < 0).any():
        result.sort_indices()
    return result


def _cells(
    plan: DatasetPlan, kept: np.ndarray, position: np.ndarray, values: sparse.csr_matrix, total: np.ndarray
) -> pa.RecordBatch:
    """Some kept cells, sorted by position, in the columns of a shard."""
    labels, order = plan.labels, np.argsort(position)
    row = kept[order]
    packed = pack_tokens(values.indices, values.data, values.indptr, plan.spec.values == "counts")
    written = np.array(
        [
            perturbation_label(targets) + amounts_text(amounts, plan.units)
            for targets, amounts in zip(labels.perturbations, labels.amounts, strict=True)
        ],
        object,
    )
    columns = [
        pa.array(labels.cell_id[row], pa.string()),
        pa.array(np.array(labels.contexts, object)[labels.context[row]], pa.string()),
        pa.array(labels.batch[row], pa.string()),
        pa.array(written[labels.perturbation[row]], pa.string()),
        pa.array(total[order]),
        pa.array(np.diff(values.indptr)[order].astype(np.int32)),
        *(pa.array(each[row], pa.string()) for each in labels.covariates.values()),
        *(each.take(pa.array(order)) for each in packed),
    ]
    return pa.record_batch(
        [pa.array(position[order]), *columns],
        schema=pa.schema([("position", pa.int64()), *store_schema(plan)]),
    )


def perturbation_label(targets: tuple[str, ...]) -> str:
    """The name of a perturbation: ``control``, ``A`` or ``A+B``."""
    return "+".join(targets) or "control"
