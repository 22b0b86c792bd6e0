"""Ragged cells against plain lists of dictionaries."""

from itertools import groupby

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.cells.ragged import Cells, runs
from tadvae.data.batches import Bag, Batch
from tadvae.nn.packed import PackedCells

SEEDED = settings(max_examples=80, deadline=None, derandomize=True)
N_GENES = 9

cell = st.dictionaries(st.integers(0, N_GENES - 1), st.floats(0.125, 8, width=16), max_size=6)
many = st.lists(cell, max_size=7)


def cells_of(rows, narrow=False):
    """Cells of {gene: value} rows; the library size of a cell is its number in the list."""
    tokens = [token for row in rows for token in sorted(row.items())]
    return Cells(
        np.array([gene for gene, _ in tokens], np.uint16 if narrow else np.int64),
        np.array([value for _, value in tokens], np.float32),
        np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]),
        np.arange(len(rows), dtype=np.float64),
    )


def rows_of(cells):
    """Back to rows, by the offsets alone."""
    assert cells.offsets[0] == 0
    assert cells.offsets[-1] == len(cells.gene_ids) == len(cells.values)
    assert len(cells.total_counts) == len(cells)
    assert cells.values.dtype == np.float32
    rows = []
    for start, stop in zip(cells.offsets[:-1], cells.offsets[1:], strict=True):
        genes = cells.gene_ids[start:stop].tolist()
        assert genes == sorted(set(genes))
        rows.append(dict(zip(genes, cells.values[start:stop].tolist(), strict=True)))
    return rows


@SEEDED
@given(many)
def test_round_trip(rows):
    assert rows_of(cells_of(rows)) == rows
    assert len(cells_of(rows)) == len(rows)


@SEEDED
@given(many, st.data())
def test_take(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10) if rows else st.just([]))
    taken = cells_of(rows).take(np.array(chosen, np.int64))
    assert rows_of(taken) == [rows[i] for i in chosen]
    assert taken.total_counts.tolist() == chosen


@SEEDED
@given(many, st.integers(-9, 9) | st.none(), st.integers(-9, 9) | st.none())
def test_slice(rows, start, stop):
    part = cells_of(rows)[start:stop]
    assert rows_of(part) == rows[start:stop]
    assert part.total_counts.tolist() == list(range(len(rows)))[start:stop]
    again = part.take(np.arange(len(part)))
    assert rows_of(again) == rows[start:stop]


def test_a_slice_with_gaps_is_refused():
    with pytest.raises(ValueError, match="use take"):
        cells_of([{0: 1.0}, {1: 1.0}])[::2]


@SEEDED
@given(st.lists(many, max_size=4))
def test_concat(parts):
    joined = Cells.concat([cells_of(rows) for rows in parts])
    assert rows_of(joined) == [row for rows in parts for row in rows]
    assert joined.total_counts.tolist() == [i for rows in parts for i in range(len(rows))]


@SEEDED
@given(many, st.sets(st.integers(0, N_GENES + 3)), st.booleans())
def test_dense(rows, others, narrow):
    genes = sorted({gene for row in rows for gene in row} | others)
    cells, panel = cells_of(rows, narrow), np.array(genes, np.int64)
    dense = cells.dense(panel)
    assert dense.dtype == np.float32
    assert dense.shape == (len(rows), len(genes))
    assert dense.tolist() == [[row.get(gene, 0.0) for gene in genes] for row in rows]
    assert cells.to_csr(panel).toarray().tolist() == dense.tolist()


@SEEDED
@given(many, st.booleans())
def test_packed(rows, narrow):
    packed = PackedCells.of(cells_of(rows, narrow))
    assert packed.n_cells == len(rows)
    assert (packed.gene_ids.dtype, packed.values.dtype, packed.cell.dtype) == (
        torch.int64,
        torch.float32,
        torch.int64,
    )
    found = [{} for _ in rows]
    for gene, value, i in zip(
        packed.gene_ids.tolist(), packed.values.tolist(), packed.cell.tolist(), strict=True
    ):
        found[i][gene] = value
    assert found == rows


def test_packed_cells_are_a_copy():
    cells = cells_of([{1: 2.0}])
    packed = PackedCells.of(cells)
    packed.values.zero_()
    assert cells.values.tolist() == [2.0]


@SEEDED
@given(st.lists(st.integers(0, 3), max_size=12))
def test_runs(ids):
    expected, at = [], 0
    for _, run in groupby(ids):
        n = len(list(run))
        expected.append((at, at + n))
        at += n
    assert runs(np.array(ids, np.int64)) == expected


def test_batch_counts():
    three, two = cells_of([{0: 1.0}, {}, {1: 1.0, 2: 1.0}]), cells_of([{0: 1.0}, {3: 1.0, 4: 1.0}])
    batch = Batch([Bag(0, 0, 0, 1, three, two), Bag(1, 0, 0, 0, two, None)])
    assert batch.n_cells == 5
    assert batch.n_tokens == 6  # the controls are those of the second bag, and are encoded once
    assert Batch([]).n_cells == Batch([]).n_tokens == 0


@pytest.mark.parametrize(
    ("ids", "values", "offsets", "totals"),
    [
        (3, 2, [0, 3], 1),
        (3, 3, [0, 4], 1),
        (3, 3, [1, 3], 1),
        (3, 3, [0, 2], 1),
        (3, 3, [0, 5, 3], 2),
        (3, 3, [0, -1, 3], 2),
        (3, 3, [0, 3], 2),
    ],
)
def test_arrays_that_do_not_fit_together_are_no_cells(ids, values, offsets, totals):
    with pytest.raises(ValueError, match="do not fit together"):
        Cells(np.arange(ids), np.ones(values, np.float32), np.array(offsets), np.ones(totals))


@pytest.mark.parametrize("rows", [[2], [-1], [0, 10**9]])
def test_cells_that_are_not_there_are_not_taken(rows):
    cells = Cells(np.arange(3), np.ones(3, np.float32), np.array([0, 1, 3]), np.ones(2))
    with pytest.raises(IndexError):
        cells.take(np.array(rows))
