"""Encode the expressed genes of cells as bytes, and decode them.

A shard stores them in two binary columns, with one value per cell:

- ``gene_ids``: gaps between the sorted vocabulary indices (the first: the index itself) as LEB128 varints;
- ``counts``: the counts as LEB128 varints, or, where the column's metadata says ``float32``, as such
  numbers, little-endian; only ``signed float32`` may be negative.

Parquet's own list columns take five times as long to read (docs/decisions.md): they store a level for each
token, and the reader builds the lists from these levels.
"""

import numpy as np
import pyarrow as pa

from tadvae.base.errors import UserError
from tadvae.store.kernels import log_normalize, pack_varints, unpack_varints

COLUMNS = ("gene_ids", "counts", "n_tokens")
ENCODING = b"encoding"
VARINT, FLOAT32, SIGNED = b"varint", b"float32", b"signed float32"
ENCODINGS = {"counts": VARINT, "log1p": FLOAT32, "effects": SIGNED}
"""How the values of a dataset are encoded, by what they are."""
LARGEST, LARGEST_BYTES = 2**31 - 1, 5
"""Largest number that can be stored, and the bytes that it needs."""


def token_fields(values: str) -> list[pa.Field]:
    """Fields of a shard's schema, by what the values are; counts are whole numbers up to :data:`LARGEST`."""
    return [
        pa.field("gene_ids", pa.binary(), nullable=False, metadata={ENCODING: b"varint gaps"}),
        pa.field("counts", pa.binary(), nullable=False, metadata={ENCODING: ENCODINGS[values]}),
    ]


def pack_tokens(
    gene_ids: np.ndarray, counts: np.ndarray, offsets: np.ndarray, whole: bool
) -> list[pa.BinaryArray]:
    """The columns ``gene_ids`` and ``counts`` of n cells.

    Parameters
    ----------
    gene_ids, counts : (T,)
        Gene ids, sorted within each cell, and counts of T tokens.
    offsets : (n + 1,)
        Position of each cell's first token.
    """
    result = [_packed(gene_ids, offsets, gaps=True)]
    if whole:
        return [*result, _packed(counts, offsets, gaps=False)]
    return [*result, _binary(counts.astype("<f4").view(np.uint8), 4 * offsets)]


def unpack_tokens(table: pa.Table, n_genes: int = LARGEST + 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of :func:`pack_tokens`.

    Parameters
    ----------
    table
        With at least :data:`COLUMNS`, as read from a shard.
    n_genes
        Size of the vocabulary.

    Returns
    -------
    ids (T,) int32; counts (T,), int32 or float32; offsets (n + 1,) int64.

    Raises
    ------
    UserError
        If the columns have other types, the bytes do not hold as many tokens as ``n_tokens`` says, a gene is
        beyond the vocabulary, or a value is not finite, or negative without being an effect.
    """
    gaps, counts = _bytes(table, "gene_ids"), _bytes(table, "counts")
    offsets = _offsets(table, gaps[1])
    ids = _unpacked(*gaps, offsets, n_genes, "gene_ids")
    if holds_whole(table):
        return ids, _unpacked(*counts, offsets, LARGEST + 1, "counts"), offsets
    data, starts = counts
    if not np.array_equal(starts - starts[0], 4 * offsets):
        raise _damaged("counts")
    values = data[starts[0] : starts[-1]].view("<f4").astype(np.float32, copy=False)
    least = -np.inf if encoding(table) == SIGNED else 0.0
    if len(values) and not (values.min() >= least and np.isfinite([values.min(), values.max()]).all()):
        raise _damaged("counts")  # NaN compares as False
    return ids, values, offsets


def unpack_normalized(
    table: pa.Table, per_cell: np.ndarray, kept: np.ndarray, n_genes: int = LARGEST + 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``log1p(count * per_cell)`` of the tokens whose gene is kept, of counts stored whole.

    Parameters
    ----------
    per_cell : (n,)
        Factor of each cell.
    kept
        Whether each gene is kept, bool, by vocabulary index; genes beyond its end are dropped.
    n_genes
        Size of the vocabulary.

    Returns
    -------
    ids int32, values float32, offsets (n + 1,) int64.

    Raises
    ------
    UserError
        As :func:`unpack_tokens`.
    """
    gaps, counts = _bytes(table, "gene_ids"), _bytes(table, "counts")
    offsets = _offsets(table, gaps[1])
    # Allocated by numpy, which asks for huge pages; otherwise page faults take half of the kernel's time.
    ids, values = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
    starts = np.empty(len(offsets), np.int64)
    n = log_normalize(*gaps, *counts, offsets, per_cell, kept, np.uint64(n_genes), ids, values, starts)
    if n < 0:
        raise _damaged("gene_ids or counts")
    return ids[:n], values[:n], starts


def holds_whole(table: pa.Table) -> bool:
    """Whether the counts are whole numbers, which are stored as varints."""
    return encoding(table) == VARINT


def encoding(table: pa.Table) -> bytes:
    """How the column of counts is encoded, one of :data:`ENCODINGS`."""
    found: bytes = (table.schema.field("counts").metadata or {}).get(ENCODING, b"")
    if found not in ENCODINGS.values():
        raise _damaged("counts")
    return found


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column as one array, without a copy if they are one chunk."""
    chunks = column.combine_chunks()
    return chunks.chunk(0) if isinstance(chunks, pa.ChunkedArray) else chunks


def _offsets(table: pa.Table, starts: np.ndarray) -> np.ndarray:
    """Position of each cell's first token; ``starts``: that of the first byte of its gene ids."""
    if table.schema.field("n_tokens").type != pa.int32() or table["n_tokens"].null_count:
        raise _damaged("n_tokens")
    n_tokens = table["n_tokens"].to_numpy()
    # a gene id takes 1 to 5 bytes, so what is allocated for tokens is in proportion to the bytes
    size = np.diff(starts)
    if not ((n_tokens <= size) & (size <= LARGEST_BYTES * n_tokens.astype(np.int64))).all():
        raise _damaged("gene_ids")
    offsets = np.zeros(table.num_rows + 1, np.int64)
    np.cumsum(n_tokens, out=offsets[1:])
    return offsets


def _packed(values: np.ndarray, offsets: np.ndarray, gaps: bool) -> pa.BinaryArray:
    data = np.empty(LARGEST_BYTES * len(values), np.uint8)
    starts = np.empty(len(offsets), np.int64)
    pack_varints(values, offsets, gaps, data, starts)
    return _binary(data[: starts[-1]], starts)


def _unpacked(
    data: np.ndarray, starts: np.ndarray, offsets: np.ndarray, limit: int, column: str
) -> np.ndarray:
    values = np.empty(offsets[-1], np.int32)
    if unpack_varints(data, starts, offsets, column == "gene_ids", limit, values) >= 0:
        raise _damaged(column)
    return values


def _binary(data: np.ndarray, starts: np.ndarray) -> pa.BinaryArray:
    buffers = [None, pa.py_buffer(starts.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(data))]
    return pa.Array.from_buffers(pa.binary(), len(starts) - 1, buffers)


def _bytes(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of a column, and the position of each value's first byte, (n + 1,) int32; without a copy."""
    array = one_array(table[column])
    if array.type != pa.binary() or array.null_count:
        raise _damaged(column)
    _, starts, data = array.buffers()
    if starts is None:
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int32)
    window = slice(array.offset, array.offset + len(array) + 1)
    found = np.frombuffer(starts, np.int32)[window]
    return np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8), found


def _damaged(column: str) -> UserError:
    return UserError(f"column {column} does not hold what n_tokens says; convert the store again.")
