"""Losses against loops in float64 and closed forms; schedules at their corners."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.distributions import Normal
from torch.distributions import kl_divergence as exact_kl

from tadvae.nn.losses import (
    LossConfig,
    Products,
    Schedule,
    _distances,
    kl_divergence,
    median_bandwidths,
    mmd,
    published_bandwidths,
)

SEEDED = settings(max_examples=40, deadline=None, derandomize=True)


def slow_kernel(a, b, bandwidths):
    distance = 0.0
    for i in range(len(a)):
        distance += (a[i] - b[i]) ** 2
    return sum(math.exp(-distance / bandwidth) for bandwidth in bandwidths)


def slow_mmd(x, y, bandwidths, unbiased):
    """Three loops: over one set, the other, and the genes."""

    def mean(a, b, skip):
        total, n = 0.0, 0
        for i in range(len(a)):
            for j in range(len(b)):
                if skip and i == j:
                    continue
                total, n = total + slow_kernel(a[i], b[j], bandwidths), n + 1
        return total / n

    return mean(x, x, unbiased) + mean(y, y, unbiased) - 2 * mean(x, y, False)


def squared_distances(x, y):
    products = Products.of(x, y)
    return _distances(products.xx.diagonal(), products.yy.diagonal(), products.xy)


def draw(n, genes, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, genes, generator=generator, dtype=torch.float64) + shift


@SEEDED
@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 6), st.booleans(), st.integers(0, 99))
def test_mmd_equation(n, m, genes, unbiased, seed):
    x, y = draw(n, genes, seed), draw(m, genes, seed + 100, shift=0.5)
    bandwidths = 0.3 * 2.0 ** torch.arange(4, dtype=torch.float64)
    expected = slow_mmd(x.tolist(), y.tolist(), bandwidths.tolist(), unbiased)
    found = mmd(Products.of(x, y), bandwidths, unbiased=unbiased)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    swapped = mmd(Products.of(y, x), bandwidths, unbiased=unbiased)
    assert swapped.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    single = mmd(Products.of(x.float(), y.float()), bandwidths.float(), unbiased=unbiased)
    assert single.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_mmd_gradient(unbiased):
    x, y = draw(3, 4, 0).requires_grad_(), draw(4, 4, 1)
    bandwidths = torch.tensor([4.0, 8.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: mmd(Products.of(x, y), bandwidths, unbiased=unbiased), (x,))


@SEEDED
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3), st.booleans())
def test_padding_changes_no_mmd(sizes, unbiased):
    """Sets of several sizes in one padded array have the MMD and the gradient that they have alone."""
    most = max(max(pair) for pair in sizes) + 1
    x, y = torch.full((len(sizes), most, 3), 7.0), torch.full((len(sizes), most, 3), -9.0)
    n, m = (torch.tensor(each) for each in zip(*sizes, strict=True))
    for i, (n_x, n_y) in enumerate(sizes):
        x[i, :n_x], y[i, :n_y] = draw(n_x, 3, i), draw(n_y, 3, 50 + i, shift=0.5)
    x, y, real = x.double().requires_grad_(), y.double(), torch.arange(most)
    weights = {
        f"weight_{name}": (real < k[:, None]).double() / k[:, None] for name, k in (("x", n), ("y", m))
    }
    found = mmd(Products.of(x, y), None, unbiased=unbiased, **weights)
    for i, (n_x, n_y) in enumerate(sizes):
        if unbiased and min(n_x, n_y) < 2:
            continue
        own = x[i, :n_x].detach().clone().requires_grad_()
        alone = mmd(Products.of(own, y[i, :n_y]), None, unbiased=unbiased)
        torch.testing.assert_close(found[i], alone)
        expected = torch.zeros_like(x[0])
        expected[:n_x] = torch.autograd.grad(alone, own)[0]
        torch.testing.assert_close(torch.autograd.grad(found[i], x, retain_graph=True)[0][i], expected)


def test_published_bandwidths():
    expected = [31.25, 62.5, 125.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0]
    assert published_bandwidths(1000.0).tolist() == expected
    assert published_bandwidths(200.0).tolist() == pytest.approx([value / 5 for value in expected])


def test_published_kernel_is_10_on_the_diagonal():
    bandwidths = published_bandwidths(1000.0).double()
    x, y = draw(1, 3, 0), draw(1, 3, 0) + 1e4  # too far apart for any of the bandwidths
    assert mmd(Products.of(x, x), bandwidths, unbiased=False).item() == pytest.approx(0.0, abs=1e-12)
    assert mmd(Products.of(x, y), bandwidths, unbiased=False).item() == pytest.approx(20.0)
    many = 1e4 * torch.arange(4, dtype=torch.float64)[:, None].expand(4, 3)  # each cell is alone
    assert mmd(Products.of(many, many + 1e6), bandwidths, unbiased=False).item() == pytest.approx(20.0 / 4)


def test_biased_mmd_has_a_floor_and_unbiased_has_none():
    """Two samples of one distribution: the biased MMD of Zhang et al. tends to 2(10 − k̄)/B, not to 0."""
    n, genes, bandwidths = 16, 50, published_bandwidths(100.0).double()
    pairs = [(draw(n, genes, 2 * i), draw(n, genes, 2 * i + 1)) for i in range(300)]
    unbiased = np.array([mmd(Products.of(x, y), bandwidths, unbiased=True).item() for x, y in pairs])
    biased = np.array([mmd(Products.of(x, y), bandwidths, unbiased=False).item() for x, y in pairs])
    error = unbiased.std() / math.sqrt(len(pairs))
    assert abs(unbiased.mean()) < 4 * error
    assert unbiased.min() < 0 < unbiased.max()
    distance = torch.cat([squared_distances(x, y).flatten() for x, y in pairs])
    typical = torch.exp(-distance[None] / bandwidths[:, None]).sum(0).mean().item()
    assert biased.mean() == pytest.approx(2 * (10 - typical) / n, abs=4 * error)
    assert biased.mean() > 20 * error
    moved = np.array([mmd(Products.of(x, y + 0.5), bandwidths, unbiased=True).item() for x, y in pairs[:50]])
    assert moved.min() > unbiased.max()


@SEEDED
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_squared_distances(n, m, genes, seed):
    x, y = draw(n, genes, seed), draw(m, genes, seed + 100)
    expected = [
        [sum((a - b) ** 2 for a, b in zip(r, s, strict=True)) for s in y.tolist()] for r in x.tolist()
    ]
    np.testing.assert_allclose(squared_distances(x, y).numpy(), expected, rtol=1e-9, atol=1e-12)
    assert (squared_distances(x.float(), x.float()) >= 0).all()


@pytest.mark.parametrize("n", [2, 3, 6, 7])  # odd numbers of pairs: one median
def test_median_bandwidths(n):
    x = draw(n, 5, n)
    pairs = [((x[i] - x[j]) ** 2).sum().item() for i, j in combinations(range(n), 2)]
    expected = np.median(pairs) * np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    found = median_bandwidths(squared_distances(x, x))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)
    assert found.dtype == torch.float64


def test_median_bandwidths_without_a_distance():
    assert median_bandwidths(torch.zeros(1, 1)).tolist() == [0.25, 0.5, 1.0, 2.0, 4.0]
    alike = torch.ones(4, 3)
    assert (median_bandwidths(squared_distances(alike, alike)) > 0).all()
    assert mmd(Products.of(alike, alike), None, unbiased=True).item() == pytest.approx(0.0, abs=1e-5)


@SEEDED
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_kl_closed_form(n, factors, seed):
    mean, log_variance = draw(n, factors, seed), draw(n, factors, seed + 100)
    exact = exact_kl(Normal(mean, log_variance.mul(0.5).exp()), Normal(0.0, 1.0))  # (n, K)
    found = kl_divergence(mean, log_variance)
    assert found.item() == pytest.approx(exact.sum(1).mean().item(), rel=1e-10, abs=1e-12)
    assert kl_divergence(torch.zeros(n, factors), torch.zeros(n, factors)).item() == 0.0


ALPHA = Schedule(high=10.0, start=5, end=49)  # of the discrepancy VAE (Zhang et al. 2023), over 100 epochs
BETA = Schedule(high=2.0, start=10, end=99)
TEMPERATURE = Schedule(low=1.0, high=100.0, start=5, end=99)


@pytest.mark.parametrize(
    ("schedule", "corners"),
    [
        (ALPHA, {0: 0, 4: 0, 5: 0, 16: 2.5, 27: 5, 49: 10, 50: 10, 99: 10, 1000: 10}),
        (BETA, {0: 0, 9: 0, 10: 0, 54.5: 1, 99: 2, 100: 2}),
        (TEMPERATURE, {0: 1, 4: 1, 4.99: 1, 5: 1, 52: 50.5, 99: 100}),
        (Schedule(), {0: 1, 7: 1}),  # constant
        (Schedule(low=3.0, high=1.0, end=4), {0: 3, 1: 2.5, 4: 1, 9: 1}),  # downwards
        (Schedule(low=1.0, high=2.0, start=6, end=6), {0: 1, 5.999: 1, 6: 2, 7: 2}),  # a step
    ],
)
def test_schedule_corners(schedule, corners):
    assert {epoch: schedule.at(epoch) for epoch in corners} == pytest.approx(corners)


@SEEDED
@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 50), st.floats(0, 50), st.floats(0, 200))
def test_schedule_is_defined_everywhere(low, high, start, length, epoch):
    value = Schedule(low=low, high=high, start=start, end=start + length).at(epoch)
    assert min(low, high) - 1e-9 <= value <= max(low, high) + 1e-9


def test_config_refuses_negative_weights():
    for bad in ({"sparsity": -1.0}, {"sigma": 0.0}, {"mean_match": -0.1}, {"alpha": {"end": -1}}):
        with pytest.raises(ValidationError):
            LossConfig(**bad)
