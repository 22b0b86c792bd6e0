"""Effects in a context that is new, from its control profile and the effects in the other contexts.

The contexts of a dataset that tested a perturbation have control profiles C (n, G) and effects Y (n, G). The
linear kernel ridge regression of Y on C, with unpenalised means, predicts a weighted sum of their effects,
``p = w·Y``, with weights that sum to 1, and so does the same regression of the new control profile c:
``r = c − w·C`` is what the other contexts do not explain of it. The prediction is::

    a m + b (p − m) + β r,

m is the mean of p over the perturbations, so that what all perturbations have in common and what is specific
to one are scaled separately. A gene whose controls are higher than the other contexts tell has less room to
rise, and their sampling error is in every change from them, therefore β is mostly negative. a, b and β are
the least-squares ones for the training contexts, each predicted from the others.

Source: Rasmussen & Williams 2006, section 2.7, for the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tadvae.effects.conditions import Conditions, Floats

PENALTY = 0.3
"""Ridge penalty in units of the mean diagonal of the kernel; 0.03 to 0.3 are level (docs/experiments.md)."""
LEAST_CONTEXTS = 3
"""Datasets with fewer contexts in training keep the regression of all conditions."""


def context_weights(controls: Floats, new: Floats) -> Floats:
    """Weights of n contexts, (n,), with sum 1, for a new one; profiles (n, G) and (G,)."""
    n = len(controls)
    centred = controls - controls.mean(axis=0)
    kernel = centred @ centred.T
    penalty = PENALTY * float(np.trace(kernel)) / n
    weights = np.full(n, 1.0 / n)
    if penalty > 0.0:
        near = centred @ (new - controls.mean(axis=0))  # (n,)
        solved = np.linalg.solve(kernel + penalty * np.eye(n), near)
        weights += solved - solved.mean()
    return weights


@dataclass(frozen=True)
class ContextEffects:
    """Control profiles and effects of the contexts of one dataset.

    Attributes
    ----------
    controls : (n_contexts, G)
        Mean control profiles.
    effects : (n, G)
        Effects of the n conditions.
    context : (n,)
        Row of ``controls`` of each condition.
    targets : (n, n_targets)
        Signs of the targets of each condition.
    scales : (3,)
        a, b and β.
    """

    controls: Floats
    effects: Floats
    context: np.ndarray
    targets: np.ndarray
    scales: Floats = field(default_factory=lambda: np.array([1.0, 1.0, 0.0]))

    @classmethod
    def fit(
        cls, controls: Floats, effects: Floats, context: np.ndarray, targets: np.ndarray
    ) -> "ContextEffects":
        """Learn the scales from the training contexts, each predicted from the others."""
        inner, right = np.zeros((3, 3)), np.zeros(3)
        for c in range(len(controls)):
            others, mine = np.flatnonzero(context != c), np.flatnonzero(context == c)
            rest = cls(controls, effects[others], context[others], targets[others])
            known, features = rest._features(controls[c], targets[mine])
            for row, parts in zip(mine[known].tolist(), features, strict=True):
                inner += parts @ parts.T
                right += parts @ effects[row]
        inner[np.diag_indices(3)] *= 1.0 + 1e-9
        scales = np.linalg.lstsq(inner, right, rcond=None)[0].astype(np.float64)
        return cls(controls, effects, context, targets, scales)

    def predict(self, control: Floats, targets: np.ndarray) -> tuple[np.ndarray, Floats]:
        """Which of q perturbations (q, n_targets) other contexts tested, bool (q,); their effects (k, G).

        Parameters
        ----------
        control : (G,)
            Control profile of the new context. Where no profile is below zero, no prediction is, either.
        """
        known, features = self._features(control, targets)
        effects = np.einsum("qig,i->qg", features, self.scales)
        return known, np.maximum(effects, -control) if self._bounded(control) else effects

    def _features(self, control: Floats, targets: np.ndarray) -> tuple[np.ndarray, Floats]:
        """Which of q perturbations are known, and ``m``, ``p − m`` and ``r`` of those, (k, 3, G)."""
        rows: dict[bytes, list[int]] = {}
        for i, signs in enumerate(self.targets):
            rows.setdefault(signs.tobytes(), []).append(i)
        weights: dict[tuple[int, ...], Floats] = {}  # the same for perturbations of the same contexts
        change, unexplained = np.zeros((2, len(rows), len(control)))
        for p, r, each in zip(change, unexplained, rows.values(), strict=True):
            contexts = tuple(self.context[each].tolist())
            known = self.controls[list(contexts)]
            if contexts not in weights:
                weights[contexts] = context_weights(known, control)
            p[:] = weights[contexts] @ self.effects[each]
            if len(contexts) > 1:  # one context explains nothing of another
                r[:] = control - weights[contexts] @ known
        if self._bounded(control):
            np.maximum(change, -control, out=change)
        at = {key: i for i, key in enumerate(rows)}
        index = np.array([at.get(signs.tobytes(), -1) for signs in targets], np.int64)
        chosen = index[index >= 0]
        mean = change.mean(axis=0) if len(rows) else np.zeros(len(control))
        parts = [np.tile(mean, (len(chosen), 1)), change[chosen] - mean, unexplained[chosen]]
        return index >= 0, np.stack(parts, axis=1)

    def _bounded(self, control: Floats) -> bool:
        """Whether profiles are expression, which is never below zero; not where there are no controls."""
        return bool(control.any() and control.min() >= 0.0 and self.controls.min() >= 0.0)


def fit_new_contexts(
    conditions: Conditions,
    effects: Sequence[Floats],
    controls: Mapping[int, Floats],
) -> dict[int, ContextEffects]:
    """Fit the contexts of every dataset with enough of them.

    Parameters
    ----------
    conditions
        The n training conditions.
    effects
        Observed effect of each, (G_d,).
    controls
        Mean control profile by context, on the genes of its dataset, (G_d,).
    """
    result = {}
    for dataset in np.unique(conditions.dataset).tolist():
        rows = np.flatnonzero((conditions.dataset == dataset) & np.isin(conditions.context, list(controls)))
        contexts = np.unique(conditions.context[rows])
        if len(contexts) < LEAST_CONTEXTS:
            continue
        profiles = np.stack([controls[c] for c in contexts.tolist()])
        if not profiles.any():  # signatures have no controls that could tell contexts apart
            continue
        result[dataset] = ContextEffects.fit(
            profiles,
            np.stack([effects[i] for i in rows.tolist()]),
            np.searchsorted(contexts, conditions.context[rows]),
            conditions.targets[rows],
        )
    return result
