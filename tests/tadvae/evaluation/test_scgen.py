"""The scGen baseline: its arithmetic against the definition in float64, and what it is for."""

import numpy as np
import pytest
import torch

from tadvae.evaluation.scgen import ScGen, latent_shift

CONTROL, STIMULUS, RARE = 0, 1, 2


def contexts(n_contexts=4, n_genes=12, n_cells=60):
    """Cells of contexts on a circle of states; the stimulus adds to four genes, more in some contexts."""
    rng = np.random.default_rng(0)
    cells = {}
    for c in range(n_contexts):
        base = np.r_[np.full(4, 1.0), np.full(4, 0.5 + 0.5 * c), np.full(4, 2.0 - 0.3 * c)]
        for p in (CONTROL, STIMULUS):
            mean = base + (p == STIMULUS) * np.r_[np.full(4, 1.5), np.zeros(8)]
            n = n_cells if c else 3 * n_cells  # one context with many cells
            cells[c, p] = rng.normal(mean, 0.2, (n, n_genes)).astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def cells():
    return contexts()


@pytest.fixture(scope="module")
def fitted(cells):
    class Small(ScGen):
        WIDTH, LATENT, EPOCHS = 24, 5, 40

    others = {key: each for key, each in cells.items() if key[0] != 3}
    others[1, RARE] = others[1, CONTROL][:9] + 1  # a perturbation of one context
    return Small().fit(cells[3, CONTROL], others, CONTROL), others


def test_the_shift_counts_every_context_once():
    rng = np.random.default_rng(1)
    sizes = [(3, 40), (17, 2), (5, 5)]
    before = [rng.normal(c, 1.0, (a, 4)).astype(np.float32) for c, (a, _) in enumerate(sizes)]
    after = [rng.normal(-c, 2.0, (b, 4)).astype(np.float32) for c, (_, b) in enumerate(sizes)]
    expected = np.zeros(4)
    for x, y in zip(before, after, strict=True):
        for k in range(4):
            expected[k] += (
                sum(float(v) for v in y[:, k]) / len(y) - sum(float(v) for v in x[:, k]) / len(x)
            ) / len(sizes)
    np.testing.assert_allclose(latent_shift(before, after), expected, rtol=1e-12)


def test_prediction_is_the_equation(fitted, cells):
    """``x + D(E(x) + δ) − D(E(x))`` from the weights in float64, batch norm with its running moments."""
    model, others = fitted
    weights = {name: value.double().numpy() for name, value in model._vae.state_dict().items()}

    def layer(x, at):
        x = x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]
        head, number = at.rsplit(".", 1)
        norm = f"{head}.{int(number) + 1}"
        x = (x - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"] + 1e-5)
        x = x * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]
        return np.where(x > 0, x, 0.01 * x)

    def encode(x):
        hidden = layer(layer(x.astype(np.float64), "_hidden.0"), "_hidden.4")
        return hidden @ weights["_mean.weight"].T + weights["_mean.bias"]

    def decode(z):
        hidden = layer(layer(z, "_decoder.0"), "_decoder.4")
        return hidden @ weights["_decoder.8.weight"].T + weights["_decoder.8.bias"]

    shifts = {
        p: np.mean(
            [
                encode(others[c, p]).mean(0) - encode(others[c, CONTROL]).mean(0)
                for c in range(3)
                if (c, p) in others
            ],
            axis=0,
        )
        for p in (STIMULUS, RARE)
    }
    x = cells[3, CONTROL].astype(np.float64)
    for p, shift in [*shifts.items(), (9, np.mean(list(shifts.values()), axis=0))]:
        expected = x + decode(encode(x) + shift) - decode(encode(x))
        np.testing.assert_allclose(model.cells(p), expected, rtol=1e-4, atol=1e-4)


def test_it_carries_the_stimulus_to_an_unseen_context(fitted, cells):
    model, _ = fitted
    before, truth = cells[3, CONTROL].mean(axis=0), cells[3, STIMULUS].mean(axis=0)
    error = np.linalg.norm(model.cells(STIMULUS).mean(axis=0) - truth)
    assert error < 0.3 * np.linalg.norm(before - truth)


def test_it_is_deterministic_and_leaves_the_random_state_alone(cells):
    class Tiny(ScGen):
        WIDTH, LATENT, EPOCHS = 8, 2, 1

    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    some = {key: each[:20] for key, each in cells.items() if key[0] < 2}
    found = [Tiny().fit(cells[3, CONTROL], some, CONTROL).cells(STIMULUS) for _ in range(2)]
    np.testing.assert_array_equal(*found)
    assert torch.equal(torch.random.get_rng_state(), state)
