"""The regression of mean effects against plain float64 linear algebra."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import tadvae.effects.model as effects_model
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.effects.conditions import Conditions, combination_terms, nearness, single_terms
from tadvae.effects.file import EFFECTS, load_effects, save_effects
from tadvae.effects.model import UNTESTED_SCALE, EffectModel, EffectsConfig
from tadvae.effects.regression import Block, _Likelihood, _own, fit_regression
from tadvae.effects.stage import Observed

ONE_STRATUM = EffectsConfig(strata=[])
SIGNS = [1, -1]


def random_terms(rng, n, n_terms=3):
    roots = rng.normal(size=(n_terms, n, n))
    return [root @ root.T / n for root in roots]


def posterior(terms, variances, own, noise, effects, prior, scale, new_terms, new_prior):
    """Rasmussen & Williams 2.25, one gene at a time."""
    K = sum(v * T for v, T in zip(variances, terms, strict=True)) + np.diag(noise + own)
    k = sum(v * T for v, T in zip(variances, new_terms, strict=True)) + new_terms[-1] @ np.diag(own)
    columns = [
        scale * new_prior[:, g] + k @ np.linalg.solve(K, effects[:, g] - scale * prior[:, g])
        for g in range(effects.shape[1])
    ]
    return np.stack(columns, axis=1)


def test_weights_are_the_posterior_of_the_equation():
    rng = np.random.default_rng(0)
    n, G = 12, 7
    terms, noise = random_terms(rng, n + 2), rng.uniform(0.05, 0.2, n)
    effects, prior = rng.normal(size=(n, G)), rng.normal(size=(n, G))
    old = [T[:n, :n] for T in terms]
    found = fit_regression(old, noise, [Block(np.arange(G), np.arange(n), effects, prior)])
    new = [T[n:, :n] for T in terms]
    new_prior = rng.normal(size=(2, G))
    noise = noise + 1e-6 * np.mean(effects**2)
    expected = posterior(old, found.variances, found.own, noise, effects, prior, found.scale, new, new_prior)
    assert found.own.any()
    block = found.blocks[0]
    got = found.scale * new_prior + found.covariance(new) @ block.weights
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


def test_likelihood_and_its_gradient():
    rng = np.random.default_rng(1)
    n = 8
    terms, noise = random_terms(rng, n), np.where(np.arange(n) < 4, 0.0, 0.1)
    blocks = [
        Block(np.arange(5), np.arange(n), rng.normal(size=(n, 5)), rng.normal(size=(n, 5))),
        Block(np.arange(5, 8), np.arange(2, 6), rng.normal(size=(4, 3)), rng.normal(size=(4, 3))),
    ]
    problem = _Likelihood(terms, noise, 1.0, blocks, np.arange(n))
    theta = rng.normal(size=4) - 1.0

    def plain(theta):
        K = sum(np.exp(t) * T for t, T in zip(theta[:-1], terms, strict=True))
        K = K + np.diag(np.where(noise > 0, noise, np.exp(theta[-1])) + 1e-6)
        parts = [(np.linalg.inv(K[np.ix_(b.rows, b.rows)]), b) for b in blocks]
        scale = sum(np.trace(b.prior.T @ inv @ b.effects) for inv, b in parts)
        scale /= sum(np.trace(b.prior.T @ inv @ b.prior) for inv, b in parts)
        total = 0.0
        for inv, b in parts:
            residual = b.effects - scale * b.prior
            total += 0.5 * np.trace(residual.T @ inv @ residual)
            total -= 0.5 * residual.shape[1] * np.linalg.slogdet(inv)[1]
        return total / 8

    value, gradient = problem(theta)
    assert value == pytest.approx(plain(theta), rel=1e-9)
    for k, step in enumerate(1e-5 * np.eye(4)):
        slope = (plain(theta + step) - plain(theta - step)) / 2e-5
        assert gradient[k] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_own_variances_are_the_most_likely_ones():
    """Each maximises the likelihood where the others stay: nudging any of them makes the data less likely."""
    rng = np.random.default_rng(7)
    n, G = 9, 60
    root = rng.normal(size=(n, n))
    total = 0.3 * root @ root.T / n + np.diag(rng.uniform(0.1, 0.3, n))
    effects = np.linalg.cholesky(total) @ rng.normal(size=(n, G))
    effects[[1, 5]] += 3.0 * rng.normal(size=(2, G))
    prior = rng.normal(size=(n, G))
    own = _own(total, [Block(np.arange(G), np.arange(n), effects + 0.5 * prior, prior)])

    def loss(own):
        K = total + np.diag(own)
        inverse = np.linalg.inv(K)
        scale = np.trace(prior.T @ inverse @ (effects + 0.5 * prior)) / np.trace(prior.T @ inverse @ prior)
        residual = effects + (0.5 - scale) * prior
        return 0.5 * np.trace(residual.T @ inverse @ residual) + 0.5 * G * np.linalg.slogdet(K)[1]

    assert 6.0 < own[1] < 13.0
    assert 6.0 < own[5] < 13.0
    assert np.median(own) < 0.1
    for i in range(n):
        for nudged in (own[i] + 0.05 + 0.2 * own[i], own[i] * 0.8):
            assert loss(np.where(np.arange(n) == i, nudged, own)) >= loss(own) - 1e-3


def test_one_large_effect_among_small_ones_is_not_shrunk():
    """A stimulus among knock-outs: as sure as any other from its cells, and thirty times as large."""
    rng = np.random.default_rng(8)
    truth = 0.1 * rng.normal(size=(8, 200))
    truth[3] *= 30.0
    effects = [row + 0.3 * rng.normal(size=200) for row in truth]
    genes = {0: np.arange(200), 1: np.arange(0)}
    variance = {0: np.full(200, 0.09), 1: None}
    model = fit(observe([(0, 0)] * 8, [[(t, 0)] for t in range(8)], effects, genes, variance))
    got = model.predict(0, 0, [[(t, 0)] for t in range(8)], genes[0])
    assert np.linalg.norm(got[3] - effects[3]) < 0.02 * np.linalg.norm(effects[3])
    small = np.delete(np.arange(8), 3)
    assert np.linalg.norm(got[small] - truth[small]) < 0.5 * np.linalg.norm(
        np.stack(effects)[small] - truth[small]
    )


def screen(rng, *, n_targets=8, G=30, scale=0.6, noise=0.02, pairs=14, context=0, dataset=0):
    """Singles of every target and some pairs whose effect is a part of the sum."""
    effects = rng.normal(size=(n_targets, G))
    perturbations = [[(t, 0)] for t in range(n_targets)]
    truth = list(effects)
    both = [(i, j) for i in range(n_targets) for j in range(i)]
    for i, j in [both[k] for k in rng.permutation(len(both))[:pairs]]:
        perturbations.append([(i, 0), (j, 0)])
        truth.append(scale * (effects[i] + effects[j]))
    observed = [effect + noise * rng.normal(size=G) for effect in truth]
    return [(dataset, context)] * len(truth), perturbations, observed, np.stack(truth)


def observe(places, perturbations, effects, genes, variance=None, n_cells=1):
    conditions = Conditions.of(places, perturbations, 8, SIGNS, {0: 50, 1: 50})
    return Observed(
        conditions, effects, np.full(len(effects), n_cells), genes, variance or {0: None, 1: None}
    )


def fit(observed, config=ONE_STRATUM):
    return EffectModel.fit(observed, SIGNS, {0: 50, 1: 50}, config)


def test_held_out_pairs_are_the_scaled_sum():
    rng = np.random.default_rng(2)
    places, perturbations, effects, truth = screen(rng)
    genes = {0: np.arange(30), 1: np.arange(0)}
    train = np.arange(len(effects) - 4)
    model = fit(observe([places[i] for i in train], [perturbations[i] for i in train],
                        [effects[i] for i in train], genes))  # fmt: skip
    assert model.combinations.strata[0].scale == pytest.approx(0.6, abs=0.05)
    got = model.predict(0, 0, perturbations[-4:], genes[0])
    for row, expected in zip(got, truth[-4:], strict=True):
        assert np.corrcoef(row, expected)[0, 1] > 0.97
        assert np.linalg.norm(row - expected) < 0.3 * np.linalg.norm(expected)


def test_without_combinations_the_scaled_sum_and_without_noise_the_observation():
    rng = np.random.default_rng(3)
    places, perturbations, effects, _ = screen(rng, pairs=0)
    genes = {0: np.arange(30), 1: np.arange(0)}
    model = fit(observe(places, perturbations, effects, genes, {0: np.full(30, 1e-7), 1: None}))
    got = model.predict(0, 0, [[(2, 0)], [(2, 0), (5, 0)]], genes[0])
    np.testing.assert_allclose(got[0], effects[2], atol=1e-3)
    np.testing.assert_allclose(got[1], UNTESTED_SCALE * (effects[2] + effects[5]), atol=2e-3)


def test_few_cells_are_shrunk_towards_what_all_have_in_common():
    rng = np.random.default_rng(4)
    common = rng.normal(size=40)
    truth = common + 0.3 * rng.normal(size=(8, 40))
    effects = [row + rng.normal(size=40) for row in truth]  # one cell, variance 1
    genes = {0: np.arange(40), 1: np.arange(0)}
    model = fit(
        observe([(0, 0)] * 8, [[(t, 0)] for t in range(8)], effects, genes, {0: np.ones(40), 1: None})
    )
    got = model.predict(0, 0, [[(t, 0)] for t in range(8)], genes[0])
    assert np.sum((got - truth) ** 2) < 0.5 * np.sum((np.stack(effects) - truth) ** 2)


def test_a_gene_is_learned_from_the_datasets_that_measure_it_alone():
    rng = np.random.default_rng(5)
    places, perturbations, effects, _ = screen(rng, pairs=6)
    genes = {0: np.arange(30), 1: np.arange(20, 40)}
    other = [rng.normal(size=20) for _ in range(8)]
    both = observe(
        places + [(1, 1)] * 8, perturbations + [[(t, 1)] for t in range(8)], effects + other, genes
    )
    model = fit(both)
    got = model.predict(1, 1, [[(3, 1)]], np.arange(40))[0]
    blocks = model.singles.strata[0].blocks
    assert sorted((block.genes[0], len(block.rows)) for block in blocks) == [(0, 8), (20, 16), (30, 8)]
    # genes 30–39 only dataset 1 measures: its own rows decide, whatever dataset 0 saw
    changed = [10 * effect for effect in effects]
    again = EffectModel.fit(
        observe(places + [(1, 1)] * 8, perturbations + [[(t, 1)] for t in range(8)], changed + other, genes),
        SIGNS, {0: 50, 1: 50}, ONE_STRATUM,
    )  # fmt: skip
    for block in again.singles.strata[0].blocks:
        if block.genes[0] == 30:
            assert set(again.singles.conditions.dataset[block.rows]) == {1}
    assert np.isfinite(got).all()
    assert np.any(got[:20])  # dataset 0 lends its genes to a context that did not measure them


def test_no_evidence_of_sharing_means_little_is_carried_to_a_new_dataset():
    rng = np.random.default_rng(6)
    places, perturbations, effects, _ = screen(rng, pairs=0)
    genes = {0: np.arange(30), 1: np.arange(30)}
    model = fit(observe(places, perturbations, effects, genes))
    here = model.predict(0, 0, [[(1, 0)]], genes[0])[0]
    new = model.predict(1, -1, [[(1, 0)]], genes[0])[0]
    assert 0.0 < np.linalg.norm(new) < 0.7 * np.linalg.norm(here)


def test_unknown_targets_add_what_any_perturbation_does():
    rng = np.random.default_rng(7)
    common = 2.0 * rng.normal(size=30)
    effects = [common + 0.1 * rng.normal(size=30) for _ in range(7)]
    genes = {0: np.arange(30), 1: np.arange(0)}
    model = fit(observe([(0, 0)] * 7, [[(t, 0)] for t in range(7)], effects, genes))
    unseen, beyond, two = model.predict(0, 0, [[(7, 0)], [(99, 0)], [(99, 0), (7, 0)]], genes[0])
    np.testing.assert_allclose(unseen, common, atol=0.4)
    np.testing.assert_allclose(beyond, unseen, atol=1e-8)
    np.testing.assert_allclose(two, unseen, atol=1e-8)  # the mean of the two


def test_combinations_with_a_target_never_alone_lean_on_the_mean_of_their_parts(monkeypatch):
    places, perturbations, effects, _ = screen(np.random.default_rng(2))
    genes = {0: np.arange(30), 1: np.arange(0)}
    seen = next(pairs for pairs in perturbations if len(pairs) == 2)
    never = seen[0]  # alone in no condition, while combinations have it
    kept = [i for i, pairs in enumerate(perturbations) if pairs != [never]]
    columns = (places, perturbations, effects)
    model = fit(observe(*([column[i] for i in kept] for column in columns), genes))
    asked = [[never, (99, 0)], [never, seen[1], (99, 0)], seen]

    def predicted(unsure):
        monkeypatch.setattr(effects_model, "UNSURE_COMBINATIONS", unsure)
        return model.predict(0, 0, asked, genes[0])

    stage, parts, found = predicted(0), predicted(1e15), predicted(10)
    for row, pairs in zip(parts[:2], asked, strict=False):
        alone = model.predict(0, 0, [[one] for one in pairs], genes[0])
        np.testing.assert_allclose(row, alone.mean(axis=0), atol=1e-8)
    n = len(model.combinations.conditions)
    np.testing.assert_allclose(found[:2], (n * stage[:2] + 10 * parts[:2]) / (n + 10), atol=1e-8)
    np.testing.assert_array_equal(found[2], stage[2])  # training has seen it
    np.testing.assert_array_equal(parts[2], stage[2])


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-1, 2), st.sets(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=12,
    ),
    st.integers(0, 2**31),
)
def test_every_term_is_symmetric_and_positive_semidefinite(rows, seed):
    rng = np.random.default_rng(seed)
    pairs = [[(t, int(rng.integers(2))) for t in targets] for *_, targets in rows]
    # contexts belong to one dataset
    places = [(d, -1 if c < 0 else 3 * d + c) for d, c, _ in rows]
    of = Conditions.of(places, pairs, 6, SIGNS, {c: 5 + c for c in range(9)})
    sums = rng.normal(size=(len(rows), 4))
    near = nearness(sums, sums, np.ones(len(rows)))
    single = of[np.flatnonzero(of.size <= 1)]
    for term in [*single_terms(single, single), *combination_terms(of, of, near)]:
        if not term.size:
            continue
        np.testing.assert_allclose(term, term.T)
        assert np.linalg.eigvalsh(term).min() > -1e-8


@pytest.mark.parametrize("variance", [None, np.full(120, 4e-4)])
def test_round_trip_and_damage(tmp_path, variance):
    rng = np.random.default_rng(8)
    places, perturbations, effects, _ = screen(rng, G=120)
    effects[0] = 10.0 * effects[0]
    genes = {0: np.arange(120), 1: np.arange(0)}
    model = fit(observe(places, perturbations, effects, genes, {0: variance, 1: None}), EffectsConfig())
    assert len(model.singles.strata) == 3
    assert all(stratum.own.any() == (variance is not None) for stratum in model.singles.strata)
    save_effects(model, Location.of(tmp_path))
    loaded = load_effects(Location.of(tmp_path), genes)
    asked = [*perturbations, [(0, 0), (1, 0), (2, 0)], [(9, 0)]]
    np.testing.assert_allclose(
        loaded.predict(0, 0, asked, genes[0]), model.predict(0, 0, asked, genes[0]), atol=1e-4
    )
    data = (tmp_path / EFFECTS).read_bytes()
    (tmp_path / EFFECTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="missing or damaged"):
        load_effects(Location.of(tmp_path), genes)
    (tmp_path / EFFECTS).unlink()
    with pytest.raises(UserError, match="missing or damaged"):
        load_effects(Location.of(tmp_path), genes)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("singles.0.0.weights", lambda array: array.__setitem__((0, 0), np.nan)),
        ("singles.0.0.rows", lambda array: array.__setitem__(0, 99)),
        ("singles.0.0.rows", lambda array: array.__setitem__(0, -1)),
        ("singles.0.0.genes", lambda array: array.__setitem__(0, 9)),
        ("singles.0.variances", lambda array: array.__setitem__(0, np.inf)),
        ("singles.dataset", lambda array: array.__setitem__(0, 7)),
        ("singles.targets", lambda array: array.__setitem__((0, 0), 5)),
        ("spread", lambda array: array.__setitem__(0, np.nan)),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, refused, name, change):
    """Also those of someone who made the checksums anew."""
    genes = {0: np.arange(5), 1: np.arange(0)}
    seen = [[(0, 0)], [(1, 0)], [(2, 0)], *[[(0, 0), (1, 0)]] * 3]
    model = fit(observe([(0, 0)] * 6, seen, list(np.random.default_rng(1).normal(size=(6, 5))), genes))
    save_effects(model, Location.of(tmp_path))
    load_effects(Location.of(tmp_path), genes)
    arrays = {key: array.copy() for key, array in load_file(tmp_path / EFFECTS).items()}
    change(arrays[name])
    with safe_open(tmp_path / EFFECTS, "np") as file:
        about = file.metadata()
    save_file(arrays, tmp_path / EFFECTS, metadata=about)
    assert "missing or damaged" in refused(load_effects, Location.of(tmp_path), genes)


def test_nothing_to_learn_is_no_change():
    genes = {0: np.arange(5), 1: np.arange(0)}
    still = fit(observe([(0, 0)] * 3, [[(t, 0)] for t in range(3)], [np.zeros(5)] * 3, genes))
    assert not still.predict(0, 0, [[(1, 0)], [(0, 0), (1, 0)]], genes[0]).any()


def test_a_single_condition_is_learned():
    genes = {0: np.arange(5), 1: np.arange(0)}
    one = fit(observe([(0, 0)], [[(0, 0)]], [np.ones(5)], genes))
    own, other = one.predict(0, 0, [[(0, 0)], [(1, 0)]], genes[0])
    assert (own > 0.5).all()
    assert (own <= 1).all()
    assert (other > 0).all()
    assert (other < own).all()


def test_the_network_has_a_say_between_what_was_seen():
    genes = {0: np.arange(5), 1: np.arange(5)}
    asked = [[(0, 0)], [(1, 0)], [(2, 0)], [(0, 0), (1, 0)], [(1, 0), (0, 0)]]
    seen = [[(0, 0)], [(1, 0)], *[[(0, 0), (1, 0)]] * 3]
    places = [(0, 0), (0, 0), (0, 0), (0, 1), (0, 2)]
    model = fit(observe(places, seen, [np.ones(5)] * 5, genes))
    assert model.is_between(0, 0, asked).tolist() == [False, False, True, False, False]
    assert model.is_between(0, 1, asked).tolist() == [True, True, True, False, False]
    assert not model.is_between(0, -1, asked).any()  # a context that training has not seen
    assert not model.is_between(1, 0, asked).any()
