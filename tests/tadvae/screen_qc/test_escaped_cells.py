"""The division of cells, against loops written from its description, and its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from tadvae.screen_qc.escaped_cells import GeneMoments, divide_cells, mixture, responding
from tadvae.screen_qc.thresholds import QcConfig

CONFIG = QcConfig()


def screen(n=120, m=200, genes=8, shift=1.5, escaped=0.3, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(1.0, 1.0, (n, genes)), rng.normal(1.0, 1.0, (m, genes))
    gone = rng.random(n) < escaped
    x[~gone] += shift * rng.choice([-1, 1], genes)
    return x, y, gone


def reference(x, y, rounds=10):
    """The algorithm of the docstring, cell by cell."""
    n, m = len(x), len(y)
    for g in range(x.shape[1]):
        spread = np.sqrt((np.var(x[:, g]) * n + np.var(y[:, g]) * m) / (n + m))
        centre = np.mean(y[:, g])
        x[:, g], y[:, g] = (x[:, g] - centre) / spread, (y[:, g] - centre) / spread
    genes = range(x.shape[1])
    covariance = np.array([[0.5 * (a == b) + 0.5 * np.mean(y[:, a] * y[:, b]) for b in genes] for a in genes])
    inverse = np.linalg.inv(np.linalg.cholesky(covariance))
    x, y = np.array([inverse @ each for each in x]), np.array([inverse @ each for each in y])
    r = np.ones(n)
    for _ in range(rounds):
        score = np.zeros(n)
        for i in range(n):
            others = [j for j in range(n) if j != i]
            direction = sum(r[j] * x[j] for j in others)
            whole = sum(r)
            score[i] = x[i] @ direction * (1 / (whole - r[i]))
        d = sum(r[j] * x[j] for j in range(n)) / sum(r)
        new = mixture(score, np.array([each @ d for each in y]))
        done = np.abs(new - r).max() < 1e-3
        r = new
        if done:
            break
    return r


def test_against_the_description():
    x, y, _ = screen(n=40, m=50)
    found = divide_cells(x, y, CONFIG).probability
    np.testing.assert_allclose(found, reference(x.copy(), y.copy()), atol=1e-9)


def test_the_mixture_is_a_maximum_of_its_likelihood():
    rng = np.random.default_rng(1)
    control, score = rng.normal(0, 1, 4000), np.concatenate([rng.normal(0, 1, 500), rng.normal(4, 1.3, 1500)])
    r = mixture(score, control)
    assert r.mean() == pytest.approx(0.75, abs=0.02)
    share, mean, spread = (
        r.mean(),
        r @ score / r.sum(),
        np.sqrt(r @ (score - r @ score / r.sum()) ** 2 / r.sum()),
    )

    def likelihood(share, mean, spread):
        first = (1 - share) * norm.pdf(score, control.mean(), control.std())
        return np.log(first + share * norm.pdf(score, mean, spread)).sum()

    best = likelihood(share, mean, spread)
    for step in (-0.05, 0.05):
        assert best > likelihood(share + step, mean, spread)
        assert best > likelihood(share, mean + 2 * step, spread)
        assert best > likelihood(share, mean, spread + 2 * step)


def test_escaped_cells_are_found():
    x, y, gone = screen()
    found = divide_cells(x, y, CONFIG)
    assert roc_auc_score(~gone, found.probability) > 0.97
    assert found.share_escaped == pytest.approx(gone.mean(), abs=0.06)
    assert np.corrcoef(found.score, ~gone)[0, 1] > 0.8


def test_without_escaped_cells_none_is_found():
    x, y, _ = screen(escaped=0.0, shift=3.0)
    assert divide_cells(x, y, CONFIG).share_escaped < 0.02


@pytest.mark.parametrize(("n", "m", "genes"), [(19, 200, 8), (120, 19, 8), (120, 200, 4)])
def test_too_little_is_not_divided(n, m, genes):
    x, y, _ = screen(n, m, genes)
    found = divide_cells(x, y, CONFIG)
    assert np.isnan(found.probability).all()
    assert np.isnan(found.share_escaped)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 5), st.floats(0, 1), st.sampled_from([0.0, 1e-8, 1.0, 1e6]))
def test_probabilities_are_probabilities(seed, shift, escaped, scale):
    x, y, _ = screen(30, 30, 5, shift, escaped, seed)
    p = divide_cells(x * scale, y * scale, CONFIG).probability
    assert np.isnan(p).all() or ((p >= 0) & (p <= 1)).all()
    units = np.random.default_rng(seed).uniform(0.1, 10, 5)
    np.testing.assert_allclose(divide_cells(x * units, y * units, CONFIG).probability,
                               divide_cells(x, y, CONFIG).probability, atol=1e-6)  # fmt: skip


def test_few_perturbed_cells_are_not_trusted():
    x, y, _ = screen(n=60, escaped=0.9, shift=4.0)
    assert np.isnan(divide_cells(x, y, CONFIG).probability).all()
    assert divide_cells(x, y, QcConfig(min_cells=3)).share_escaped == pytest.approx(0.9, abs=0.08)


def test_a_score_below_the_controls_is_not_more_probable_than_their_mean():
    rng = np.random.default_rng(2)
    control = rng.normal(0, 0.2, 500)
    score = np.concatenate([[-50.0], rng.normal(3, 2, 200), rng.normal(0, 0.2, 100)])
    r = mixture(score, control)
    assert r[0] <= 0.5


def test_responding_genes_against_a_loop():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (50, 30)), rng.normal(0, 1, (80, 30))
    x[:, [4, 9]] += [3.0, -2.0]
    found = responding(GeneMoments.of(x), GeneMoments.of(y), 0.05)
    z = []
    for a, b in zip(x.T, y.T, strict=True):
        pooled = (50 * a.var() + 80 * b.var()) / 130
        z.append((a.mean() - b.mean()) / np.sqrt(pooled / 50 + pooled / 80))
    p = np.array([2 * norm.sf(abs(each)) for each in z])
    order = np.argsort(p)
    passed = [i for i in range(30) if p[order[i]] <= 0.05 * (i + 1) / 30]
    assert found.tolist() == order[: max(passed) + 1].tolist()
    assert found[:2].tolist() == [4, 9]


def test_a_rare_gene_that_a_few_cells_lack_does_not_respond():
    rng = np.random.default_rng(4)
    x, y = np.zeros((40, 2)), np.zeros((4000, 2))
    y[rng.random(4000) < 0.02, 0] = 2.0
    y[rng.random(4000) < 0.12, 1] = 2.0
    assert not len(responding(GeneMoments.of(x), GeneMoments.of(y), 0.01))
    assert not len(responding(GeneMoments.of(x), GeneMoments.of(x), 0.05))
