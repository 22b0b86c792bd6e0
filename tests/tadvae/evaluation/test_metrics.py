"""Every metric against plain loops written from its definition; invariances; bootstrap intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import root_mean_squared_error
from sklearn.metrics.pairwise import cosine_similarity

from tadvae.evaluation import bootstrap, metrics
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.metrics import (
    METRICS,
    pearson_delta,
    rank_score,
)

SEEDS = st.integers(0, 2**32 - 1)


def make_profiles(seed, genes=30):
    rng = np.random.default_rng(seed)
    control = rng.gamma(1.0, 0.5, genes)
    return control + rng.normal(0, 0.2, genes), control + rng.normal(0, 0.2, genes), control


def make_matrices(seed, m=7, genes=12):
    rng = np.random.default_rng(seed)
    control = rng.gamma(1.0, 0.5, genes)
    true = control + rng.normal(0, 0.3, (m, genes))
    return true + rng.normal(0, 0.3, (m, genes)), true, control


# ---------------------------------------------------------------- profile metrics


@given(SEEDS)
def test_pearson_delta_is_scipys_correlation_of_the_differences(seed):
    pred, true, control = make_profiles(seed)
    expected = stats.pearsonr(pred - control, true - control).statistic
    assert pearson_delta(pred, true, control) == pytest.approx(expected, abs=1e-12)


@given(SEEDS, st.floats(1e-3, 1e3))
def test_pearson_delta_ignores_a_positive_scale_and_flips_with_a_negative_one(seed, scale):
    pred, true, control = make_profiles(seed)
    plain = pearson_delta(pred, true, control)
    assert pearson_delta(control + scale * (pred - control), true, control) == pytest.approx(plain, abs=1e-9)
    assert pearson_delta(control - scale * (pred - control), true, control) == pytest.approx(-plain, abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3, -0.7])
def test_a_prediction_without_effect_scores_zero_and_a_truth_without_effect_nan(shift):
    pred, true, control = make_profiles(0)
    assert pearson_delta(control + shift, true, control) == 0.0
    assert math.isnan(pearson_delta(pred, control + shift, control))
    assert math.isnan(pearson_delta(control, control + shift, control))
    assert metrics.cosine_logfc(control, true, control) == 0.0
    assert math.isnan(metrics.cosine_logfc(pred, control, control))


@given(SEEDS)
def test_l2_and_rmse_by_loop(seed):
    pred, true, control = make_profiles(seed)
    total = 0.0
    for p, t in zip(pred, true, strict=True):
        total += (p - t) ** 2
    assert metrics.l2(pred, true, control) == pytest.approx(math.sqrt(total))
    assert metrics.rmse(pred, true, control) == pytest.approx(math.sqrt(total / len(pred)))


def loop_cosine(pred, true, control):
    dot = x2 = y2 = 0.0
    for p, t, c in zip(pred, true, control, strict=True):
        base = math.log2(max(c, 0.0) + 0.1)
        x, y = math.log2(max(p, 0.0) + 0.1) - base, math.log2(max(t, 0.0) + 0.1) - base
        dot, x2, y2 = dot + x * y, x2 + x * x, y2 + y * y
    return dot / math.sqrt(x2 * y2) if x2 * y2 > 0.0 else 0.0


@given(SEEDS)
def test_cosine_logfc_by_loop(seed):
    pred, true, control = make_profiles(seed)
    assert metrics.cosine_logfc(pred, true, control) == pytest.approx(
        loop_cosine(pred, true, control), abs=1e-12
    )


def test_a_perfect_prediction_has_the_best_value():
    _, true, control = make_profiles(2)
    for name, metric in METRICS.items():
        assert metric(true, true, control) == pytest.approx(1.0 if metrics.HIGHER_IS_BETTER[name] else 0.0)


@pytest.mark.parametrize("metric", METRICS.values())
def test_shapes_that_would_broadcast_are_refused_and_a_nan_is_passed_on(metric):
    pred, true, control = make_profiles(0)
    assert math.isnan(metric(np.where(pred == pred[3], np.nan, pred), true, control))
    with pytest.raises(ValueError, match="one length"):
        metric(pred[None], true, control)
    with pytest.raises(ValueError, match="one length"):
        metric(pred, true, control[:1])


def test_score_profiles_is_each_metric_for_each_row():
    pred, true, control = make_matrices(3)
    scores = metrics.score_profiles(pred, true, control)
    assert set(scores) == set(METRICS)
    for name, values in scores.items():
        assert values.tolist() == [METRICS[name](p, t, control) for p, t in zip(pred, true, strict=True)]
    assert metrics.score_profiles(pred[:0], true[:0], control)["l2"].shape == (0,)
    with pytest.raises(ValueError, match="matrices"):
        metrics.score_profiles(pred[:2], true, control)


def loop_overlap(pred, true, control, k):
    def top(profile):
        change = {g: abs(profile[g] - control[g]) for g in range(len(control)) if profile[g] != control[g]}
        return set(sorted(change, key=lambda g: (-change[g], g))[:k])

    return len(top(pred) & top(true)) / len(top(true))


@given(SEEDS, st.integers(1, 40))
def test_de_overlap_by_loop(seed, k):
    pred, true, control = make_profiles(seed)
    pred[:20], true[5:25] = control[:20], control[5:25]
    expected = loop_overlap(pred.tolist(), true.tolist(), control.tolist(), k)
    assert metrics.de_overlap(pred, true, control, k) == pytest.approx(expected)


def test_de_overlap_of_no_change():
    _, true, control = make_profiles(0)
    assert metrics.de_overlap(control, true, control) == 0.0
    assert math.isnan(metrics.de_overlap(true, control, control))


@given(SEEDS, st.integers(1, 20))
def test_responsive_genes_by_loop(seed, k):
    deltas = np.random.default_rng(seed).normal(0, 1, (6, 24))
    size = [math.sqrt(sum(row[g] ** 2 for row in deltas) / 6) for g in range(24)]
    expected = sorted(sorted(range(24), key=lambda g: -size[g])[: max(2, min(k, 12))])
    assert metrics.responsive_genes(deltas, k).tolist() == expected


@given(SEEDS)
def test_profile_metrics_agree_with_scipy_and_scikit_learn(seed):
    """Independent implementations; pertpy and cell-eval offer the same, but bring JAX or PyTorch stacks."""
    pred, true, control = make_profiles(seed)
    assert metrics.rmse(pred, true, control) == pytest.approx(root_mean_squared_error(true, pred))
    change = [np.log(np.maximum(p, 0) + 0.1) - np.log(np.maximum(control, 0) + 0.1) for p in (pred, true)]
    expected = cosine_similarity(change[:1], change[1:])[0, 0]
    assert metrics.cosine_logfc(pred, true, control) == pytest.approx(expected)
    correlation = stats.pearsonr(pred - control, true - control).statistic
    assert pearson_delta(pred, true, control) == pytest.approx(correlation)


# ---------------------------------------------------------------- discrimination


def loop_rank(pred, true, control, kind, among):
    def distance(p, t):
        return 1.0 - loop_cosine(p, t, control) if kind == "cosine" else math.dist(p, t)

    scores = []
    for i in range(len(pred)):
        own, count = distance(pred[i], true[i]), 0
        for j in range(len(pred)):
            if j != i:
                other = distance(pred[i], true[j]) if among == "observed" else distance(pred[j], true[i])
                count += (other < own) + 0.5 * (other == own)
        scores.append(count / (len(pred) - 1))
    return scores


@pytest.mark.parametrize("kind", ["cosine", "rmse"])
@pytest.mark.parametrize("among", ["observed", "predicted"])
@given(seed=SEEDS)
def test_rank_score_by_loop(seed, kind, among):
    pred, true, control = make_matrices(seed)
    pred[0], true[1] = control, control  # no effect: cosine 0 with everything
    expected = loop_rank(pred, true, control, kind, among)
    assert rank_score(pred, true, control, kind=kind, among=among) == pytest.approx(expected)


@given(SEEDS)
def test_centroid_accuracy_by_loop(seed):
    pred, true, _ = make_matrices(seed)
    expected = []
    for i, p in enumerate(pred):
        farther = [math.dist(p, t) > math.dist(p, true[i]) for j, t in enumerate(true) if j != i]
        expected.append(sum(farther) / len(farther))
    assert metrics.centroid_accuracy(pred, true) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["cosine", "rmse"])
@pytest.mark.parametrize("among", ["observed", "predicted"])
def test_a_model_blind_to_the_perturbation_scores_chance(kind, among):
    _, true, control = make_matrices(5, m=40)
    for blind in (control, control + 0.1, true.mean(axis=0)):
        pred = np.tile(blind, (len(true), 1))
        assert rank_score(pred, true, control, kind=kind, among=among).mean() == pytest.approx(0.5)
        assert metrics.centroid_accuracy(pred, true).mean() == pytest.approx(0.5)


def test_ties_count_one_half():
    true = np.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]])
    pred = np.array([[1.0, 0.0], [1.0, 0.0], [9.0, 9.0]])  # midway between the first two
    assert rank_score(pred, true, np.zeros(2), kind="rmse").tolist() == [0.25, 0.25, 0.0]
    assert metrics.centroid_accuracy(pred, true).tolist() == [0.75, 0.75, 1.0]


def test_rank_needs_others_and_finite_values():
    pred, true, control = make_matrices(7)
    assert np.isnan(rank_score(pred[:1], true[:1], control)).all()
    assert np.isnan(metrics.centroid_accuracy(pred[:1], true[:1])).all()
    pred[2, 0] = np.nan
    for kind in ("cosine", "rmse"):
        assert np.isnan(rank_score(pred, true, control, kind=kind)).tolist() == [i == 2 for i in range(7)]
    for wrong in ({"kind": "l1"}, {"among": "all"}):
        with pytest.raises(ValueError, match="expected"):
            rank_score(pred, true, control, **wrong)
    with pytest.raises(ValueError, match="control"):
        rank_score(pred, true, control[:1])


# ---------------------------------------------------------------- bootstrap


def test_bootstrap_mean_by_loop():
    values = np.random.default_rng(0).normal(1.0, 2.0, 25)
    rng = np.random.default_rng(7)
    means = []
    for row in rng.integers(25, size=(500, 25)):
        means.append(sum(values[i] for i in row) / 25)
    mean, low, high = bootstrap_mean(values, seed=7, n=500, level=0.9)
    assert mean == pytest.approx(sum(values) / 25)
    assert [low, high] == pytest.approx(np.percentile(means, [5.0, 95.0]))


def test_bootstrap_is_deterministic_and_leaves_nan_out():
    values = np.random.default_rng(1).normal(0, 1, 30)
    holed = np.insert(values, [0, 10, 30], np.nan)
    assert bootstrap_mean(values, 3) == bootstrap_mean(values, 3) == bootstrap_mean(holed, 3)
    assert bootstrap_mean(values, 3) != bootstrap_mean(values, 4)


def test_bootstrap_of_few_values():
    assert all(math.isnan(v) for v in bootstrap_mean([], 0))
    assert all(math.isnan(v) for v in bootstrap_mean([np.nan, np.nan], 0))
    assert bootstrap_mean([2.5, np.nan], 0) == (2.5, 2.5, 2.5)


def test_bootstrap_in_parts_is_the_same_law(monkeypatch):
    values = np.random.default_rng(2).normal(0, 1, 40)
    whole = bootstrap_mean(values, 5)
    monkeypatch.setattr(bootstrap, "_VALUES_AT_ONCE", 400)
    parts = bootstrap_mean(values, 5)
    assert parts.mean == whole.mean
    assert [parts.low, parts.high] == pytest.approx([whole.low, whole.high], abs=0.05)


def test_paired_difference_is_narrower_than_the_scores_and_skips_what_either_lacks():
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 5, 50)
    a, b = hard + 0.5 + rng.normal(0, 0.1, 50), hard + rng.normal(0, 0.1, 50)
    interval = paired_bootstrap_difference(a, b, seed=1)
    assert 0.4 < interval.low < interval.mean < interval.high < 0.6
    assert paired_bootstrap_difference(b, a, seed=1).mean == -interval.mean
    a[4], b[9] = np.nan, np.nan
    both = ~(np.isnan(a) | np.isnan(b))
    assert paired_bootstrap_difference(a, b, 1) == paired_bootstrap_difference(a[both], b[both], 1)


def test_bootstrap_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="same perturbations"):
        paired_bootstrap_difference([1.0, 2.0], [1.0], 0)
    with pytest.raises(ValueError, match="one score"):
        bootstrap_mean(np.zeros((2, 2)), 0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_mean([1.0], 0, level=1.0)
    with pytest.raises(ValueError, match="n >= 1"):
        bootstrap_mean([1.0], 0, n=0)
