"""Matching of latent factors against brute force, and the stability of a graph's edges."""

import itertools

import numpy as np
import pytest

from tadvae.model.factor_graph import align_factors, edge_stability


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
