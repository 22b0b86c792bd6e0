"""Noise ceiling and intervals of one value, against plain loops over halves."""

import numpy as np
import pytest

from tadvae.evaluation import ceiling
from tadvae.evaluation.ceiling import resampled_metrics, split_half_ceiling
from tadvae.evaluation.distances import energy_distance, median_bandwidths, mmd_unbiased
from tadvae.evaluation.metrics import METRICS


def make_cells(seed, n=21, genes=8, shift=0.6):
    rng = np.random.default_rng(seed)
    control = rng.gamma(2.0, 0.5, genes)
    return control + shift * rng.normal(0, 1, genes) + rng.normal(0, 0.5, (n, genes)), control


@pytest.mark.parametrize("n", [4, 21])
def test_ceiling_by_loop_over_halves(n):
    cells, control = make_cells(1, n=n)
    bandwidths = median_bandwidths(cells)
    found = split_half_ceiling(cells, control, bandwidths, seed=3)
    rng = np.random.default_rng(3)
    values = {name: [] for name in [*METRICS, "mmd", "energy_distance"]}
    for _ in range(ceiling.HALVINGS):
        order = rng.permutation(n)
        a, b = cells[np.sort(order[: n // 2])], cells[np.sort(order[n // 2 :])]
        for name, metric in METRICS.items():
            values[name].append(metric(a.mean(axis=0), b.mean(axis=0), control))
        values["mmd"].append(mmd_unbiased(a, b, bandwidths))
        values["energy_distance"].append(energy_distance(a, b))
    assert set(found.metrics) == set(values)
    for name, each in values.items():
        assert found.metrics[name] == pytest.approx(np.mean(each), abs=1e-12)
    assert found.null["mmd"] == pytest.approx(np.quantile(values["mmd"], 0.95), abs=1e-12)
    assert found.null["energy_distance"] == pytest.approx(np.quantile(values["energy_distance"], 0.95))


def test_the_distance_of_halves_is_zero_on_average_and_the_floor_above_it():
    found = []
    for seed in range(60):
        cells, control = make_cells(seed, n=40)
        found.append(split_half_ceiling(cells, control, median_bandwidths(cells), seed=seed))
    mmd = np.array([one.metrics["mmd"] for one in found])
    assert abs(mmd.mean()) < 4 * mmd.std() / np.sqrt(len(mmd))
    assert all(one.null["mmd"] > one.metrics["mmd"] for one in found)


def test_more_cells_raise_the_ceiling():
    means = []
    for n in (8, 200):
        found = [split_half_ceiling(*make_cells(s, n=n), np.ones(1), seed=s) for s in range(30)]
        means.append(np.mean([one.metrics["pearson_delta"] for one in found]))
    assert means[0] < means[1]
    assert means[1] > 0.95


def test_too_few_cells_have_no_ceiling():
    cells, control = make_cells(2, n=3)
    assert split_half_ceiling(cells, control, np.ones(1)) is None


def test_resampled_metrics_by_drawing_cells():
    cells, control = make_cells(5, n=12)
    pred = control + 0.3
    found = resampled_metrics(pred + cells.mean(axis=0) - control, cells, control, seed=9)
    counts = np.random.default_rng(9).multinomial(12, np.full(12, 1 / 12), size=ceiling.RESAMPLES)
    for row in (0, 57):
        drawn = np.repeat(cells, counts[row], axis=0)
        assert len(drawn) == 12
        for name, metric in METRICS.items():
            expected = metric(pred + cells.mean(axis=0) - control, drawn.mean(axis=0), control)
            assert found[name][row] == pytest.approx(expected, abs=1e-12)


def test_a_resampled_interval_covers_the_value_and_shrinks_with_cells():
    widths = []
    for n in (20, 500):
        cells, control = make_cells(11, n=n)
        pred = control + 0.5
        low, high = np.quantile(resampled_metrics(pred, cells, control)["rmse"], [0.025, 0.975])
        assert low <= METRICS["rmse"](pred, cells.mean(axis=0), control) + 0.05
        widths.append(high - low)
    assert widths[1] < widths[0] / 2
