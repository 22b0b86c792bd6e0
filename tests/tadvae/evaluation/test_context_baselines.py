"""Baselines of contexts against their equations in the primal form."""

import numpy as np

from tadvae.evaluation.baselines import Profiles
from tadvae.evaluation.context_baselines import CONTEXT_BASELINES, ContextKernel, ContextRidge

GENES = [f"g{i}" for i in range(12)]


def profiles(rng, names, genes=GENES, **more):
    control = rng.uniform(1.0, 2.0, len(genes))
    return Profiles(
        control, [(t,) for t in names], control + rng.normal(size=(len(names), len(genes))), genes, **more
    )


def effects(part):
    return {targets[0]: mean - part.control for targets, mean in zip(part.targets, part.means, strict=True)}


def test_context_ridge_by_its_equation():
    rng = np.random.default_rng(0)
    names = [f"T{i}" for i in range(7)]
    others = [profiles(rng, names), profiles(rng, names[1:], [*GENES[1:], "other"])]
    here = profiles(rng, names[:5], elsewhere=others)
    y = effects(here)
    mean = np.mean(list(y.values()), axis=0)
    Y = np.stack([y[t] for t in names[:5]]) - mean
    wide, narrow = [], []
    for other in others:
        found = effects(other)
        centre = np.mean([found[t] for t in names[:5] if t in found], axis=0)
        x = np.stack([found[t] - centre if t in found else np.zeros(len(centre)) for t in names])
        wide.append(x)
        column = dict(zip(other.genes, x.T, strict=True))
        narrow.append(np.stack([column.get(g, np.zeros(len(names))) for g in GENES], axis=1))
    A = np.stack([x[:5].ravel() for x in narrow], axis=1)
    s = np.linalg.lstsq(A, Y.ravel(), rcond=None)[0]
    scaled = sum(a * x for a, x in zip(s, narrow, strict=True))
    X = np.concatenate(wide, axis=1)
    penalty = np.mean(np.sum(X[:5] ** 2, axis=1))
    W = np.linalg.solve(X[:5].T @ X[:5] + penalty * np.eye(X.shape[1]), X[:5].T @ (Y - scaled[:5]))
    expected = here.control + mean + scaled[5:] + X[5:] @ W
    found = ContextRidge().fit(here).predict([("T5",), ("T6",), ("never",)])
    np.testing.assert_allclose(found[:2], expected, rtol=1e-8)
    np.testing.assert_allclose(found[2], here.control + mean)


def test_context_kernel_by_its_equation():
    rng = np.random.default_rng(1)
    others = [profiles(rng, ["A", "B"]), profiles(rng, ["A"]), profiles(rng, ["A", "B"])]
    here = profiles(rng, ["A", "B"], elsewhere=others, new_context=True)
    C = np.stack([other.control for other in others])
    Y = np.stack([effects(other)["A"] for other in others])
    Z = C - C.mean(axis=0)
    inner = Z.T @ Z + 0.3 * np.mean(np.sum(Z**2, axis=1)) * np.eye(len(GENES))
    move = (here.control - C.mean(axis=0)) @ np.linalg.solve(inner, Z.T @ (Y - Y.mean(axis=0)))
    expected = np.maximum(here.control + Y.mean(axis=0) + move, 0.0)
    np.testing.assert_allclose(ContextKernel().fit(here).predict([("A",)])[0], expected, atol=1e-10)


def test_they_apply_where_they_can_predict():
    rng = np.random.default_rng(2)
    other = profiles(rng, ["A", "B", "C"])

    def applied(names, **more):
        part = profiles(rng, names, **more)
        return [each.name for each in CONTEXT_BASELINES if each.applies(part)]

    assert applied(["A", "B"]) == []
    assert applied(["A", "B"], elsewhere=[other]) == ["context_ridge"]
    assert applied(["A", "X"], elsewhere=[other]) == []  # one shared perturbation
    assert applied(["A", "B", "C"], elsewhere=[other]) == []  # nothing new there
    assert applied(["A"], elsewhere=[other, other], new_context=True) == ["context_kernel"]
    assert applied(["A"], elsewhere=[other], new_context=True) == []
