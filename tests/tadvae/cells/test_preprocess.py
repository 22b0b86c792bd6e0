"""Normalisation and variable genes, against scanpy and against plain loops."""

from itertools import pairwise

import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.cells.moments import Moments
from tadvae.cells.normalize import PreprocessConfig, normalize
from tadvae.cells.variable_genes import choose_genes, rank_effects, rank_variable_genes


@pytest.fixture(scope="module")
def counts(simulated):
    """Counts of the screen "up" and 40 genes more, so that bins of one gene and silent genes occur."""
    X = simulated.simulation.screens[0].X.toarray()
    rng = np.random.default_rng(3)
    more = rng.poisson(10.0 ** rng.uniform(-4, 2.5, 40) * rng.gamma(0.7, 2, (len(X), 40)))
    more[:, :3] = 0
    return np.hstack([X, more]).astype(np.float64)


def moments_of(X, said="counts"):
    return Moments.of(sparse.csr_matrix(X), np.asarray(X.sum(axis=1)).ravel(), said)


def assert_scanpys_choice(chosen, X, n_top, scale):
    """As scanpy chooses, but it takes all genes that tie for the last place."""
    adata = sc.AnnData(X.copy())
    sc.pp.normalize_total(adata, target_sum=scale)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor="seurat")
    score = adata.var["dispersions_norm"].fillna(-np.inf).to_numpy()
    cutoff = np.sort(score)[-n_top]
    assert len(set(chosen)) == n_top
    assert set(chosen) <= set(np.flatnonzero(score >= cutoff - 1e-6))
    assert set(chosen) >= set(np.flatnonzero(score > cutoff + 1e-6))
    if (score >= cutoff - 1e-6).sum() == n_top:
        assert set(chosen) == set(np.flatnonzero(adata.var["highly_variable"]))


@pytest.mark.parametrize("n_top", [1, 10, 50, 100, 150])
@pytest.mark.parametrize(("method", "scale"), [("cp10k", 1e4), ("cpm", 1e6)])
def test_variable_genes_are_scanpys(counts, n_top, method, scale):
    every = np.arange(counts.shape[1])
    config = PreprocessConfig(normalize=method, n_top_genes=n_top)
    chosen = choose_genes(moments_of(counts), every, np.array([], int), config)
    assert (np.diff(chosen) > 0).all()
    assert_scanpys_choice(chosen, counts, n_top, scale)


def test_the_scale_matters_to_the_choice(counts):
    # Bins are of log(1 + mean): a scale that were lost on the way would go unseen without this difference.
    every, none = np.arange(counts.shape[1]), np.array([], int)
    configs = [PreprocessConfig(normalize=method, n_top_genes=50) for method in ("cp10k", "cpm")]
    one, other = (choose_genes(moments_of(counts), every, none, config) for config in configs)
    assert set(one) != set(other)


def test_ties_do_not_hang_on_the_last_bit():
    # Two genes of a bin have scores of opposite sign, and so have two others: four genes, two scores.
    mean = np.array([1.0, 1.0, 1000.0, 1000.0, 0.1])
    variance = np.array([2.0, 3.0, 2.0, 3.0, 1.0])
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = 1 + 1e-15 * rng.standard_normal(5)
        np.testing.assert_array_equal(
            rank_variable_genes(mean, variance * noise), rank_variable_genes(mean, variance)
        )


@pytest.mark.parametrize("n_top", [20, 50, 100])
def test_stored_ranks_are_scanpys(store, simulated, n_top):
    for d, (entry, adata) in enumerate(
        zip(store.manifest.datasets, simulated.simulation.screens, strict=True)
    ):
        panel = store.panel(d)
        top = panel[panel["hvg_rank"] < n_top]["source"]
        chosen = np.flatnonzero(adata.var_names.isin(top))
        assert_scanpys_choice(chosen, adata.X.toarray().astype(float), n_top, 1e4)
        assert sorted(panel["hvg_rank"]) == list(range(entry.n_genes))


def test_stored_moments_are_plain(store, simulated):
    for d, adata in enumerate(simulated.simulation.screens):
        X = adata.X.toarray().astype(float)
        X = X / X.sum(axis=1, keepdims=True) * 1e4
        panel = store.panel(d).set_index("source").loc[adata.var_names]
        np.testing.assert_allclose(panel["mean"], X.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(panel["variance"], X.var(axis=0, ddof=1), rtol=1e-6)
        np.testing.assert_allclose(panel["detection"], (X > 0).mean(axis=0))


def test_genes_that_never_vary_come_last():
    mean, variance = np.array([1.0, 2.0, 0.0, 3.0, 4.0]), np.array([2.0, 0.0, 0.0, 9.0, 3.0])
    rank = rank_variable_genes(mean, variance)
    assert set(rank[[1, 2]]) == {3, 4}
    assert sorted(rank) == list(range(5))
    np.testing.assert_array_equal(mean, [1, 2, 0, 3, 4])  # the caller's arrays are left alone
    np.testing.assert_array_equal(rank_variable_genes(np.zeros(3), np.zeros(3)), [0, 1, 2])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=5), st.booleans())
def test_moments_of_chunks_are_those_of_one_pass(cuts, log1p):
    rng = np.random.default_rng(0)
    X = rng.poisson(rng.gamma(0.5, 2, 12), (60, 12)) * 1.0
    X[17] = 0  # a cell without counts
    X = np.log1p(X) if log1p else X
    edges = [0, *sorted(cuts), 60]
    said = "log1p" if log1p else "counts"
    chunks = [moments_of(X[a:b], said) for a, b in pairwise(edges)]
    one, merged = moments_of(X, said), Moments.sum(chunks, 12)
    assert merged.n == 60
    np.testing.assert_array_equal(merged.detected, one.detected)
    np.testing.assert_allclose(merged.mean, one.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.variance, one.variance, rtol=1e-9)


def test_moments_against_numpy():
    X = np.random.default_rng(1).poisson(2.0, (30, 7)) * 1.0
    linear = X / X.sum(axis=1, keepdims=True) * 1e4
    for moments in (moments_of(X), moments_of(np.log1p(linear), "log1p")):
        np.testing.assert_allclose(moments.mean, linear.mean(axis=0))
        np.testing.assert_allclose(moments.variance, linear.var(axis=0, ddof=1))
        np.testing.assert_array_equal(moments.detected, (X > 0).sum(axis=0))
        again = Moments.from_arrays(moments.arrays())
        np.testing.assert_array_equal(again.square, moments.square)
        np.testing.assert_allclose(moments.scaled(100.0).variance, (100 * linear).var(axis=0, ddof=1))
    assert (moments_of(X[:1]).variance == 0).all()
    assert (moments_of(X[:0]).mean == 0).all()


def test_targets_are_always_kept(counts):
    moments = moments_of(counts)
    measured = np.arange(10, counts.shape[1])  # the panel: not the first ten genes of the vocabulary
    targets = np.array([0, 5, 12, 50, 100, 120])
    alone = choose_genes(moments, measured, np.array([], int), PreprocessConfig(n_top_genes=10))
    chosen = choose_genes(moments, measured, targets, PreprocessConfig(n_top_genes=10))
    assert len(alone) == 10
    np.testing.assert_array_equal(chosen, np.union1d(alone, [12, 50, 100, 120]))
    for n_top in ("all", len(measured), 10**6):
        chosen = choose_genes(moments, measured, targets, PreprocessConfig(n_top_genes=n_top))
        np.testing.assert_array_equal(chosen, measured)


def ragged(X):
    csr = sparse.csr_matrix(X)
    return csr.data, csr.indices.astype(np.int64), csr.indptr.astype(np.int64)


@pytest.mark.parametrize(("method", "scale"), [("cp10k", 1e4), ("cpm", 1e6)])
def test_normalize_is_scanpys(counts, method, scale):
    data, ids, offsets = ragged(counts)
    values = normalize(data, ids, offsets, counts.sum(axis=1), method)
    adata = sc.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=scale)
    sc.pp.log1p(adata)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, adata.X[adata.X > 0], rtol=1e-6)


def test_normalize_by_the_given_library(counts):
    data, ids, offsets = ragged(counts[:5])
    library = counts[:5].sum(axis=1) * 3  # most of the cell was not measured
    values = normalize(data, ids, offsets, library, "cp10k")
    cell = np.repeat(np.arange(5), np.diff(offsets))
    np.testing.assert_allclose(values, np.log1p(data / library[cell] * 1e4), rtol=1e-6)


def test_tpm_against_a_loop(counts):
    lengths = np.random.default_rng(2).uniform(300, 9000, counts.shape[1])
    data, ids, offsets = ragged(counts[:20])
    expected = []
    for row in counts[:20]:
        per_base = [count / length for count, length in zip(row, lengths, strict=True)]
        expected += [np.log1p(value / sum(per_base) * 1e6) for value in per_base if value > 0]
    values = normalize(data, ids, offsets, np.full(20, np.nan), "tpm", lengths)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_tpm_without_lengths(refused):
    sentence = refused(normalize, np.ones(1), np.zeros(1, int), np.array([0, 1]), np.ones(1), "tpm")
    assert "gene lengths" in sentence
    assert "cp10k" in sentence


@pytest.mark.parametrize("method", ["cp10k", "cpm", "tpm"])
def test_a_cell_without_counts_stays_empty(method):
    data, ids, offsets = ragged(np.array([[0.0, 0], [3, 1], [0, 0]]))
    values = normalize(data, ids, offsets, np.array([0.0, 4, 0]), method, np.array([1000.0, 1000]))
    np.testing.assert_allclose(values, np.log1p(np.array([0.75, 0.25]) * (1e4 if method == "cp10k" else 1e6)))
    assert normalize(data[:0], ids[:0], np.array([0]), np.array([]), method, np.ones(2)).shape == (0,)


def test_config():
    assert PreprocessConfig.load(None, ["n_top_genes=all"]).n_top_genes == "all"
    with pytest.raises(UserError, match="normalize"):
        PreprocessConfig.load(None, ["normalize=log"])


def test_moments_of_effects_are_those_of_the_values_as_they_are():
    X = np.random.default_rng(2).normal(0.3, [0.1, 1.0, 3.0, 0.0], (30, 4))
    X[:5, :2] = 0.0
    X[:, 3] = -2.0
    moments = moments_of(X, "effects")
    np.testing.assert_allclose(moments.mean, X.mean(axis=0))
    np.testing.assert_allclose(moments.variance, X.var(axis=0, ddof=1), atol=1e-12)
    np.testing.assert_array_equal(moments.detected, [25, 25, 30, 30])
    np.testing.assert_array_equal(rank_effects(moments.mean, moments.variance), [3, 2, 0, 1])
    config, none = PreprocessConfig(n_top_genes=2), np.array([], int)
    chosen = choose_genes(moments, np.arange(4), none, config, effects=True)
    np.testing.assert_array_equal(chosen, [2, 3])
