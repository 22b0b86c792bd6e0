"""Standard errors of the regression of mean effects against plain float64 linear algebra."""

import numpy as np
import pytest

from tadvae.base.filesystem import Location
from tadvae.effects.conditions import Conditions, combination_terms, of_themselves, single_terms
from tadvae.effects.errors import left_out
from tadvae.effects.file import load_effects, save_effects
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.effects.stage import Observed

SIGNS = [1, -1]
N_TARGETS, G = 9, 30
GENES = {0: np.arange(G)}


def observe(rng, *, pairs=16, contexts=(0,), epistasis=0.3, noise=0.1, targets=range(8)):
    """Singles and pairs whose effects are 0.8 times the sum and something of their own."""
    single = rng.normal(size=(N_TARGETS, G))
    both = [(i, j) for i in targets for j in targets if j < i]
    chosen = [both[k] for k in rng.permutation(len(both))[:pairs]]
    asked = [[(t, 0)] for t in targets] + [[(i, 0), (j, 0)] for i, j in chosen]
    truth = [single[t] for t in targets]
    truth += [0.8 * (single[i] + single[j]) + epistasis * rng.normal(size=G) for i, j in chosen]
    n = len(asked) * len(contexts)
    perturbations = asked * len(contexts)
    places = [(0, c) for c in contexts for _ in asked]
    effects = [effect + noise * rng.normal(size=G) for effect in truth * len(contexts)]
    conditions = Conditions.of(places, perturbations, N_TARGETS, SIGNS, dict.fromkeys(contexts, 50))
    variance = {0: np.full(G, 20 * noise**2)}
    controls = {c: np.abs(rng.normal(size=G)) for c in contexts}
    observed = Observed(conditions, effects, np.full(n, 20), GENES, variance, controls)
    return observed, perturbations, np.stack(truth)


def fit(observed):
    return EffectModel.fit(observed, SIGNS, {0: 50, 1: 50}, EffectsConfig(strata=[]))


def covariance(regression, terms, noise, unit):
    """Of training conditions, with their noise."""
    total = sum(v * T for v, T in zip(regression.variances, terms, strict=True))
    return total + np.diag(noise + regression.own + 1e-6 * unit)


@pytest.mark.parametrize("size", [1, 2])
def test_the_posterior_variance_of_the_equation(size):
    """Rasmussen & Williams 2.26, of new conditions and of those of training."""
    observed, perturbations, _ = observe(np.random.default_rng(0))
    model = fit(observed)
    part = observed[np.flatnonzero(observed.conditions.size == size)]
    stage = model.singles if size == 1 else model.combinations
    seen = [p for p in perturbations if len(p) == size][:2]
    known = {frozenset(p) for p in perturbations}
    new = [[(8, 0)]] if size == 1 else [[(i, 0), (j, 0)] for i in range(8) for j in range(i)]
    asked = [*seen, *[p for p in new if frozenset(p) not in known][:3]]
    conditions = Conditions.of([(0, 0)] * len(asked), asked, N_TARGETS, SIGNS, {0: 50})
    everything = conditions.followed_by(stage.conditions)
    if size == 1:
        terms = single_terms(everything, everything)
    else:
        sums = [model._sum(everything[np.array([i])], GENES[0])[0] for i in range(len(everything))]
        near = np.array([[np.exp(-np.sum((a - b) ** 2) / model.spread[0]) for b in sums] for a in sums])
        terms = combination_terms(everything, everything, near)
    q, regression = len(asked), stage.strata[0]
    unit = np.mean(np.stack(part.effects) ** 2)
    K = covariance(
        regression, [T[q:, q:] for T in terms], np.full(len(part.n_cells), 0.01), unit
    )  # fmt: skip
    expected = []
    for i in range(q):
        k = sum(v * T[i, q:] for v, T in zip(regression.variances, terms, strict=True))
        k = k + terms[-1][i, q:] * regression.own
        k0 = sum(v * T[i, i] for v, T in zip(regression.variances, terms, strict=True))
        k0 += terms[-1][i, q:] @ regression.own
        expected.append(np.sqrt(k0 - k @ np.linalg.solve(K, k)))
    got = model.standard_errors(0, 0, asked, GENES[0], widened=False)
    np.testing.assert_allclose(got, np.tile(np.array(expected)[:, None], G), rtol=1e-7)
    assert (got[2:] > got[:2].max()).all()  # what was seen is known better
    factor = (model._errors[size - 1]).strata[0].factor
    widened = model.standard_errors(0, 0, asked, GENES[0])
    np.testing.assert_allclose(widened[2:], np.sqrt(factor) * got[2:], rtol=1e-12)
    np.testing.assert_array_equal(widened[:2], got[:2])  # those were observed


def test_errors_left_out_are_those_of_regressions_without_the_group():
    rng = np.random.default_rng(1)
    n = 9
    root, y, group = rng.normal(size=(n, n)), rng.normal(size=(n, 4)), np.array([3, 0, 1, 0, 2, 1, 4, 0, 5])
    K = root @ root.T + np.eye(n)
    inverse = np.linalg.inv(K)
    errors, variances = left_out(inverse, inverse @ y, group)
    for i in range(n):
        others = np.flatnonzero(group != group[i])
        k = K[i, others]
        solved = np.linalg.solve(K[np.ix_(others, others)], np.column_stack([y[others], k]))
        np.testing.assert_allclose(errors[i], y[i] - k @ solved[:, :-1], atol=1e-9)
        assert variances[i] == pytest.approx(K[i, i] - k @ solved[:, -1], rel=1e-9)


def test_coverage_where_the_model_is_right():
    """Held-out pairs of many screens that follow the regression's own assumptions: 95% are inside."""
    inside = []
    for seed in range(8):
        observed, perturbations, truth = observe(np.random.default_rng(seed), pairs=28)
        kept = np.arange(len(truth) - 6)
        model = fit(observed[kept])
        asked = perturbations[-6:]
        error = truth[-6:] - model.predict(0, 0, asked, GENES[0])
        inside.append(np.abs(error) < 1.96 * model.standard_errors(0, 0, asked, GENES[0]))
    assert 0.92 < np.mean(inside) < 0.99


def test_no_standard_error_where_the_regression_does_not_know_its_own():
    observed, _, _ = observe(np.random.default_rng(2), targets=range(7))
    model = fit(observed)
    asked = [[(0, 0), (8, 0)], [(99, 0)], [(0, 0), (99, 0)], [], [(0, 0), (1, 0)]]
    found = model.standard_errors(0, 0, asked, GENES[0])
    assert np.isnan(found[:4]).all()  # never alone, unknown, unknown, control
    assert np.isfinite(found[4]).all()
    assert np.isnan(model.standard_errors(0, 1, asked, GENES[0])).all()  # no condition in this context
    assert np.isnan(model.standard_errors(0, -1, asked, GENES[0])).all()


def test_all_contexts_of_a_perturbation_are_left_out_at_once():
    """The same pair in another context would make the errors of new pairs look small."""
    observed, _, _ = observe(np.random.default_rng(3), contexts=(0, 1), epistasis=1.0)
    model = fit(observed)
    stratum = model._errors[1].strata[0]
    inverse, weights = stratum.blocks[0].inverse, stratum.blocks[0].block.weights
    one = left_out(inverse, weights, np.arange(len(weights)))[0]
    half = np.arange(len(weights)) % (len(weights) // 2)
    every = left_out(inverse, weights, half)[0]
    assert np.mean(every**2) > 2.0 * np.mean(one**2)


def test_doses_of_a_condition_with_itself_are_those_of_training():
    amounts = np.array([[-2.0, np.nan], [0.0, np.nan], [1.0, np.nan]])
    training = Conditions(np.zeros(3, int), np.zeros(3, int), np.eye(3, dtype=int), np.full(3, 50), amounts)
    expected = [term.diagonal() for term in single_terms(training, training)]
    for at_once in (1, 2, 32):
        found = of_themselves(lambda part: single_terms(part, part, None, training), training, at_once)
        np.testing.assert_allclose(np.stack(found), np.stack(expected), rtol=1e-12)


def test_a_model_from_a_file_has_the_same(tmp_path):
    observed, perturbations, _ = observe(np.random.default_rng(4))
    model = fit(observed)
    save_effects(model, Location.of(str(tmp_path)))
    read = load_effects(Location.of(str(tmp_path)), GENES)
    expected = model.standard_errors(0, 0, perturbations, GENES[0])
    np.testing.assert_allclose(read.standard_errors(0, 0, perturbations, GENES[0]), expected, rtol=1e-4)
    read.observed = None  # as in models of earlier versions
    del read._errors
    assert np.isnan(read.standard_errors(0, 0, perturbations, GENES[0])).all()
