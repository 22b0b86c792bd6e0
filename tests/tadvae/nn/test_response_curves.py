"""Curves of dose and time against the Hill equation in float64."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tadvae.nn.response_curves import ResponseCurves

CENTRE, SCALE = np.array([-1.5, 3.0]), np.array([2.0, 0.7])


def curves_of(rng, used=(True, True), n_targets=4):
    curves = ResponseCurves(n_targets, np.array(used), CENTRE, SCALE)
    with torch.no_grad():
        for value in curves.parameters():
            value.copy_(torch.from_numpy(rng.normal(size=value.shape)))
    return curves


def hill(dose, curves, amount, target):
    """d^n / (d^n + e^n) with the slope and the half-maximal dose in natural units."""
    log_slope, midpoint = curves.shared[amount].detach().numpy().astype(np.float64)
    if target < curves.own.shape[1]:
        own = curves.own[amount, target].detach().numpy().astype(np.float64)
        log_slope, midpoint = log_slope + own[0], midpoint + own[1]
    n = np.exp(log_slope) / SCALE[amount]
    e = np.exp(CENTRE[amount] + SCALE[amount] * midpoint)
    return dose**n / (dose**n + e**n)


def test_the_factor_is_the_product_of_hill_curves():
    rng = np.random.default_rng(0)
    curves = curves_of(rng)
    target = np.array([0, 3, 1, 1, 7])  # the last one is beyond the vocabulary
    doses, times = np.exp(rng.normal(-1.0, 1.0, 5)), np.exp(rng.normal(3.0, 0.5, 5))
    found = curves(torch.from_numpy(target), torch.from_numpy(np.log(np.stack([doses, times], 1))).float())
    expected = [
        hill(d, curves, 0, t) * hill(h, curves, 1, t) for d, h, t in zip(doses, times, target, strict=True)
    ]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5)


def test_what_is_not_given_or_not_read_is_one():
    rng = np.random.default_rng(1)
    curves, dose_alone = curves_of(rng), curves_of(rng, (True, False))
    target = torch.tensor([0, 1])
    nothing = torch.full((2, 2), torch.nan)
    assert curves(target, nothing).tolist() == [1.0, 1.0]
    time_alone = torch.tensor([[torch.nan, 3.0], [torch.nan, 2.0]])
    assert dose_alone(target, time_alone).tolist() == [1.0, 1.0]
    assert (curves(target, time_alone) < 1.0).all()
    curves(target, nothing).sum().backward()
    assert torch.isfinite(curves.own.grad).all()


@given(st.integers(0, 100), st.floats(-6, 3), st.floats(0.01, 4))
def test_more_never_has_less_effect_and_all_saturate(seed, log_dose, step):
    curves = curves_of(np.random.default_rng(seed))
    logs = torch.tensor([[log_dose, torch.nan], [log_dose + step, torch.nan], [500.0, torch.nan]])
    low, high, most = curves(torch.tensor([2, 2, 2]), logs).tolist()
    assert 0.0 <= low <= high <= most <= 1.0
    assert most > 0.999 or curves.shared.abs().max() > 3


def test_the_deviation_is_the_mean_square_of_the_targets_own_part():
    curves = curves_of(np.random.default_rng(2))
    own = curves.own.detach().numpy().astype(np.float64)
    np.testing.assert_allclose(curves.deviation().item(), np.mean(own**2), rtol=1e-6)
    assert ResponseCurves(0, np.array([True, True]), CENTRE, SCALE).deviation().item() == 0.0
