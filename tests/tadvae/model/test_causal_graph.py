"""The graph read from interventions, on effects that are made from a known one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.model.causal_graph import read_graph


def world(seed, K=4, targets=3, pathways=4, noise=0.0):
    """Effects (T, P) of targets on pathways by ``B = s T[k(t), k(p)] l_p`` over a random DAG."""
    rng = np.random.default_rng(seed)
    graph = np.triu(rng.choice([-1, 1], (K, K)) * rng.uniform(0.4, 0.8, (K, K)), 1)
    graph *= rng.random((K, K)) < 0.5
    target_factor, pathway_factor = np.repeat(np.arange(K), targets), np.repeat(np.arange(K), pathways)
    order_t, order_p = rng.permutation(K * targets), rng.permutation(K * pathways)
    target_factor, pathway_factor = target_factor[order_t], pathway_factor[order_p]
    total = np.linalg.inv(np.eye(K) - graph)
    loading = rng.uniform(0.5, 1.5, len(pathway_factor)) * rng.choice([1, 1, 1, -1], len(pathway_factor))
    size = rng.uniform(1.0, 3.0, len(target_factor)) * rng.choice([1, -1], len(target_factor))
    effects = size[:, None] * total[target_factor][:, pathway_factor] * loading
    return effects + noise * rng.normal(size=effects.shape), target_factor, pathway_factor, graph


def as_partition(labels):
    return {frozenset(np.flatnonzero(labels == k).tolist()) for k in np.unique(labels)}


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_clusters_are_the_factors_whatever_their_order(seed):
    effects, target_factor, pathway_factor, _ = world(seed)
    median = np.median(effects, axis=1, keepdims=True)
    found = read_graph(effects, 4)
    if np.abs(median).max() < 1e-9:  # else the row's middle is no zero, and little is promised
        assert as_partition(found.target_factor) == as_partition(target_factor)
        assert as_partition(found.pathway_factor) == as_partition(pathway_factor)
    assert np.isfinite(found.graph).all()


def test_the_graph_is_recovered_and_an_offset_of_every_pathway_does_not_matter():
    rng = np.random.default_rng(0)
    tried = 0
    for seed in range(40):
        effects, target_factor, pathway_factor, graph = world(seed, noise=0.01)
        if (np.abs(np.median(world(seed)[0], axis=1)) > 1e-9).any():
            continue  # a target that moves most pathways has no zero to be measured from
        tried += 1
        found = read_graph(effects + rng.normal(size=(len(effects), 1)), 4)
        name = {}
        for ours, true in zip(found.target_factor, target_factor, strict=True):
            assert name.setdefault(ours, true) == true
        assert [name[k] for k in found.pathway_factor] == pathway_factor.tolist()
        moved = np.zeros((4, 4), bool)
        for i, j in zip(*np.nonzero(found.graph), strict=True):
            moved[name[i], name[j]] = True
        np.testing.assert_array_equal(moved, graph != 0)
    assert tried >= 5


def test_bad_input():
    with pytest.raises(UserError, match="3 targets and 9 pathways cannot show 4 factors"):
        read_graph(np.ones((3, 9)), 4)
    with pytest.raises(UserError, match="some effects are missing"):
        read_graph(np.full((5, 9), np.nan), 2)
