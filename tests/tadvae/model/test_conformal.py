"""Conformal calibration against a search by definition, and its promise on simulated errors."""

import numpy as np
import pytest

from tadvae.base.errors import UserError
from tadvae.model.conformal import Calibration, Errors, error_scale, risk_controlling_factor
from tadvae.model.run_folder import RunFolder


def factor_by_search(scores, alpha):
    """Try every score as q, smallest first."""
    for q in sorted({0.0, *(float(s) for each in scores for s in each)}):
        outside = sum(sum(s > q for s in each) / len(each) for each in scores)
        if (1 + outside) / (len(scores) + 1) <= alpha:
            return q
    return float("inf")


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("n", [1, 5, 9, 19, 40])
def test_the_factor_by_search(n, alpha):
    rng = np.random.default_rng(n)
    scores = [np.round(rng.gamma(1.0, 1.0, rng.integers(3, 9)), 1) for _ in range(n)]  # with ties
    assert risk_controlling_factor(scores, alpha) == factor_by_search(scores, alpha)


def test_nine_perturbations_are_the_least_for_90_percent():
    scores = [np.arange(1.0, 5.0)] * 9
    assert np.isfinite(risk_controlling_factor(scores, 0.1))
    assert risk_controlling_factor(scores[:8], 0.1) == np.inf
    assert risk_controlling_factor([], 0.1) == np.inf


def test_scale_and_half_width_by_loop():
    rng = np.random.default_rng(0)
    error, spread = rng.normal(0, 1, (12, 5)) * np.arange(1, 6), rng.gamma(1.0, 0.1, (12, 5))
    error[0, 2] = np.nan  # a gene that a fold's model lacks

    def scale_of(rows):
        known = [e for row in rows for e in row if not np.isnan(e)]
        typical = sum(e * e for e in known) / len(known)
        result = []
        for g in range(5):
            own = [row[g] for row in rows if not np.isnan(row[g])]
            result.append(((sum(e * e for e in own) + 2 * typical) / (len(own) + 2)) ** 0.5)
        return np.array(result)

    assert error_scale(error) == pytest.approx(scale_of(error.tolist()))
    scores = []
    for j in range(12):
        others = [row for i, row in enumerate(error.tolist()) if i != j]
        ratio = np.abs(error[j]) / (scale_of(others) + spread[j])
        scores.append(ratio[~np.isnan(ratio)])
    calibration = Calibration.fit({"a": Errors(error, spread)}, "combo")
    assert calibration.factor == pytest.approx(factor_by_search(scores, 0.1))
    half = calibration.half_width("a", spread[:2])
    assert half == pytest.approx(calibration.factor * (scale_of(error.tolist()) + spread[:2]))


@pytest.mark.parametrize("n", [12, 48])
def test_coverage_is_as_promised_on_average(n):
    """Errors with heavy tails, genes of different noise, genes of one perturbation wrong together."""
    rng = np.random.default_rng(1)
    noise = rng.gamma(1.0, 0.5, 60)
    covered = []
    for _ in range(150):
        error = rng.standard_t(4, (n + 5, 60)) * noise * rng.gamma(3.0, 0.3, (n + 5, 1))
        spread = np.abs(rng.normal(0, 0.2, (n + 5, 60))) * noise
        calibration = Calibration.fit({"a": Errors(error[:n], spread[:n])}, "combo")
        covered.append((np.abs(error[n:]) <= calibration.half_width("a", spread[n:])).mean())
    mean, deviation = np.mean(covered), np.std(covered) / np.sqrt(len(covered))
    assert mean > 0.9 - 3 * deviation
    assert mean < 0.9 + 1 / n + 0.01  # with few perturbations the promise costs width


def test_a_spread_that_was_not_calibrated_does_not_count():
    error = np.random.default_rng(0).normal(0, 1, (12, 3))
    calibration = Calibration.fit({"a": Errors(error, np.zeros((12, 3)))}, "combo")
    expected = calibration.factor * error_scale(error)
    np.testing.assert_array_equal(calibration.half_width("a", np.ones((2, 3))), [expected, expected])


def test_too_few_promise_nothing():
    calibration = Calibration.fit({"a": Errors(np.ones((4, 3)), np.zeros((4, 3)))}, "single")
    assert calibration.factor == np.inf
    assert np.isinf(calibration.half_width("a", np.zeros(3))).all()
    with pytest.raises(ValueError, match="level"):
        Calibration.fit({}, "combo", level=1.0)


def test_saved_and_read_again(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.calibration() is None
    rng = np.random.default_rng(2)
    for n in (4, 20):
        saved = Calibration.fit({"a": Errors(rng.normal(0, 1, (n, 3)), np.zeros((n, 3)))}, "combo")
        folder.write_calibration(saved)
        read = folder.calibration()
        assert (read.level, read.factor, read.n, read.kind) == (saved.level, saved.factor, n, "combo")
        assert read.with_spread == saved.with_spread
        np.testing.assert_array_equal(read.scale["a"], saved.scale["a"])
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(UserError, match="damaged ensemble"):
        folder.calibration()
