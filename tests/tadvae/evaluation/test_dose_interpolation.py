"""The baseline of doses against a line written by hand in float64."""

import numpy as np
import pytest

from tadvae.evaluation.baselines import Profiles
from tadvae.evaluation.dose_interpolation import DoseInterpolation, interpolate

NAN = np.nan
CONTROL = np.array([1.0, 2.0])
EFFECT = {0.1: np.array([0.0, 1.0]), 1.0: np.array([2.0, 3.0]), 100.0: np.array([4.0, 4.0])}


def profiles(amounts=True):
    targets = [("A",)] * 3 + [("B",)]
    means = CONTROL + np.stack([*EFFECT.values(), np.array([1.0, -1.0])])
    logs = np.log([[0.1, NAN], [1.0, NAN], [100.0, NAN], [1.0, NAN]])
    return Profiles(CONTROL, targets, means, ["g", "h"], amounts=logs if amounts else None)


def at(dose, time=NAN):
    return np.log([[dose, time]])


@pytest.mark.parametrize(
    ("dose", "expected"),
    [
        (1.0, EFFECT[1.0]),
        (10.0, (EFFECT[1.0] + EFFECT[100.0]) / 2),
        (0.1 ** (2 / 3), (2 * EFFECT[0.1] + EFFECT[1.0]) / 3),
        (0.001, EFFECT[0.1]),
        (5000.0, EFFECT[100.0]),
    ],
)
def test_a_line_over_the_logarithm_of_the_dose(dose, expected):
    found = DoseInterpolation().fit(profiles()).predict([("A",)], at(dose))
    np.testing.assert_allclose(found[0], CONTROL + expected, rtol=1e-12)


def test_other_targets():
    fitted = DoseInterpolation().fit(profiles())
    single = fitted.predict([("A",), ("B",), ("C",), ()], np.log([[10.0, NAN]] * 4)) - CONTROL
    pair, unknown = fitted.predict([("A", "B"), ("B", "C")], np.log([[10.0, NAN]] * 2)) - CONTROL
    np.testing.assert_allclose(pair, single[0] + single[1])
    np.testing.assert_allclose(single[1], [1.0, -1.0])
    np.testing.assert_allclose(single[2], fitted.mean_delta)
    np.testing.assert_allclose(unknown, single[1] + fitted.mean_delta)
    assert not single[3].any()
    without = fitted.predict([("A",)]) - CONTROL
    np.testing.assert_allclose(without[0], np.mean(list(EFFECT.values()), axis=0))


def test_times():
    """Doses of the nearest time are compared; without doses, the line is over time."""
    effects = np.array([[0.0], [10.0], [4.0], [8.0]])
    amounts = np.log([[1.0, 6.0], [1.0, 24.0], [100.0, 6.0], [100.0, 24.0]])
    np.testing.assert_allclose(interpolate(amounts, effects, at(10.0, 7.0)[0]), [2.0])
    np.testing.assert_allclose(interpolate(amounts, effects, at(10.0, 20.0)[0]), [9.0])
    np.testing.assert_allclose(interpolate(amounts[:2], effects[:2], at(NAN, 12.0)[0]), [5.0])  # √(6·24)
    times = np.column_stack([[NAN, NAN], amounts[:2, 1]])
    np.testing.assert_allclose(interpolate(times, effects[:2], at(1.0, 12.0)[0]), [5.0])


def test_repeated_doses_are_averaged():
    amounts = np.log([[1.0, NAN], [1.0, NAN], [10.0, NAN]])
    np.testing.assert_allclose(interpolate(amounts, np.array([[1.0], [3.0], [6.0]]), at(1.0)[0]), [2.0])


def test_it_applies_where_there_are_doses():
    assert DoseInterpolation.applies(profiles())
    assert not DoseInterpolation.applies(profiles(amounts=False))
    with pytest.raises(ValueError, match=r"amounts: expected shape \(4, 2\)"):
        Profiles(CONTROL, [("A",)] * 4, np.zeros((4, 2)), ["g", "h"], amounts=np.zeros((3, 2)))
