"""Effects of targets in a context that tested them not, from the contexts that did.

For a context with n training conditions of one target, effects Y (n, G) and their mean ȳ, the effect of
another target is predicted by::

    ȳ + a·(p − ȳ) + Σ_o (s_o x_o + w_o f_o(Y − ȳ) + r_o f(X_o)) + w f(Y − ȳ)
    f_o(Z) = k_o (K_o + λI)⁻¹ Z,    K_o = X_o X_oᵀ,    f(Z) = Σ_o k_o (Σ_o K_o + λI)⁻¹ Z

``p`` is the prediction of the regression of all conditions (:mod:`tadvae.effects.model`), ``x_o`` the effect
of the target in another context o, minus the mean of the effects there over the same training targets; the
kernels use all genes that o measures. With ``r = −w s``, the last terms are a kernel ridge regression of what
the effects in other contexts leave (:class:`tadvae.evaluation.context_baselines.ContextRidge`). The
coefficients are the least-squares ones for the predictions of every training condition from the others (leave
one out), in which λ, in units of the mean diagonal, has the least error. A target that o did not test has
``x_o = 0`` and ``k_o = 0``.

Source: stacked regressions (Breiman 1996); leave-one-out errors of kernel ridge regression in closed form:
Hastie, Tibshirani and Friedman 2009, section 7.10.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tadvae.effects.conditions import Conditions, Floats

PENALTIES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Candidates of λ."""
CONDITIONS_PER_CONTEXT = 6
"""Training conditions of a context for each other context that is used; each has two coefficients."""
MOST_CONTEXTS = 8
"""Largest number of other contexts that are used for one, those that share most targets with it."""
MOST_CONDITIONS = 3_000
"""Contexts with more conditions keep the regression of all conditions: the time grows with their cube."""
SHARED_GENES = 10
"""Other contexts that measure fewer genes of a context are not used."""


@dataclass(frozen=True)
class Elsewhere:
    """Predicted effects of conditions that were tested in other contexts only.

    Attributes
    ----------
    conditions
        The k conditions, of one target each.
    effects
        Effect of each on the genes of its dataset, (G_d,).
    """

    conditions: Conditions
    effects: list[Floats]

    def rows(self, asked: Conditions) -> np.ndarray:
        """Row of each of q conditions, −1 where it has none; (q,)."""
        at = {key: i for i, key in enumerate(_keys(self.conditions))}
        return np.array([at.get(key, -1) for key in _keys(asked)], np.int64)


def fit_elsewhere(
    conditions: Conditions,
    effects: Sequence[Floats],
    left_out: Sequence[Floats],
    genes: Mapping[int, np.ndarray],
    predict: Callable[[Conditions, np.ndarray], Floats],
) -> Elsewhere:
    """Predict every target in the contexts that did not test it.

    Parameters
    ----------
    conditions
        The n training conditions, of one target each.
    effects, left_out
        Observed effects, and their predictions by the regression of all other conditions, (G_d,) each.
    genes
        Sorted vocabulary indices of the genes of each dataset.
    predict
        The regression's effects of some conditions on some genes, (q, G).
    """
    found: list[Conditions] = []
    values: list[Floats] = []
    places: dict[tuple[int, int], dict[tuple[int, int], int]] = {}
    for i, (dataset, context, *key) in enumerate(_keys(conditions)):
        places.setdefault((dataset, context), {}).setdefault((key[0], key[1]), i)
    for place, tested in sorted(places.items()):
        panel = genes[place[0]]
        n = len(tested)
        others = sorted(
            (
                (-len(tested.keys() & there.keys()), other)
                for other, there in places.items()
                if other != place
                and len(np.intersect1d(panel, genes[other[0]], assume_unique=True)) >= SHARED_GENES
            ),
        )
        chosen = [o for shared, o in others if -shared >= CONDITIONS_PER_CONTEXT]
        chosen = chosen[: min(n // CONDITIONS_PER_CONTEXT, MOST_CONTEXTS)]
        asked = sorted({key for o in chosen for key in places[o]} - tested.keys())
        if not asked or n > MOST_CONDITIONS:
            continue
        here = list(tested.values())
        names = [*tested, *asked]
        targets = np.zeros((len(asked), conditions.targets.shape[1]), np.int64)
        for row, (target, sign) in zip(targets, asked, strict=True):
            row[target] = sign
        like = conditions[np.repeat(here[:1], len(asked))]  # the same place
        new = Conditions(like.dataset, like.context, targets, like.n_controls)
        fields = [
            _Field.of(
                names,
                n,
                {key: effects[i] for key, i in places[o].items()},
                np.searchsorted(genes[o[0]], panel),
                np.isin(panel, genes[o[0]]),
            )
            for o in chosen
        ]
        observed = np.stack([effects[i] for i in here])
        out = np.stack([left_out[i] for i in here])
        found.append(new)
        values.extend(stacked(observed, out, predict(new, panel), fields))
    if not found:
        return Elsewhere(conditions[np.zeros(0, np.int64)], [])
    return Elsewhere(
        Conditions(*(np.concatenate([getattr(c, part) for c in found]) for part in _COLUMNS)), values
    )


_COLUMNS = ("dataset", "context", "targets", "n_controls")


@dataclass(frozen=True)
class _Field:
    """What another context knows of n training targets, and of q others.

    Attributes
    ----------
    raw : (n + q, G)
        Centred effects on the genes of the context that is predicted; zero where not measured or tested.
    kernel : (n + q, n)
        Inner products of the centred effects on all genes, with those of the training targets.
    tested : (n + q,)
        Whether the other context tested the target.
    """

    raw: Floats
    kernel: Floats
    tested: np.ndarray

    @classmethod
    def of(
        cls,
        names: Sequence[tuple[int, int]],
        n: int,
        effects: Mapping[tuple[int, int], Floats],
        at: np.ndarray,
        measured: np.ndarray,
    ) -> "_Field":
        tested = np.array([name in effects for name in names])
        x = np.zeros((len(names), len(next(iter(effects.values())))))
        x[tested] = np.stack([effects[name] for name in names if name in effects])
        x[tested] -= x[:n][tested[:n]].mean(axis=0)
        raw = np.zeros((len(names), len(at)))
        raw[:, measured] = x[:, at[measured]]
        return cls(raw, x @ x[:n].T, tested)


def stacked(observed: Floats, left_out: Floats, posterior: Floats, fields: Sequence[_Field]) -> Floats:
    """Effects of q targets in a context, (q, G); see the module.

    Parameters
    ----------
    observed, left_out : (n, G)
        Training effects, and what the regression of all other conditions predicts for each.
    posterior : (q, G)
        What the regression predicts for the q targets.
    fields
        What each other context knows.
    """
    n = len(observed)
    mean = observed.mean(axis=0)
    centred = observed - mean  # (n, G)
    grow = n / (n - 1)  # y_i minus the mean of the others
    # Every leave-one-out prediction is a matrix (n, n) times one of these sources, so that all their inner
    # products follow from those of the sources.
    sources = [centred, left_out - mean + centred / (n - 1), *(field.raw[:n] for field in fields)]
    gram = {(a, b): sources[a] @ sources[b].T for a in range(len(sources)) for b in range(len(sources))}
    identity = np.eye(n)
    middle = identity - 1.0 / n
    kernels = [field.kernel[:n] for field in fields]
    if len(fields) > 1:
        kernels.append(np.sum(kernels, axis=0))
    spectra = [np.linalg.eigh(middle @ kernel @ middle) for kernel in kernels]
    fixed = [(1, identity), *((2 + o, identity) for o in range(len(fields)))]
    best: tuple[float, float, Floats] | None = None
    for penalty in PENALTIES:
        maps = list(fixed)
        for d, u in spectra:
            hat = (u * _shrink(d, penalty)) @ u.T
            own = 1.0 - hat.diagonal() - 1.0 / n
            maps.append((0, grow * identity - (identity - hat) / own[:, None]))
        maps += [(2 + o, maps[-1][1]) for o in range(len(fields))]  # the last kernel is that of all contexts
        inner = np.array([[np.sum((m @ gram[a, b]) * k) for b, k in maps] for a, m in maps])
        right = np.array([grow * np.sum((m @ gram[a, 0]) * identity) for a, m in maps])
        inner[np.diag_indices(len(maps))] *= 1.0 + 1e-6
        coefficients = np.linalg.lstsq(inner, right, rcond=None)[0]
        error = float(coefficients @ inner @ coefficients - 2.0 * coefficients @ right)
        if best is None or error < best[0]:
            best = (error, penalty, coefficients)
    assert best is not None
    _, penalty, coefficients = best
    near = [
        (field.kernel[n:] - field.kernel[:n].mean(axis=0)) @ middle * field.tested[n:, None]
        for field in fields
    ]  # (q, n) each
    if len(fields) > 1:
        near.append(np.sum(near, axis=0))
    parts = [posterior - mean, *(field.raw[n:] for field in fields)]
    for rows, (d, u) in zip(near, spectra, strict=True):
        inverse = np.divide(_shrink(d, penalty), d, out=np.zeros(n), where=d > 0.0)
        weights = rows @ ((u * inverse) @ u.T)  # (q, n)
        parts.append(weights @ centred)
    parts += [weights @ field.raw[:n] for field in fields]
    result: Floats = mean + sum(c * part for c, part in zip(coefficients, parts, strict=True))
    return result


def _shrink(values: Floats, penalty: float) -> Floats:
    """``d / (d + λ)`` of eigenvalues d (n,); zero for those that are zero up to rounding."""
    values = np.where(values > 1e-10 * max(values.max(), 0.0), values, 0.0)
    unit = values.mean()
    return values / (values + penalty * unit) if unit > 0.0 else values


def _keys(conditions: Conditions) -> list[tuple[int, int, int, int]]:
    """Dataset, context, target and sign of each condition; target −1 unless it has exactly one."""
    one = np.abs(conditions.targets).sum(axis=1) == 1
    target = np.where(one, np.abs(conditions.targets).argmax(axis=1), -1)
    sign = conditions.targets.sum(axis=1) * one
    return list(
        zip(*(part.tolist() for part in (conditions.dataset, conditions.context, target, sign)), strict=True)
    )
