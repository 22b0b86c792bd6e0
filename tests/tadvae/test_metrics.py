"""Every metric against plain loops written from its definition; invariances; bootstrap intervals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tadvae.evaluation import bootstrap, metrics
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.metrics import (
    METRICS,
    energy_distance,
    mmd_biased,
    mmd_unbiased,
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


# ---------------------------------------------------------------- sets of cells


def make_cells(seed, n=9, m=6, genes=5, shift=0.5):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (n, genes)), rng.normal(shift, 1, (m, genes))


def loop_pairs(x, y, function, skip_self):
    total = 0.0
    for i, a in enumerate(x):
        for j, b in enumerate(y):
            if not (skip_self and i == j):
                squared = 0.0
                for g in range(len(a)):
                    squared += (a[g] - b[g]) ** 2
                total += function(squared)
    return total


def loop_mmd(x, y, bandwidths, biased):
    def kernel(squared):
        return sum(math.exp(-squared / b) for b in bandwidths)

    n, m = len(x), len(y)
    less = 0 if biased else 1
    xx = loop_pairs(x, x, kernel, not biased) / (n * (n - less))
    yy = loop_pairs(y, y, kernel, not biased) / (m * (m - less))
    return xx + yy - 2.0 * loop_pairs(x, y, kernel, False) / (n * m)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_mmd_by_triple_loop(seed):
    x, y = make_cells(seed)
    bandwidths = [0.5, 3.0, 20.0]
    assert mmd_unbiased(x, y, bandwidths) == pytest.approx(loop_mmd(x, y, bandwidths, False), abs=1e-12)
    assert mmd_biased(x, y, bandwidths) == pytest.approx(loop_mmd(x, y, bandwidths, True), abs=1e-12)
    pooled = np.vstack([x, y])
    default = [f * np.median([math.dist(a, b) ** 2 for i, a in enumerate(pooled) for b in pooled[:i]])
               for f in (0.25, 0.5, 1.0, 2.0, 4.0)]  # fmt: skip
    assert metrics.median_bandwidths(pooled) == pytest.approx(default)
    assert mmd_unbiased(x, y) == pytest.approx(loop_mmd(x, y, default, False), abs=1e-12)
    assert mmd_biased(x, y) == pytest.approx(loop_mmd(x, y, metrics.published_bandwidths(), True), abs=1e-12)


def test_published_constants():
    assert metrics.mmd_null_floor(3.0, 32) == pytest.approx(0.4375)  # about .44 at B = 32 (REFERENCES A1)
    assert metrics.published_bandwidths().tolist() == [31.25 * 2**i for i in range(10)]
    assert metrics.published_bandwidths()[-1] == 16000.0
    assert metrics.published_bandwidths(200.0)[0] == 6.25


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_energy_distance_by_triple_loop(seed):
    x, y = make_cells(seed, genes=seed % 5 + 1)
    n, m = len(x), len(y)
    xy = loop_pairs(x, y, math.sqrt, False) / (n * m)
    xx, yy = loop_pairs(x, x, math.sqrt, True), loop_pairs(y, y, math.sqrt, True)
    biased = 2 * xy - xx / n**2 - yy / m**2
    assert energy_distance(x, y, unbiased=False) == pytest.approx(biased, abs=1e-12)
    unbiased = 2 * xy - xx / (n * (n - 1)) - yy / (m * (m - 1))
    assert energy_distance(x, y) == pytest.approx(unbiased, abs=1e-12)


@pytest.mark.parametrize("distance", [mmd_unbiased, mmd_biased, energy_distance])
@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_distances_ignore_the_order_of_cells_and_genes_a_shift_and_the_direction(distance, seed):
    x, y = make_cells(seed)
    rng = np.random.default_rng(seed)
    genes = rng.permutation(x.shape[1])
    value = distance(x, y)
    assert distance(rng.permutation(x), rng.permutation(y)) == pytest.approx(value, abs=1e-9)
    assert distance(x[:, genes] + 3.0, y[:, genes] + 3.0) == pytest.approx(value, abs=1e-9)
    assert distance(y, x) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("bandwidths", [None, [1.0, 10.0]])
def test_blocks_of_rows_change_nothing(monkeypatch, bandwidths):
    x, y = make_cells(4, n=23, m=31)
    values = [mmd_unbiased(x, y, bandwidths), mmd_biased(x, y, bandwidths), energy_distance(x, y)]
    monkeypatch.setattr(metrics, "_BLOCK", 5)
    blocked = [mmd_unbiased(x, y, bandwidths), mmd_biased(x, y, bandwidths), energy_distance(x, y)]
    assert blocked == pytest.approx(values, abs=1e-13)


def repeated(distance, n, m, times=400, **options):
    rng = np.random.default_rng(2024)
    return np.array([distance(*np.split(rng.normal(0, 1, (n + m, 8)), [n]), **options) for _ in range(times)])


@pytest.mark.parametrize(("n", "m"), [(8, 8), (5, 30)])
@pytest.mark.parametrize("distance", [mmd_unbiased, energy_distance])
def test_unbiased_distances_average_zero_for_equal_distributions(distance, n, m):
    options = {"bandwidths": [4.0, 16.0, 64.0]} if distance is mmd_unbiased else {}
    values = repeated(distance, n, m, **options)
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean()) < 3.5 * error
    assert values.min() < 0.0 < values.max()


def test_the_biased_mmd_averages_its_null_floor():
    n, bandwidths = 16, metrics.published_bandwidths(20.0)
    rng = np.random.default_rng(5)
    floor = metrics.mmd_null_floor(metrics.mean_kernel(rng.normal(0, 1, (1500, 8)), bandwidths), n)
    values = repeated(mmd_biased, n, n, bandwidths=bandwidths)
    assert values.mean() == pytest.approx(floor, abs=3.5 * values.std(ddof=1) / math.sqrt(len(values)))
    assert values.min() > 0.0


def test_the_biased_mmd_is_the_unbiased_one_plus_the_self_pairs():
    x, y = make_cells(8, n=12, m=12)
    bandwidths = metrics.published_bandwidths(30.0)
    k_mean = (metrics.mean_kernel(x, bandwidths) + metrics.mean_kernel(y, bandwidths)) / 2
    difference = mmd_biased(x, y, bandwidths) - mmd_unbiased(x, y, bandwidths)
    assert difference == pytest.approx(metrics.mmd_null_floor(k_mean, 12))


@pytest.mark.parametrize("distance", [mmd_unbiased, energy_distance])
def test_one_cell_has_no_unbiased_distance(distance):
    x, y = make_cells(0)
    assert math.isnan(distance(x[:1], y))
    assert math.isnan(distance(x, y[:1]))


def test_identical_cells_do_not_break_the_bandwidth():
    x = np.tile([0.1, 0.7, 0.3], (6, 1))
    assert metrics.median_bandwidths(x, factors=[1.0]).tolist() == [1.0]
    assert metrics.median_bandwidths(x[:1], factors=[2.0]).tolist() == [2.0]
    assert mmd_unbiased(x, x) == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(metrics.mean_kernel(x[:1], [1.0]))


def test_median_bandwidth_of_many_cells_is_deterministic_and_close():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3000, 10))
    assert metrics.median_bandwidths(x).tolist() == metrics.median_bandwidths(x).tolist()
    assert metrics.median_bandwidths(x, factors=[1.0])[0] == pytest.approx(
        2 * 9.34, rel=0.03
    )  # 2 · chi² median


def test_cells_that_do_not_fit_are_refused():
    x, y = make_cells(0)
    with pytest.raises(ValueError, match="genes"):
        mmd_unbiased(x, y[:, :2])
    with pytest.raises(ValueError, match="cells"):
        energy_distance(x[:0], y)
    with pytest.raises(ValueError, match="above 0"):
        mmd_unbiased(x, y, [0.0])


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
