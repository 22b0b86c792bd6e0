"""MMD and energy distance against plain loops and other libraries; invariances; laws under no difference."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from tadvae.evaluation import distances
from tadvae.evaluation.distances import energy_distance, mmd_unbiased
from tadvae.nn.losses import Products, mmd

SEEDS = st.integers(0, 2**32 - 1)


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


def loop_mmd(x, y, bandwidths):
    def kernel(squared):
        return sum(math.exp(-squared / b) for b in bandwidths)

    n, m = len(x), len(y)
    xx = loop_pairs(x, x, kernel, True) / (n * (n - 1))
    yy = loop_pairs(y, y, kernel, True) / (m * (m - 1))
    return xx + yy - 2.0 * loop_pairs(x, y, kernel, False) / (n * m)


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_mmd_by_triple_loop(seed):
    x, y = make_cells(seed)
    bandwidths = [0.5, 3.0, 20.0]
    assert mmd_unbiased(x, y, bandwidths) == pytest.approx(loop_mmd(x, y, bandwidths), abs=1e-12)
    pooled = np.vstack([x, y])
    default = [f * np.median([math.dist(a, b) ** 2 for i, a in enumerate(pooled) for b in pooled[:i]])
               for f in (0.25, 0.5, 1.0, 2.0, 4.0)]  # fmt: skip
    assert distances.median_bandwidths(pooled) == pytest.approx(default)
    assert mmd_unbiased(x, y) == pytest.approx(loop_mmd(x, y, default), abs=1e-12)


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


@pytest.mark.parametrize("distance", [mmd_unbiased, energy_distance])
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
    values = [mmd_unbiased(x, y, bandwidths), energy_distance(x, y)]
    monkeypatch.setattr(distances, "_BLOCK", 5)
    blocked = [mmd_unbiased(x, y, bandwidths), energy_distance(x, y)]
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


@pytest.mark.parametrize("distance", [mmd_unbiased, energy_distance])
def test_one_cell_has_no_unbiased_distance(distance):
    x, y = make_cells(0)
    assert math.isnan(distance(x[:1], y))
    assert math.isnan(distance(x, y[:1]))


def test_identical_cells_do_not_break_the_bandwidth():
    x = np.tile([0.1, 0.7, 0.3], (6, 1))
    assert distances.median_bandwidths(x, factors=[1.0]).tolist() == [1.0]
    assert distances.median_bandwidths(x[:1], factors=[2.0]).tolist() == [2.0]
    assert mmd_unbiased(x, x) == pytest.approx(0.0, abs=1e-12)


def test_median_bandwidth_of_many_cells_is_deterministic_and_close():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (3000, 10))
    assert distances.median_bandwidths(x).tolist() == distances.median_bandwidths(x).tolist()
    assert distances.median_bandwidths(x, factors=[1.0])[0] == pytest.approx(
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


# ---------------------------------------------------------------- against independent implementations


DCOR = """
import json, sys
import numba

numba.guvectorize = lambda *types, **options: lambda function: function  # numba compiles these all the same
import dcor
import numpy as np

x, y = map(np.array, json.load(sys.stdin))
kinds = dcor.EstimationStatistic.V_STATISTIC, dcor.EstimationStatistic.U_STATISTIC
print(json.dumps([float(dcor.energy_distance(x, y, estimation_stat=kind)) for kind in kinds]))
"""


@pytest.mark.slow
def test_energy_distance_is_dcors():
    """In a process that compiles nothing: dcor compiles all its functions when it is imported, for 25 s."""
    x, y = make_cells(6, n=41, m=33, genes=7)
    done = subprocess.run(
        [sys.executable, "-c", DCOR],
        input=json.dumps([x.tolist(), y.tolist()]),
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    for unbiased, expected in zip((False, True), json.loads(done.stdout), strict=True):
        assert energy_distance(x, y, unbiased=unbiased) == pytest.approx(expected, rel=1e-10)


def test_mmd_from_the_kernel_matrices_of_scikit_learn():
    x, y = make_cells(7, n=29, m=37, genes=6)
    ladder = distances.median_bandwidths(y)
    xx, yy, xy = (sum(rbf_kernel(a, b, gamma=1 / w) for w in ladder) for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    assert mmd_unbiased(x, y, ladder) == pytest.approx(within - 2 * xy.mean(), rel=1e-10)


def test_the_loss_of_training_has_the_same_definition():
    """Training needs gradients, evaluation float64 and blocks: two functions, one value."""
    x, y = make_cells(9, n=31, m=17, genes=8)
    bandwidths = distances.median_bandwidths(y)
    products = Products.of(torch.from_numpy(x), torch.from_numpy(y))
    loss = mmd(products, torch.from_numpy(bandwidths), unbiased=True)
    assert mmd_unbiased(x, y, bandwidths) == pytest.approx(float(loss), rel=1e-10)
