"""Loops over tokens, compiled by numba; each replaces several numpy passes over the data."""

import math

import numpy as np

from tadvae.base.numba_jit import kernel

SMALL = 16
"""Counts below this, which are nearly all, get their logarithm from a table of the cell: one log1p per
cell and count in place of one per token."""

LARGEST = np.uint64(2**31 - 1)
"""Largest count that a store holds."""

# Unsigned like the indices of the loops; tadvae.nn.kernels.edges.span explains why
_0, _1, _7, _28, _LOW, _MORE = (np.uint64(n) for n in (0, 1, 7, 28, 127, 128))


@kernel
def _varint(data: np.ndarray, at: np.uint64, end: np.uint64) -> tuple[np.uint64, np.uint64]:
    """Return the number that starts at ``at`` and the start of the next; beyond the end if it is damaged."""
    value, shift = _0, _0
    while at < end and shift <= _28:  # five bytes hold 35 bits, enough for an int32
        byte = np.uint64(data[at])
        at += _1
        value |= (byte & _LOW) << shift
        if byte < _MORE:
            return value, at
        shift += _7
    return value, end + _1


@kernel
def _unpack_cell(
    data: np.ndarray,
    at: np.uint64,
    end: np.uint64,
    gaps: bool,
    limit: np.int64,
    values: np.ndarray,
    first: np.uint64,
    last: np.uint64,
) -> bool:
    """Write the numbers of one cell to ``values[first:last]``; whether its bytes hold them and no more.

    See :func:`unpack_varints`.
    """
    before = np.int64(0)
    for i in range(first, last):
        # Numbers of one byte, which are nearly all, are read here: the calls cost a third of the time
        number = np.uint64(data[at]) if at < end else _MORE
        if number < _MORE:
            at += _1
        else:
            number, at = _varint(data, at, end)
            if at > end:
                return False
        value = np.int64(number) + before
        if value >= limit:
            return False
        if gaps:
            before = value
        values[i] = value
    return bool(at == end)


@kernel
def log_normalize(
    gaps: np.ndarray,
    gap_starts: np.ndarray,
    counts: np.ndarray,
    count_starts: np.ndarray,
    offsets: np.ndarray,
    per_cell: np.ndarray,
    kept: np.ndarray,
    n_genes: np.uint64,
    left_ids: np.ndarray,
    left_values: np.ndarray,
    left_offsets: np.ndarray,
) -> np.int64:
    """``log1p(count * per_cell)`` of the tokens whose gene is kept.

    Reads the bytes of a store directly: one pass takes less than half the time of unpacking them first.

    Parameters
    ----------
    gaps, gap_starts, counts, count_starts
        Output of :func:`pack_varints` for gene ids and for counts.
    offsets
        Position of the first token of each of B cells, and T at the end, shape (B + 1,).
    per_cell
        Factor of each cell's counts, float64, shape (B,).
    kept
        Whether each gene is kept, bool, by vocabulary index; genes beyond its end are dropped.
    n_genes
        Size of the vocabulary.
    left_ids, left_values, left_offsets
        Written: gene ids and values of the kept tokens (int32, float32, room for T), and the position of
        each cell's first token.

    Returns
    -------
    Number of kept tokens; −1 if the bytes are damaged, or name a gene beyond the vocabulary.
    """
    table = np.empty(SMALL, np.float32)
    every, n_kept, n = kept.all(), np.uint64(len(kept)), _0
    left_offsets[0] = 0
    for cell in range(len(offsets) - 1):
        factor = per_cell[cell]
        for small in range(SMALL):
            table[small] = math.log1p(small * factor)
        end = n + np.uint64(offsets[cell + 1] - offsets[cell])
        a, a_end = np.uint64(gap_starts[cell]), np.uint64(gap_starts[cell + 1])
        if not _unpack_cell(gaps, a, a_end, True, np.int64(n_genes), left_ids, n, end):
            return np.int64(-1)
        b, b_end = np.uint64(count_starts[cell]), np.uint64(count_starts[cell + 1])
        for i in range(n, end):
            count = np.uint64(counts[b]) if b < b_end else _MORE
            if count < np.uint64(SMALL):
                b += _1
                left_values[i] = table[count]
            else:
                count, b = _varint(counts, b, b_end)
                if b > b_end or count > LARGEST:
                    return np.int64(-1)
                left_values[i] = math.log1p(np.float64(count) * factor)
        if b != b_end:
            return np.int64(-1)
        # Genes are sorted, so the last one is the largest
        if every and (end == n or np.uint64(left_ids[end - _1]) < n_kept):
            n = end
        else:
            # Written before it is known whether the gene is kept: the next token overwrites a dropped one,
            # so the loop needs no branch that the CPU would often predict wrongly.
            for i in range(n, end):
                gene = np.uint64(left_ids[i])
                left_ids[n], left_values[n] = left_ids[i], left_values[i]
                if gene < n_kept:
                    n += np.uint64(kept[gene])
        left_offsets[cell + 1] = n
    return np.int64(n)


@kernel
def pack_varints(
    values: np.ndarray, offsets: np.ndarray, gaps: bool, data: np.ndarray, starts: np.ndarray
) -> None:
    """Encode the numbers of n cells as LEB128: seven bits per byte, lowest first; bit eight: more follow.

    Parameters
    ----------
    values
        Whole numbers ≥ 0 of any type, shape (T,); with ``gaps`` sorted within each cell.
    offsets
        Position of each cell's first number, shape (n + 1,).
    gaps
        Write the difference of each number to the one before; for sorted gene ids it mostly fits one byte.
    data, starts
        Written: the bytes, and the position of each cell's first byte, shape (n + 1,).
    """
    at = np.uint64(0)
    starts[0] = 0
    for cell in range(len(offsets) - 1):
        before = np.int64(0)
        for i in range(offsets[cell], offsets[cell + 1]):
            value = np.int64(values[i])
            left = value - before
            if gaps:
                before = value
            while left >= 128:
                data[at] = (left & 127) | 128
                left >>= 7
                at += _1
            data[at] = left
            at += _1
        starts[cell + 1] = at


@kernel
def unpack_varints(
    data: np.ndarray, starts: np.ndarray, offsets: np.ndarray, gaps: bool, limit: np.int64, values: np.ndarray
) -> int:
    """Inverse of :func:`pack_varints`, to int32; return the first damaged cell, −1 if none is damaged.

    A cell with a number of ``limit`` or more counts as damaged.
    """
    for cell in range(len(offsets) - 1):
        at, end = np.uint64(starts[cell]), np.uint64(starts[cell + 1])
        first, last = np.uint64(offsets[cell]), np.uint64(offsets[cell + 1])
        if not _unpack_cell(data, at, end, gaps, limit, values, first, last):
            return cell
    return -1
