"""What values are: counts, fractional counts, normalised values, logarithms; no advice leads in a circle."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from pipelines.inspect import as_tables, describe
from tadvae.base.errors import UserError
from tadvae.store.conversion import plan_store
from tadvae.store.spec import load_spec
from tadvae.store.values import SAMPLE_ROWS, kind_of, library_sizes, sample_rows


def draw_counts(seed, n_genes, depth=1.0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.7, 2.0, n_genes) * depth
    library = rng.lognormal(0.0, 0.5, (30, 1))
    counts = rng.poisson(rate * library).astype(np.float64)
    return counts[counts.sum(axis=1) > 0]


def scaled(counts, total):
    """Cells of one total, as sc.pp.normalize_total makes them."""
    library = np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    return counts / library * (np.median(library) if total is None else total)


def judge(values):
    return kind_of(sparse.csr_matrix(values.astype(np.float32)))


sizes = st.tuples(st.integers(0, 10_000), st.integers(60, 200), st.sampled_from([0.3, 1.0, 5.0]))
"""Seed, genes, depth; of fewer genes the values are too few to judge, when hardly any count is above 2."""
judged = settings(max_examples=25, derandomize=True)  # the judgement is statistical, also in a search


@judged
@given(sizes, st.sampled_from([1.0, 1e4, 1e6, None]), st.sampled_from([np.e, 2.0, 10.0]), st.floats(0.1, 1))
def test_logarithms_are_never_taken_for_counts(size, total, base, share):
    """Of the whole panel or a part of it, in any base; also with genes whose counts are fractional."""
    counts = draw_counts(*size)
    kept = max(int(share * counts.shape[1]), 8)
    logs = np.log1p(scaled(counts, total)) / np.log(base)
    assert judge(logs[:, :kept]) in ("log1p", "unclear")
    assert judge(logs) == "log1p"
    fractional = np.log1p(scaled(np.maximum(counts - 0.3 * counts.mean(axis=0), 0), total))
    assert judge(fractional[:, :kept]) in ("log1p", "unclear")


@judged
@given(sizes, st.floats(0.05, 0.97).filter(lambda f: not np.isclose(f * 100, round(f * 100), atol=0.05)))
def test_counts_and_fractional_counts(size, factor):
    counts = draw_counts(*size)
    assert judge(counts) == "counts"
    assert judge(factor * counts) == "fractional"
    rng = np.random.default_rng(size[0])
    ambiguous = np.where(rng.random(counts.shape) < 0.2, counts * rng.random(counts.shape), counts)
    assert judge(ambiguous) == "fractional"
    assert judge(np.round(ambiguous, 2)) == "fractional"
    assert judge(scaled(counts, 1e4)) == "normalised"


def test_profiles_and_empty_rows():
    rng = np.random.default_rng(1)
    means = np.stack([scaled(draw_counts(seed, 300), 1e4).mean(axis=0) for seed in [7] * 6])
    assert judge(np.log1p(means * rng.lognormal(0, 0.1, means.shape))) == "log1p"
    assert judge(np.zeros((4, 5))) == "log1p"


@settings(max_examples=30)
@given(st.integers(0, 5000))
def test_rows_of_the_sample(n):
    rows = np.concatenate([np.arange(*span) for span in sample_rows(n)])
    assert len(rows) == min(n, SAMPLE_ROWS)
    assert len(set(rows)) == len(rows)
    assert ((rows >= 0) & (rows < n)).all()


CHANGES = {
    "counts": lambda X, rng: X,
    "log1p": lambda X, rng: np.log1p(scaled(X, 1e4)),
    "normalised": lambda X, rng: scaled(X, 1e4),
    "normalised to a small total": lambda X, rng: scaled(X, 20),
    "one factor": lambda X, rng: 0.87 * X,
    "one factor and large": lambda X, rng: 0.87 * X + (X.max() == X) * 60,
    "SoupX": lambda X, rng: np.maximum(X - 0.3 * rng.random(X.shape), 0) * (X > 0),
    "alevin": lambda X, rng: np.where(rng.random(X.shape) < 0.2, X * rng.random(X.shape), X),
    "RSEM": lambda X, rng: np.round(np.where(rng.random(X.shape) < 0.5, X * rng.random(X.shape), X), 2),
    "one fraction": lambda X, rng: X - 0.25 * (X.max() == X),
    "one count among logarithms": lambda X, rng: np.where(X.max() == X, 50, np.log1p(scaled(X, 1e4))),
}
SETTINGS = {
    "values: counts": {},
    "counts: {round: true}": {"counts": {"round": True}},
    "values: log1p": {"values": "log1p"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_advice_leads_in_a_circle(write_spec, screen, change):
    """What a message advises is accepted, or leads to a setting that is."""
    X = np.tile(draw_counts(1, 10, 2.0), (2, 1))[:48]
    assert len(X) == 48
    screen.X = CHANGES[change](X, np.random.default_rng(1))
    advised = {}
    for name, options in SETTINGS.items():
        try:
            plan_store(load_spec(write_spec(screen, **options)))
        except UserError as error:
            advised[name] = {other for other in SETTINGS if f"{other}'" in str(error)}
        else:
            advised[name] = set()
    for name, others in advised.items():
        assert name not in others
        for other in others:  # at most one more step
            assert all(not advised[further] for further in advised[other]), (change, advised)
    if change in ("alevin", "RSEM", "one factor", "one factor and large", "one fraction"):
        assert advised["values: counts"] == advised["values: log1p"] == {"counts: {round: true}"}


def test_small_values_that_prove_nothing_are_said(write_spec, screen, capsys):
    rng = np.random.default_rng(0)
    screen.X = np.maximum(screen.X.toarray() / 9 + rng.random(screen.shape), 0)
    plan_store(load_spec(write_spec(screen, values="log1p")))
    note = capsys.readouterr().err
    for word in ("'screen0'", "nothing in them proves it", "counts: {round: true}"):
        assert note.count(word) == 1


def test_fractional_counts_are_rounded(write_spec, screen, convert_here, stored_cells):
    """Also in the library size; manifest and inspect say it, and no stored zero stays."""
    X = screen.X.toarray()
    screen.X = sparse.csr_matrix(X * 0.87)
    store = convert_here(write_spec(screen, counts={"round": True}, layout={"chunk_rows": 10}))
    cells, values = stored_cells(store, 0)
    panel = store.panel(0)
    expected = screen.to_df().round().loc[cells["cell_id"], panel["source"]]
    np.testing.assert_array_equal(values[:, panel["gene_index"]].toarray(), expected)
    np.testing.assert_array_equal(cells["total_counts"], expected.sum(axis=1))
    (entry,) = store.manifest.datasets
    assert (entry.values, entry.rounded) == ("counts", True)
    about = describe(str(store.folder))
    assert about["datasets"][0]["rounded"] is True
    assert "counts, rounded" in [cell for column in as_tables(about)[0].columns for cell in column.cells]


def test_whole_counts_are_not_changed_by_rounding(write_spec, screen, convert_here):
    plain = convert_here(write_spec(screen), "plain").manifest
    rounded = convert_here(write_spec(screen, counts={"round": True}), "rounded").manifest
    assert [shard.sha256 for shard in plain.shards] == [shard.sha256 for shard in rounded.shards]


def test_logarithms_are_not_rounded(write_spec, screen, refused):
    screen.X = np.log1p(scaled(screen.X.toarray(), 1e4))
    spec = write_spec(screen, counts={"round": True})
    assert "say 'values: log1p'" in refused(lambda: plan_store(load_spec(spec)))
    assert "counts.round" in refused(load_spec, write_spec(screen, counts={"round": True}, values="log1p"))


@pytest.mark.parametrize(
    ("column", "sizes"),
    [
        (pd.Series([3, 0, 7]), [3.0, 0.0, 7.0]),
        (pd.Series([3, 7], dtype="Int64"), [3.0, 7.0]),
        (pd.Series(["3", "7.5"]), [3.0, 7.5]),
        (pd.Series([3, None], dtype="Int64"), None),
        (pd.Series([3.0, np.nan]), None),
        (pd.Series([3.0, np.inf]), None),
        (pd.Series([3.0, -1.0]), None),
        (pd.Series(["3", "many"]), None),
    ],
)
def test_library_sizes_of_a_column(column, sizes):
    found = library_sizes(column)
    assert (None if found is None else found.tolist()) == sizes
