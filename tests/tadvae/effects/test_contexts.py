"""Contexts that learn from each other, against plain float64 refits."""

import numpy as np
import pytest

from tadvae.base.filesystem import Location
from tadvae.effects.conditions import Conditions
from tadvae.effects.file import load_effects, save_effects
from tadvae.effects.known_targets import target_similarity
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.effects.new_contexts import PENALTY, ContextEffects, context_weights
from tadvae.effects.stage import Observed
from tadvae.effects.targets_elsewhere import PENALTIES, _Field, stacked
from tadvae.pathways.membership import Membership


def ridge(x, y, new, penalty):
    """Ridge regression with an unpenalised mean, in the primal form."""
    centre, mean = x.mean(axis=0), y.mean(axis=0)
    z = x - centre
    scale = penalty * np.trace(z @ z.T) / len(z)
    return mean + (new - centre) @ np.linalg.solve(z.T @ z + scale * np.eye(z.shape[1]), z.T @ (y - mean))


def test_context_weights_are_the_ridge_of_the_equation():
    rng = np.random.default_rng(0)
    controls, effects, new = rng.normal(size=(4, 6)), rng.normal(size=(4, 5)), rng.normal(size=6)
    weights = context_weights(controls, new)
    assert weights.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(weights @ effects, ridge(controls, effects, new, PENALTY), atol=1e-10)
    np.testing.assert_allclose(context_weights(np.ones((3, 6)), new), 1 / 3)


def test_new_context_scales_are_least_squares_over_left_out_contexts():
    rng = np.random.default_rng(1)
    n_contexts, n_targets, G = 5, 3, 8
    controls = rng.normal(size=(n_contexts, G))  # below zero: no bound
    context = np.repeat(np.arange(n_contexts), n_targets)
    targets = np.tile(np.eye(n_targets, dtype=np.int64), (n_contexts, 1))
    effects = rng.normal(size=(len(context), G)) - 0.4 * controls[context]
    found = ContextEffects.fit(controls, effects, context, targets)

    def parts(used, new):
        old = controls[used]
        p = np.stack(
            [
                ridge(
                    old,
                    np.stack([effects[(context == c) & (targets[:, t] == 1)][0] for c in used]),
                    new,
                    PENALTY,
                )
                for t in range(n_targets)
            ]
        )
        rest = new - ridge(old, old, new, PENALTY)
        return [np.stack([p.mean(axis=0), each - p.mean(axis=0), rest]) for each in p]

    rows, y = [], []
    for c in range(n_contexts):
        for t, part in enumerate(parts([o for o in range(n_contexts) if o != c], controls[c])):
            rows.append(part.T)
            y.append(effects[(context == c) & (targets[:, t] == 1)][0])
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(y), rcond=None)[0]
    np.testing.assert_allclose(found.scales, expected, rtol=1e-6)
    new = rng.normal(size=G)
    asked = np.array([[0, 1, 0], [1, 1, 0]])
    known, predicted = found.predict(new, asked)
    assert known.tolist() == [True, False]
    np.testing.assert_allclose(predicted[0], expected @ parts(list(range(n_contexts)), new)[1], rtol=1e-6)


def test_expression_of_a_new_context_is_never_below_zero():
    rng = np.random.default_rng(2)
    controls = rng.uniform(0.0, 1.0, (4, 30))
    found = ContextEffects.fit(controls, -2.0 * controls, np.arange(4), np.ones((4, 1), np.int64))
    new = rng.uniform(0.0, 1.0, 30)
    _, effects = found.predict(new, np.ones((1, 1), np.int64))
    assert (effects >= -new).all()


@pytest.mark.parametrize("sizes", [(5, 7), (5,)])
def test_stacked_predictions_refit_without_each_condition(sizes):
    """The coefficients and the penalty again, with every training condition really left out."""
    rng = np.random.default_rng(3)
    n, q, G = 9, 2, 5
    x = [rng.normal(size=(n + q, g)) for g in sizes]
    x = [each - each[:n].mean(axis=0) for each in x]
    y = 0.5 * x[0][:n] + 0.2 * x[-1][:n, :G] + 0.3 * rng.normal(size=(n, G)) + 1.0
    left_out, posterior = y + rng.normal(size=(n, G)), rng.normal(size=(q, G))
    fields = [_Field(each[:, :G], each @ each[:n].T, np.ones(n + q, bool)) for each in x]

    def fit(z, y, new, scale):
        centre, mean = z.mean(axis=0), y.mean(axis=0)
        inner = (z - centre).T @ (z - centre) + scale * np.eye(z.shape[1])
        return mean + (new - centre) @ np.linalg.solve(inner, (z - centre).T @ (y - mean))

    every = np.concatenate(x, axis=1)  # the genes of all other contexts
    kinds = [*x, every] if len(x) > 1 else x
    best = None
    for penalty in PENALTIES:
        rows, goal = [], []
        scales = [penalty * np.mean(np.sum(each[:n] ** 2, axis=1)) for each in kinds]
        for i in range(n):
            o = np.delete(np.arange(n), i)
            mean = y[o].mean(axis=0)
            kernels = [fit(each[o], y[o], each[i], s) - mean for each, s in zip(kinds, scales, strict=True)]
            for z in x:
                kernels.append(fit(every[o], z[o, :G], every[i], scales[-1]) - z[o, :G].mean(axis=0))
            rows.append(np.stack([left_out[i] - mean, *(each[i, :G] for each in x), *kernels], axis=1))
            goal.append(y[i] - mean)
        A, b = np.concatenate(rows), np.concatenate(goal)
        coefficients, error = np.linalg.lstsq(A, b, rcond=None)[:2]
        if best is None or error[0] < best[0]:
            best = (error[0], coefficients, scales)
    _, coefficients, scales = best
    mean = y.mean(axis=0)
    parts = [posterior - mean, *(each[n:, :G] for each in x)]
    parts += [fit(each[:n], y, each[n:], s) - mean for each, s in zip(kinds, scales, strict=True)]
    parts += [fit(every[:n], z[:n, :G], every[n:], scales[-1]) for z in x]
    expected = mean + sum(c * part for c, part in zip(coefficients, parts, strict=True))
    np.testing.assert_allclose(stacked(y, left_out, posterior, fields), expected, rtol=1e-4, atol=1e-4)


def two_contexts(rng, n_targets=20, G=40, noise=0.3):
    """Two datasets with one context each, whose effects are alike; the last two targets only in the first."""
    common = rng.normal(size=(n_targets, G))
    places = [(0, 0)] * n_targets + [(1, 1)] * (n_targets - 2)
    pairs = [[(t, 0)] for t in range(n_targets)] + [[(t, 0)] for t in range(n_targets - 2)]
    effects = [common[p[0][0]] * (1.0 if d == 0 else -0.7) for p, (d, _) in zip(pairs, places, strict=True)]
    effects = [effect + noise * rng.normal(size=G) for effect in effects]
    conditions = Conditions.of(places, pairs, n_targets, [1], {})
    genes = {0: np.arange(G), 1: np.arange(G)}
    observed = Observed(conditions, effects, np.ones(len(places)), genes, {0: None, 1: None})
    return observed, -0.7 * common[-2:]


def test_a_target_tested_elsewhere_is_predicted_better_and_survives_a_file(tmp_path):
    observed, truth = two_contexts(np.random.default_rng(4))
    asked, genes = [[(18, 0)], [(19, 0)]], observed.genes[1]
    with_contexts, without = (
        EffectModel.fit(observed, [1], {}, EffectsConfig(contexts=each, strata=[])) for each in (True, False)
    )
    predicted = with_contexts.predict(1, 1, asked, genes)
    errors = [np.sum((p - truth) ** 2) for p in (predicted, without.predict(1, 1, asked, genes))]
    assert errors[0] < 0.5 * errors[1]
    assert not with_contexts.is_between(1, 1, asked).any()
    assert without.is_between(1, 1, asked).all()
    save_effects(with_contexts, Location.of(tmp_path))
    loaded = load_effects(Location.of(tmp_path), observed.genes)
    np.testing.assert_allclose(loaded.predict(1, 1, asked, genes), predicted, atol=1e-5)
    part = genes[::3]
    np.testing.assert_allclose(with_contexts.predict(1, 1, asked, part), predicted[:, ::3])


def test_effects_of_other_contexts_do_not_depend_on_the_contexts_part():
    observed, _ = two_contexts(np.random.default_rng(5))
    models = [EffectModel.fit(observed, [1], {}, EffectsConfig(contexts=c, strata=[])) for c in (True, False)]
    asked = [[(0, 0)], [(3, 0), (4, 0)]]
    first, second = (model.predict(0, 0, asked, observed.genes[0]) for model in models)
    np.testing.assert_array_equal(first, second)


def test_a_new_context_uses_its_controls(tmp_path):
    rng = np.random.default_rng(6)
    G, n = 30, 5
    controls = rng.uniform(0.5, 2.0, (n + 1, 2)) @ rng.uniform(0.0, 1.0, (2, G))
    effects = 0.5 * controls + 0.01 * rng.normal(size=(n + 1, G))
    observed = Observed(
        Conditions.of([(0, c) for c in range(n)], [[(0, 0)]] * n, 1, [1], dict.fromkeys(range(n), 50)),
        list(effects[:n]),
        np.full(n, 50),
        {0: np.arange(G)},
        {0: np.full(G, 1e-4)},
        dict(enumerate(controls[:n])),
    )
    model = EffectModel.fit(observed, [1], {}, EffectsConfig(strata=[]))
    predicted = model.predict(0, -1, [[(0, 0)]], np.arange(G), controls[n])
    assert np.linalg.norm(predicted[0] - effects[n]) < 0.3 * np.linalg.norm(effects[:n].mean(0) - effects[n])
    save_effects(model, Location.of(tmp_path))
    loaded = load_effects(Location.of(tmp_path), observed.genes)
    again = loaded.predict(0, -1, [[(0, 0)]], np.arange(G), controls[n])
    np.testing.assert_allclose(again, predicted, atol=1e-4)


def test_similarity_of_targets_by_definition():
    pathway, gene = [0, 0, 1, 1, 1, 2, 2], [0, 1, 0, 2, 3, 2, 3]
    member = Membership(["a", "b", "c"], ["a", "b", "c"], np.array(pathway), np.array(gene), 6)
    found = target_similarity(member, [0, 2, -1, 5])
    a, b, c = np.log(6 / np.array([2, 3, 2]))
    expected = np.zeros((4, 4))
    expected[0, 0] = expected[1, 1] = 1.0
    expected[0, 1] = expected[1, 0] = b / np.sqrt((a + b) * (b + c))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_unseen_target_is_like_those_that_share_its_pathways():
    rng = np.random.default_rng(7)
    G, n = 60, 16
    kind = np.arange(n) % 2
    common = rng.normal(size=(2, G))
    similar = (kind[:, None] == kind[None]).astype(float)
    pairs = [[(t, 0)] for t in range(n - 2)]
    observed = Observed(
        Conditions.of([(0, 0)] * len(pairs), pairs, n, [1], {0: 100}),
        [common[kind[t]] + 0.1 * rng.normal(size=G) for t in range(n - 2)],
        np.full(len(pairs), 100),
        {0: np.arange(G)},
        {0: np.full(G, 1.0)},
    )
    asked = [[(n - 2, 0)], [(n - 1, 0)]]
    model = EffectModel.fit(observed, [1], {0: 100}, EffectsConfig(strata=[]), similar)
    predicted = model.predict(0, 0, asked, np.arange(G))
    assert np.linalg.norm(predicted - common) < 0.2 * np.linalg.norm(common)
    config = EffectsConfig(strata=[], pathways=False)
    plain = EffectModel.fit(observed, [1], {0: 100}, config, similar).predict(0, 0, asked, np.arange(G))
    np.testing.assert_allclose(plain[0], plain[1])
