"""Interpretation tests against plain loops; planted truths that they must find."""

import itertools

import numpy as np
import pytest

from tadvae.evaluation.interpretation import (
    activation_ratio,
    align_factors,
    edge_stability,
    hits_at,
    target_response,
)


def loop_ratio(change, member):
    inside = [abs(c) for c, m in zip(change, member, strict=True) if m and not np.isnan(c)]
    rest = [abs(c) for c, m in zip(change, member, strict=True) if not m and not np.isnan(c)]
    return (sum(inside) / len(inside)) / (sum(rest) / len(rest))


def loop_hits(change, member, n):
    known = [p for p in range(len(change)) if not np.isnan(change[p])]
    top = sorted(known, key=lambda p: (-abs(change[p]), p))[:n]
    return sum(bool(member[p]) for p in top) / sum(bool(member[p]) for p in known)


def make_problem(seed, P=40, G=25):
    rng = np.random.default_rng(seed)
    change = rng.normal(0, 1, P)
    change[[3, 17]] = np.nan
    masks = rng.random((P, G)) < 0.15
    masks[0], masks[1], masks[:, 0] = True, False, False
    masks[[2, 5, 9], 0] = True
    return change, masks


@pytest.mark.parametrize("seed", range(5))
def test_ratio_and_hits_by_loop(seed):
    change, masks = make_problem(seed)
    for g in (0, 3, 7):
        assert activation_ratio(change, masks[:, g]) == pytest.approx(loop_ratio(change, masks[:, g]))
        for n in (1, 5, 100):
            assert hits_at(change, masks[:, g], n) == pytest.approx(loop_hits(change, masks[:, g], n))


def test_undefined_ratios_are_nan():
    change = np.array([1.0, 2.0, np.nan])
    assert np.isnan(activation_ratio(change, [False, False, True]))
    assert np.isnan(activation_ratio(change, [True, True, False]))
    assert np.isnan(activation_ratio([1.0, 0.0], [True, False]))
    assert np.isnan(hits_at(change, [False, False, True], 5))
    with pytest.raises(ValueError, match="membership"):
        activation_ratio(change, [True])


def test_permuted_masks_by_loop():
    change, masks = make_problem(8)
    found = target_response(change, masks, 0, seed=4, permutations=50)
    usable = masks.copy()
    usable[np.isnan(change)] = False
    genes = np.random.default_rng(4).choice(np.flatnonzero(usable.any(axis=0)), 50)
    null = [activation_ratio(change, masks[:, g]) for g in genes]
    null = [value for value in null if not np.isnan(value)]
    assert found.dar == pytest.approx(loop_ratio(change, masks[:, 0]))
    assert found.dar_null == pytest.approx(np.mean(null))
    assert found.p_value == pytest.approx((1 + sum(v >= found.dar for v in null)) / (1 + len(null)))
    assert found.n_pathways == 3
    assert found.hits == {n: loop_hits(change, masks[:, 0], n) for n in (25, 100)}


def test_a_planted_response_is_found_and_noise_is_not():
    p_values = []
    for seed in range(40):
        change, masks = make_problem(seed, P=80)
        masks[0] = np.random.default_rng(seed).random(25) < 0.15
        p_values.append(target_response(change, masks, 0, seed).p_value)
        strong = change.copy()
        strong[masks[:, 0]] = 8.0
        planted = target_response(strong, masks, 0, seed)
        assert planted.dar > 3 * planted.dar_null
        assert planted.hits[25] == 1.0
    assert 0.3 < np.mean(p_values) < 0.8  # no effect: p is spread over (0, 1]


def best_by_brute_force(reference, loadings):
    def cosine(a, b):
        return (
            sum(x * y for x, y in zip(a, b, strict=True))
            / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
        )

    K = len(reference)
    return max(
        itertools.permutations(range(K)),
        key=lambda order: sum(abs(cosine(reference[k], loadings[order[k]])) for k in range(K)),
    )


@pytest.mark.parametrize("seed", range(4))
def test_alignment_is_the_best_of_all_permutations(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 1, (5, 9)), rng.normal(0, 1, (5, 9))
    order, similarity = align_factors(a, b)
    assert tuple(order) == best_by_brute_force(a.tolist(), b.tolist())
    for k in range(5):
        expected = a[k] @ b[order[k]] / np.linalg.norm(a[k]) / np.linalg.norm(b[order[k]])
        assert similarity[k] == pytest.approx(expected)


def test_a_graph_with_shuffled_and_flipped_factors_is_the_same_graph():
    rng = np.random.default_rng(0)
    K, P = 5, 30
    loadings, graph = rng.normal(0, 1, (K, P)), np.triu(rng.normal(0, 1, (K, K)), 1)
    graph[0, 1] = graph[2, 4] = 0.0
    graphs, turned = [graph], [loadings]
    for _ in range(3):
        order, sign = rng.permutation(K), rng.choice([-1.0, 1.0], K)
        turned.append(sign[:, None] * loadings[order])
        graphs.append((sign[:, None] * sign[None, :]) * graph[np.ix_(order, order)])
    graphs[3] = graphs[3] * 0.0  # one seed without any edge
    frame = edge_stability(graphs, turned, threshold=1e-6)
    found = {(row.source, row.target): row for row in frame.itertuples()}
    assert set(found) == {tuple(edge) for edge in np.argwhere(graph)}
    for (i, j), row in found.items():
        assert row.share == 0.75
        assert row.effect == pytest.approx(graph[i, j])
        assert row.same_sign == 1.0
        assert row.similarity == pytest.approx(1.0)


def test_edges_below_the_threshold_and_opposite_signs():
    loadings = np.eye(3)
    one, other = np.zeros((3, 3)), np.zeros((3, 3))
    one[0, 1], other[0, 1], one[1, 2], one[0, 2] = 0.5, -0.2, 0.04, 0.3
    frame = edge_stability([one, other], [loadings, loadings], threshold=0.05)
    assert frame[["source", "target", "share", "same_sign"]].to_numpy().tolist() == [
        [0, 1, 1.0, 0.5],
        [0, 2, 0.5, 1.0],
    ]
    assert frame["effect"].tolist() == pytest.approx([0.15, 0.3])
    assert edge_stability([np.zeros((3, 3))], [loadings], 0.05).empty
