"""The latent-additive baseline against its equation in float64, and what a baseline must do."""

import numpy as np
import pytest
import torch

from tadvae.evaluation.baselines import Profiles
from tadvae.evaluation.latent_additive import LatentAdditive


@pytest.fixture(scope="module")
def profiles():
    rng = np.random.default_rng(3)
    control = rng.gamma(2.0, 0.5, 14)
    effect = {name: rng.normal(0, 0.4, 14) for name in "ABCD"}
    targets = [("A",), ("B",), ("C",), ("D",), ("A", "B"), ("B", "C"), ("C", "D")]
    means = np.maximum(control + np.array([sum(effect[t] for t in key) for key in targets]), 0.0)
    return Profiles(control, targets, means, [f"g{i}" for i in range(14)])


@pytest.fixture(scope="module")
def fitted(profiles):
    return LatentAdditive().fit(profiles)


def by_equation(fitted, control, targets):
    weights = {k: v.double().numpy() for k, v in fitted._network.state_dict().items()}

    def perceptron(name, x):
        hidden = np.maximum(weights[f"{name}.0.weight"] @ x + weights[f"{name}.0.bias"], 0.0)
        return weights[f"{name}.2.weight"] @ hidden + weights[f"{name}.2.bias"]

    code = np.array([1.0 if name in targets else 0.0 for name in "ABCD"])
    total = perceptron("decode", perceptron("encode", control) + perceptron("perturb", code))
    return np.log1p(np.exp(total))


def test_prediction_is_the_equation(profiles, fitted):
    queries = [("A",), ("A", "D"), ("D", "B", "A")]
    for row, query in zip(fitted.predict(queries), queries, strict=True):
        np.testing.assert_allclose(row, by_equation(fitted, profiles.control, query), rtol=1e-5, atol=1e-5)


def test_it_learns_its_training_conditions_and_beats_no_change_on_an_unseen_pair(profiles, fitted):
    error = fitted.predict(profiles.targets) - profiles.means
    assert np.sqrt((error**2).mean()) < 0.15 * np.sqrt(((profiles.control - profiles.means) ** 2).mean())
    means = dict(zip(profiles.targets, profiles.means, strict=True))
    truth = means["A",] + means["D",] - profiles.control
    assert np.linalg.norm(fitted.predict([("A", "D")])[0] - truth) < np.linalg.norm(profiles.control - truth)


def test_it_is_deterministic_and_leaves_the_random_state_alone(profiles, fitted):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    again = LatentAdditive().fit(profiles)
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(again.predict([("A", "D")]), fitted.predict([("D", "A", "A")]))


def test_unknown_targets_change_nothing(profiles, fitted):
    np.testing.assert_array_equal(fitted.predict([(), ("nowhere",)]), np.tile(profiles.control, (2, 1)))
    np.testing.assert_array_equal(fitted.predict([("A", "nowhere")]), fitted.predict([("A",)]))
    empty = LatentAdditive().fit(Profiles(profiles.control, [], np.empty((0, 14)), profiles.genes))
    np.testing.assert_array_equal(empty.predict([("A",)]), profiles.control[None])
