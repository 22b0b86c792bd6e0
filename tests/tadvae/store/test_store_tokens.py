"""Tokens as bytes: every shape comes back, the bytes are LEB128, and damaged bytes are refused."""

import itertools
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leb128 import leb128

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.store.tokens import LARGEST, pack_tokens, token_fields, unpack_normalized, unpack_tokens

SEEDED = settings(max_examples=60, deadline=None, derandomize=True)


@st.composite
def cells(draw, largest=LARGEST):
    """Gene ids and counts of some cells, some of them empty."""
    ids, counts = [], []
    for _ in range(draw(st.integers(0, 6))):
        genes = draw(st.lists(st.integers(0, LARGEST), unique=True, max_size=20))
        ids.append(np.array(sorted(genes), np.int64))
        counts.append(
            np.array(draw(st.lists(st.integers(0, largest), min_size=len(genes), max_size=len(genes))))
        )
    offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids], dtype=np.int64)]).astype(np.int64)
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *ids]), np.concatenate([empty, *counts]).astype(np.int64), offsets


def table_of(ids, counts, offsets, whole, said=None):
    schema = pa.schema([("n_tokens", pa.int32()), *token_fields(said or ("counts" if whole else "log1p"))])
    packed = pack_tokens(ids, counts, offsets, whole)
    return pa.table([pa.array(np.diff(offsets), pa.int32()), *packed], schema=schema)


@SEEDED
@given(cells())
def test_round_trip_and_bytes(drawn):
    ids, counts, offsets = drawn
    table = table_of(ids, counts, offsets, whole=True)
    for found, expected in zip(unpack_tokens(table), drawn, strict=True):
        np.testing.assert_array_equal(found, expected)
    columns = (table[name].to_pylist() for name in ("gene_ids", "counts"))
    for (a, b), genes, values in zip(itertools.pairwise(offsets), *columns, strict=True):
        np.testing.assert_array_equal(np.cumsum(leb128(genes)), ids[a:b])
        assert leb128(values) == counts[a:b].tolist()


@SEEDED
@given(cells(largest=2**24), st.data())
def test_floats_and_slices(drawn, data):
    ids, counts, offsets = drawn
    values = (counts + 0.5).astype(np.float32)
    table = table_of(ids, values, offsets, whole=False)
    first = data.draw(st.integers(0, table.num_rows))
    stop = data.draw(st.integers(first, table.num_rows))
    for part in (
        table.slice(first, stop - first),
        pa.concat_tables([table.slice(0, first), table.slice(first)]),
    ):
        a, b = (first, stop) if part.num_rows != table.num_rows else (0, table.num_rows)
        found = unpack_tokens(part)
        np.testing.assert_array_equal(found[0], ids[offsets[a] : offsets[b]])
        np.testing.assert_array_equal(found[1], values[offsets[a] : offsets[b]])
        np.testing.assert_array_equal(found[2], offsets[a : b + 1] - offsets[a])


@SEEDED
@given(cells(), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_normalised_in_one_pass(drawn, n_genes, seed):
    ids, counts, offsets = drawn
    ids %= 50  # no longer sorted, so sort again; repeats do no harm
    for a, b in itertools.pairwise(offsets):
        ids[a:b].sort()
    rng = np.random.default_rng(seed)
    per_cell, kept = rng.uniform(0, 10, len(offsets) - 1), rng.random(n_genes) < 0.5
    table = table_of(ids, counts, offsets, whole=True)
    found_ids, values, starts = unpack_normalized(table, per_cell, kept)
    keep = np.isin(ids, np.flatnonzero(kept))
    expected = np.log1p(counts * np.repeat(per_cell, np.diff(offsets)))
    np.testing.assert_array_equal(found_ids, ids[keep])
    np.testing.assert_allclose(values, expected[keep], rtol=1e-7)
    np.testing.assert_array_equal(starts, np.concatenate([[0], np.cumsum(keep)])[offsets])


def test_a_count_takes_a_byte():
    table = table_of(np.arange(0, 1000, 10), np.full(100, 127), np.array([0, 100]), whole=True)
    assert [len(table[name][0].as_py()) for name in ("gene_ids", "counts")] == [100, 100]


@pytest.mark.parametrize(
    ("column", "data"),
    [
        ("gene_ids", b"\x01\x02"),  # one short
        ("gene_ids", b"\x01\x02\x03\x04"),  # one more
        ("gene_ids", b"\x01\x02\x83"),  # ends within a number
        ("counts", b"\x81\x82\x83\x84\x85\x86\x01\x01\x01"),  # a number that no 32 bits hold
    ],
)
def test_damaged_bytes_are_refused(column, data):
    table = table_of(np.array([1, 5, 9]), np.array([1, 1, 1]), np.array([0, 3]), whole=True)
    at = table.schema.get_field_index(column)
    spoilt = table.set_column(at, table.schema.field(column), pa.array([data], pa.binary()))
    with pytest.raises(UserError, match=f"column {column} does not hold"):
        unpack_tokens(spoilt)
    with pytest.raises(UserError, match=f"column.*{column}.* does not hold"):
        unpack_normalized(spoilt, np.ones(1), np.ones(10, bool))


def test_damaged_floats_are_refused():
    table = table_of(np.array([1, 5, 9]), np.array([1.0, 2.0, 3.0]), np.array([0, 3]), whole=False)
    spoilt = table.set_column(2, table.schema.field("counts"), pa.array([b"12345678"], pa.binary()))
    with pytest.raises(UserError, match="column counts does not hold"):
        unpack_tokens(spoilt)


INT32 = st.integers(-(2**31), 2**31 - 1)


@SEEDED
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**31), 2**31 - 1) | st.integers(0, 6),
            st.binary(max_size=12),
            st.binary(max_size=24),
        ),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
    st.sampled_from(["log1p", "effects"]),
)
def test_any_bytes_are_decoded_or_refused(rows, whole, said):
    """Whatever the columns hold, what comes out has the sizes that it says, and nothing beyond is read."""
    schema = pa.schema([("n_tokens", pa.int32()), *token_fields("counts" if whole else said)])
    names = [field.name for field in schema]
    table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=schema)
    decoders = [lambda: unpack_tokens(table, 1000)]
    if whole:
        decoders.append(lambda: unpack_normalized(table, np.ones(len(rows)), np.ones(1000, bool), 1000))
    for decode in decoders:
        with suppress(UserError):
            ids, values, offsets = decode()
            Cells(ids, values, offsets, np.ones(len(rows)))
            assert not len(ids) or 0 <= ids.min() <= ids.max() < 1000
            assert np.isfinite(values).all()


@SEEDED
@given(
    st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda value: value != 0),
        max_size=30,
    )
)
def test_signed_values_come_back_bit_for_bit(values):
    """Also the smallest and largest numbers of four bytes; only effects may be negative."""
    drawn = np.array(values, np.float32)
    ids, offsets = np.arange(len(drawn)), np.array([0, len(drawn), len(drawn)])
    _, found, _ = unpack_tokens(table_of(ids, drawn, offsets, False, "effects"))
    np.testing.assert_array_equal(found.view(np.uint32), drawn.view(np.uint32))
    if (drawn < 0).any():
        with pytest.raises(UserError, match="does not hold"):
            unpack_tokens(table_of(ids, drawn, offsets, False, "log1p"))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_effects_are_finite(bad):
    with pytest.raises(UserError, match="does not hold"):
        unpack_tokens(table_of(np.array([1]), np.float32([bad]), np.array([0, 1]), False, "effects"))


def test_a_number_of_36_bits_is_refused():
    """Five bytes hold 35 bits; a store holds numbers of 31."""
    table = table_of(np.array([1]), np.array([2]), np.array([0, 1]), whole=True)
    large = pa.array([b"\xff\xff\xff\xff\x7f"], pa.binary())
    for column, unpack in (
        ("gene_ids", unpack_tokens),
        ("counts", unpack_tokens),
        ("counts", lambda spoilt: unpack_normalized(spoilt, np.ones(1), np.ones(10, bool))),
    ):
        at = table.schema.get_field_index(column)
        spoilt = table.set_column(at, table.schema.field(column), large)
        with pytest.raises(UserError, match="does not hold"):
            unpack(spoilt)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_values_that_no_logarithm_has(value):
    table = table_of(np.array([1, 5]), np.array([1.0, value]), np.array([0, 2]), whole=False)
    with pytest.raises(UserError, match="column counts does not hold"):
        unpack_tokens(table)
