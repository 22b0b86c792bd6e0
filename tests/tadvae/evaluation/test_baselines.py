"""Every baseline against plain loops written from its definition; invariances; degenerate training."""

import itertools
from dataclasses import replace as replaced

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_baselines import by_definition, linear_by_definition, ridge_by_definition

from tadvae.evaluation.baselines import BASELINES, Additive, AdditiveRidge, Profiles, fit_all

SEEDS = st.integers(0, 2**32 - 1)
NAMES = ["T0", "T1", "T2", "T3", "T4", "T5"]
DOUBLES = [("T0", "T1"), ("T2", "T0"), ("T1", "T2"), ("T3", "T1"), ("T2", "T3"), ("T0", "T3"), ("T4", "T0")]
QUERIES = [
    ("T0",),  # a seen single
    ("unseen",),
    ("T3", "T4"),  # an unseen pair of seen singles
    ("T0", "T1"),  # a training condition
    ("T5", "T0"),  # T5 is known from no single, only perhaps from a combination
    ("T0", "T2", "T4"),
    ("unseen", "other"),
]


def make_profiles(
    seed, genes=9, singles=("T0", "T1", "T2", "T3", "T4"), combinations=tuple(DOUBLES), extra=()
):
    """Effects that shrink and shift in combination, so that plain addition is wrong."""
    rng = np.random.default_rng(seed)
    control = rng.gamma(2.0, 0.5, genes)
    effect = {name: rng.normal(0, 0.5, genes) for name in NAMES}
    bias = rng.normal(0, 0.1, genes)
    targets = [(name,) for name in singles] + list(combinations) + list(extra)
    means = []
    for condition in targets:
        total = sum(effect[name] for name in condition)
        means.append(
            control + (total if len(condition) == 1 else 0.6 * total + bias) + rng.normal(0, 0.05, genes)
        )
    target_gene = {
        "T0": "g1",
        "T1": "g4",
        "T2": "g0",
        "T3": "nowhere",
        "T4": None,
        "T5": "g7",
        "unseen": "g2",
    }
    names = [f"g{i}" for i in range(genes)]
    return Profiles(control, targets, np.reshape(means, (-1, genes)), names, target_gene)


# ---------------------------------------------------------------- each against its definition, by loops


@pytest.mark.parametrize("name", ["no_change", "mean", "matching_mean", "additive"])
@given(seed=SEEDS)
def test_simple_baselines_by_loop(seed, name):
    profiles = make_profiles(seed, extra=(("T5", "T1"), ("T0", "T1", "T2")))
    predicted = BASELINES[name]().fit(profiles).predict(QUERIES)
    for row, query in zip(predicted, QUERIES, strict=True):
        assert row == pytest.approx(by_definition(name, profiles, query))


@settings(deadline=None, max_examples=25)
@given(SEEDS)
def test_additive_ridge_by_refitting_without_each_combination(seed):
    profiles = make_profiles(seed, genes=5, extra=(("T0", "T1", "T3"), ("T5", "T1")))
    baseline = AdditiveRidge().fit(profiles)
    expected, (scale, penalty) = ridge_by_definition(profiles, QUERIES)
    assert baseline.predict(QUERIES) == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert (baseline.scale, baseline.penalty) == pytest.approx((scale or 1.0, penalty or np.inf))


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_linear_by_the_closed_form(seed):
    profiles = make_profiles(seed, genes=15)
    expected = linear_by_definition(profiles, QUERIES)
    assert BASELINES["linear"]().fit(profiles).predict(QUERIES) == pytest.approx(expected, rel=1e-6, abs=1e-8)


# ---------------------------------------------------------------- additive_ridge


def test_additive_ridge_is_plain_addition_when_effects_add_up():
    profiles = make_profiles(1)
    singles = {n: m - profiles.control for n, m in zip(NAMES, profiles.means[:5], strict=False)}
    noise = np.random.default_rng(0).normal(0, 0.05, profiles.means.shape) * [
        [len(t) > 1] for t in profiles.targets
    ]
    sums = np.array([sum(singles[t] for t in targets) for targets in profiles.targets])
    noisy = replaced(profiles, means=profiles.control + sums + noise)
    fitted = AdditiveRidge().fit(noisy)
    assert (fitted.scale, fitted.penalty) == (1.0, np.inf)
    assert (fitted.predict(QUERIES) == Additive().fit(noisy).predict(QUERIES)).all()


def test_additive_ridge_recovers_a_scale_and_a_bias():
    rng = np.random.default_rng(4)
    names, genes = [f"T{i}" for i in range(10)], 40
    control, bias = rng.gamma(2.0, 0.5, genes), rng.normal(0, 0.3, genes)
    effect = {name: rng.normal(0, 0.5, genes) for name in names}
    pairs = list(itertools.combinations(names, 2))
    rng.shuffle(pairs)
    pairs = [tuple(pair) for pair in pairs]
    targets = [(name,) for name in names] + pairs[:25]
    combined = {pair: control + 0.4 * (effect[pair[0]] + effect[pair[1]]) + bias for pair in pairs}
    means = [control + effect[t[0]] if len(t) == 1 else combined[t] for t in targets]
    profiles = Profiles(control, targets, np.array(means), [f"g{i}" for i in range(genes)])
    fitted = AdditiveRidge().fit(profiles)
    assert fitted.scale == pytest.approx(0.4, abs=1e-6)
    assert fitted.predict(pairs[25:]) == pytest.approx(np.array([combined[p] for p in pairs[25:]]), abs=1e-6)


@pytest.mark.parametrize("combinations", [(), DOUBLES[:1], DOUBLES[:3]])
def test_additive_ridge_with_few_combinations_is_additive(combinations):
    profiles = make_profiles(2, combinations=combinations)
    fitted = AdditiveRidge().fit(profiles)
    assert (fitted.predict(QUERIES) == Additive().fit(profiles).predict(QUERIES)).all()
    assert (fitted.scale, fitted.penalty) == (1.0, np.inf)


def test_additive_ridge_learns_only_a_bias_when_all_sums_are_alike():
    rng = np.random.default_rng(0)
    control, effect, bias = rng.gamma(2.0, 0.5, 6), rng.normal(0, 0.5, 6), rng.normal(0, 0.5, 6)
    names = ["T0", "T1", "T2", "T3"]
    pairs = list(itertools.combinations(names, 2))
    means = np.array([control + effect] * 4 + [control + 2 * effect + bias] * 6)
    means += rng.normal(0, 1e-15, means.shape)  # alike up to rounding
    profiles = Profiles(control, [(n,) for n in names] + pairs, means, list("abcdef"))
    fitted = AdditiveRidge().fit(profiles)
    assert fitted.predict([("T0", "T3")]) == pytest.approx((control + 2 * effect + bias)[None])
    assert (fitted.scale, fitted.penalty) == (1.0, np.inf)


# ---------------------------------------------------------------- what every baseline must do


@pytest.mark.parametrize("name", BASELINES)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_order_and_repetition_change_nothing(name, seed):
    profiles = make_profiles(seed, extra=(("T0", "T1", "T2"),))
    expected = BASELINES[name]().fit(profiles).predict(QUERIES)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(profiles.targets))
    shuffled = replaced(
        profiles,
        targets=[tuple(rng.permutation(profiles.targets[i]).tolist()) for i in order],
        means=profiles.means[order],
    )
    turned = [tuple(reversed(query)) + query[:1] for query in QUERIES]
    assert (BASELINES[name]().fit(shuffled).predict(turned) == expected).all()


@pytest.mark.parametrize("name", BASELINES)
@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_genes_in_another_order_give_the_same_predictions_in_that_order(name, seed):
    profiles = make_profiles(seed, genes=15)
    order = np.random.default_rng(seed).permutation(15)
    permuted = replaced(
        profiles,
        control=profiles.control[order],
        means=profiles.means[:, order],
        genes=[profiles.genes[i] for i in order],
    )
    expected = BASELINES[name]().fit(profiles).predict(QUERIES)[:, order]
    assert BASELINES[name]().fit(permuted).predict(QUERIES) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", BASELINES)
def test_repeated_conditions_count_once_as_their_mean(name):
    profiles = make_profiles(3)
    merged = replaced(profiles, means=np.vstack([profiles.means[:-1], profiles.means[-1:] + 0.1]))
    doubled = replaced(
        profiles,
        targets=[*profiles.targets, profiles.targets[-1][::-1]],
        means=np.vstack([profiles.means, profiles.means[-1:] + 0.2]),
    )
    expected = BASELINES[name]().fit(merged).predict(QUERIES)
    assert BASELINES[name]().fit(doubled).predict(QUERIES) == pytest.approx(expected, rel=1e-6, abs=1e-8)


TRAININGS = {
    "none": {"singles": (), "combinations": ()},
    "one single": {"singles": ("T0",), "combinations": ()},
    "one double": {"singles": (), "combinations": DOUBLES[:1]},
    "doubles only": {"singles": (), "combinations": DOUBLES},
    "singles only": {"combinations": ()},
    "everything": {},
}


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("genes", [1, 3, 40])
@pytest.mark.parametrize("name", BASELINES)
def test_any_training_gives_finite_predictions(name, genes, training):
    profiles = make_profiles(5, genes=genes, **TRAININGS[training])
    predicted = BASELINES[name]().fit(profiles).predict(QUERIES)
    assert predicted.shape == (len(QUERIES), genes)
    assert predicted.dtype == np.float64
    assert np.isfinite(predicted).all()
    if training == "none":
        assert (predicted == profiles.control).all()


@pytest.mark.parametrize("name", BASELINES)
def test_training_without_any_effect_predicts_the_control(name):
    profiles = make_profiles(6)
    silent = replaced(profiles, means=np.tile(profiles.control, (len(profiles.targets), 1)))
    assert BASELINES[name]().fit(silent).predict(QUERIES) == pytest.approx(np.tile(profiles.control, (7, 1)))


@pytest.mark.parametrize("name", BASELINES)
def test_no_target_is_the_control_and_no_query_an_empty_answer(name):
    profiles = make_profiles(7)
    fitted = BASELINES[name]().fit(profiles)
    assert (fitted.predict([()]) == profiles.control).all()
    assert fitted.predict([]).shape == (0, 9)


@pytest.mark.parametrize("name", ["additive", "additive_ridge"])
def test_a_seen_single_is_its_own_profile_and_an_unseen_one_the_mean_single(name):
    profiles = make_profiles(8)
    fitted, singles = BASELINES[name]().fit(profiles), profiles.means[:5]
    assert fitted.predict(profiles.targets[:5]) == pytest.approx(singles)
    assert fitted.predict([("unseen",)])[0] == pytest.approx(singles.mean(axis=0))


@pytest.mark.parametrize("name", BASELINES)
def test_predict_keeps_the_training_data_and_can_be_refitted(name):
    profiles = make_profiles(10)
    control, means = profiles.control.copy(), profiles.means.copy()
    fitted = BASELINES[name]().fit(profiles)
    first = fitted.predict(QUERIES)
    assert (fitted.predict(QUERIES) == first).all()
    assert (profiles.control == control).all()
    assert (profiles.means == means).all()
    fitted.fit(make_profiles(11, combinations=()))
    assert (fitted.fit(profiles).predict(QUERIES) == first).all()


def test_registry_names():
    expected = ["no_change", "mean", "matching_mean", "additive", "additive_ridge", "linear"]
    assert list(BASELINES) == expected
    profiles = make_profiles(12)
    assert [(name, b.name) for name, b in fit_all(profiles).items()] == [(name, name) for name in expected]
    assert list(fit_all(profiles, ["linear", "mean"])) == ["linear", "mean"]


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"means": np.zeros((2, 9))}, "means: expected shape"),
        ({"control": np.zeros(4)}, "means: expected shape"),
        ({"genes": ["g0"] * 9}, "different"),
        ({"genes": ["g0"]}, "expected 9 different keys"),
        ({"means": np.full((12, 9), np.nan)}, "NaN"),
        ({"control": np.full(9, np.inf)}, "NaN or infinite"),
        ({"targets": [(), *[("T0",)] * 11]}, "needs a target"),
        ({"targets": ["T0"] * 12}, "got the string"),
        ({"control": np.zeros(0), "means": np.zeros((12, 0)), "genes": []}, "no genes"),
    ],
)
def test_profiles_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        replaced(make_profiles(0), **changes)


def test_predict_before_fit_and_a_bare_string():
    with pytest.raises(RuntimeError, match="call fit"):
        Additive().predict([("T0",)])
    with pytest.raises(ValueError, match="tuple of target names"):
        Additive().fit(make_profiles(0)).predict(["T0"])
