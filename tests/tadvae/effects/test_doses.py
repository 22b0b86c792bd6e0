"""Mean effects at several doses: the kernels by definition, doses between and beyond those of training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.base.filesystem import Location
from tadvae.effects.conditions import (
    MARGIN,
    N_MIDPOINTS,
    SLOPES,
    Conditions,
    combination_terms,
    curve_term,
    single_terms,
)
from tadvae.effects.file import load_effects, save_effects
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.effects.stage import Observed

DOSES = np.array([0.01, 0.1, 1.0, 10.0])
N_TARGETS, G = 8, 40


def conditions_of(pairs, places=None):
    return Conditions.of(places or [(0, 0)] * len(pairs), pairs, N_TARGETS, [0], {0: 50})


def share(dose, midpoint):
    return dose**1.5 / (dose**1.5 + midpoint**1.5)


@pytest.fixture(scope="module")
def world():
    """Targets with a direction and a half-maximal dose each; noisy effects at four doses."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=G)
    direction = 0.5 * common + rng.normal(size=(N_TARGETS, G))
    midpoint = np.exp(rng.uniform(np.log(0.05), np.log(2.0), N_TARGETS))
    keys = [(t, d) for t in range(N_TARGETS) for d in DOSES]
    effects = [share(d, midpoint[t]) * direction[t] + 0.05 * rng.normal(size=G) for t, d in keys]
    return keys, effects, direction, midpoint


def fit(keys, effects):
    conditions = conditions_of([[(t, 0, np.log(d), np.nan)] for t, d in keys])
    variance = {0: np.full(G, 0.1)}
    observed = Observed(
        conditions, list(effects), np.full(len(keys), 40), {0: np.arange(G)}, variance, {0: np.zeros(G)}
    )
    return EffectModel.fit(observed, [0], {0: 50}, EffectsConfig(strata=[]))


def test_the_kernel_by_definition():
    rng = np.random.default_rng(1)
    logs = rng.normal(size=(6, 2))
    logs[1, 0] = logs[2, 1] = logs[5, 0] = np.nan
    b = conditions_of([[(0, 0, *row)] for row in logs])
    a = conditions_of([[(0, 0, *row)] for row in [[9.0, 0.1], [np.nan, 0.2], [-9.0, np.nan]]])
    found = curve_term(a, b)
    for i in range(len(a)):
        for j in range(len(b)):
            expected = 1.0
            for k in range(2):
                known = logs[~np.isnan(logs[:, k]), k]
                half = np.exp(np.linspace(known.min() - MARGIN, known.max() + MARGIN, N_MIDPOINTS))
                products = []
                for n in SLOPES:
                    for e in half:
                        x, y = (np.exp(each) for each in (a.amounts[i, k], b.amounts[j, k]))
                        h = [1.0 if np.isnan(d) else d**n / (d**n + e**n) for d in (x, y)]
                        products.append(h[0] * h[1])
                expected *= np.mean(products)
            np.testing.assert_allclose(found[i, j], expected, rtol=1e-10)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_every_term_is_positive_semi_definite(seed):
    rng = np.random.default_rng(seed)
    logs = np.where(rng.random((7, 2)) < 0.3, np.nan, rng.normal(size=(7, 2)))
    pairs = [[(int(rng.integers(3)), 0, *row)] for row in logs]
    places = [(int(rng.integers(2)), int(rng.integers(2))) for _ in pairs]
    conditions = conditions_of(pairs, places)
    for term in (
        *single_terms(conditions, conditions),
        *combination_terms(conditions, conditions, np.ones((7, 7))),
    ):
        np.testing.assert_allclose(term, term.T, atol=1e-12)
        assert np.linalg.eigvalsh(term).min() > -1e-9


def test_without_doses_there_are_no_more_terms():
    plain = Conditions.of([(0, 0)] * 2, [[(0, 0)], [(1, 0)]], N_TARGETS, [0], {0: 50})
    assert len(single_terms(plain, plain)) == 8
    assert len(combination_terms(plain, plain, np.ones((2, 2)))) == 5


def test_a_dose_between_those_of_training_is_predicted_better_than_by_interpolation(world):
    keys, effects, direction, midpoint = world
    left = [i for i, (t, d) in enumerate(keys) if (d, t % 2) not in ((0.1, 0), (1.0, 1))]
    model = fit([keys[i] for i in left], [effects[i] for i in left])
    errors = []
    for t in range(N_TARGETS):
        dose = 0.1 if t % 2 == 0 else 1.0
        truth = share(dose, midpoint[t]) * direction[t]
        found = model.predict(0, 0, [[(t, 0, np.log(dose), np.nan)]], np.arange(G))[0]
        low, high = (effects[keys.index((t, d))] for d in (dose / 10, dose * 10))
        errors.append([np.linalg.norm(each - truth) for each in (found, (low + high) / 2, low, high)])
    ours, between, low, high = np.mean(errors, axis=0)
    assert ours < 0.9 * between < 0.5 * min(low, high)


def test_effects_saturate_beyond_the_doses_of_training(world):
    keys, effects, *_ = world
    model = fit(keys, effects)
    asked = [[(2, 0, np.log(d), np.nan)] for d in (10.0, 1e3, 1e6, 0.01, 1e-6)]
    high, more, most, low, least = model.predict(0, 0, asked, np.arange(G))
    np.testing.assert_allclose(more, most, atol=0.03)
    assert np.linalg.norm(more - high) < 0.3 * np.linalg.norm(high)
    assert np.linalg.norm(least) < 0.2 * np.linalg.norm(high)
    assert np.linalg.norm(least - low) < 0.3 * np.linalg.norm(high)


def test_a_new_dose_is_between_and_a_trained_one_is_not(world):
    keys, effects, *_ = world
    model = fit(keys, effects)
    asked = [[(1, 0, np.log(d), np.nan)] for d in (0.1, 0.3)] + [[(1, 0)]]
    assert model.is_between(0, 0, asked).tolist() == [False, True, True]


def test_combinations_have_the_single_effects_at_their_dose(world):
    keys, effects, *_ = world
    model = fit(keys, effects)
    logs = [np.log(0.05), np.log(5.0)]
    pairs = [[(0, 0, each, np.nan), (3, 0, each, np.nan)] for each in logs]
    found = model.predict(0, 0, pairs, np.arange(G))
    for row, each in zip(found, logs, strict=True):
        parts = model.predict(0, 0, [[(t, 0, each, np.nan)] for t in (0, 3)], np.arange(G))
        np.testing.assert_allclose(row, 0.7 * parts.sum(axis=0), rtol=1e-9)


def test_doses_are_saved(world, tmp_path):
    keys, effects, *_ = world
    model = fit(keys, effects)
    save_effects(model, Location.of(tmp_path))
    again = load_effects(Location.of(tmp_path), model.genes)
    asked = [[(t, 0, np.log(0.3), np.nan)] for t in range(N_TARGETS)]
    np.testing.assert_allclose(
        again.predict(0, 0, asked, np.arange(G)), model.predict(0, 0, asked, np.arange(G)), atol=1e-4
    )
    np.testing.assert_array_equal(again.observed.conditions.amounts, model.observed.conditions.amounts)
