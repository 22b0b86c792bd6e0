"""Baselines that use other contexts: a known target in another context, and a context that is new.

Both use ``Profiles.elsewhere``, the training profiles of other contexts. They are not in ``BASELINES``,
which hold for any context: the evaluation adds those that apply.
"""

from typing import ClassVar

import numpy as np

from tadvae.evaluation.baselines import Array, Baseline, Perturbation, Profiles, changes, perturbation_key

SHARED_GENES = 10
"""Other contexts that measure fewer genes of a context are not used."""


class ContextRidge(Baseline):
    r"""A perturbation that other contexts tested: a ridge regression on its effects there.

    With the training mean ȳ of this context, and X_o the effects in another context o minus their mean over
    the n training perturbations of both (zero for a perturbation that o did not test):

    .. math:: \hat y = \bar y + \sum_o s_o x_o + k (K + \lambda I)^{-1} \Big(Y - \bar y - \sum_o s_o X_o\Big),
              \qquad K = \sum_o X_o X_o^\top

    The scales ``s`` are the least-squares ones over the genes that both measure; the kernel uses all genes of
    all other contexts, and λ is ``PENALTY`` times the mean diagonal of K. A perturbation that was tested
    nowhere has the training mean.

    Source: this project; kernel ridge: Hastie, Tibshirani and Friedman (2009), section 5.8.
    """

    name = "context_ridge"
    PENALTY: ClassVar[float] = 1.0

    @classmethod
    def applies(cls, profiles: Profiles) -> bool:
        """Whether other contexts tested at least two of this context's perturbations, and any other."""
        if profiles.new_context:
            return False
        here = {perturbation_key(targets) for targets in profiles.targets}
        there = {key for other in profiles.elsewhere for key in changes(other)}
        return len(here & there) > 1 and bool(there - here)

    def _fit(self, profiles: Profiles) -> None:
        here = list(self.deltas)
        column = {gene: i for i, gene in enumerate(profiles.genes)}
        fields: list[tuple[dict[Perturbation, Array], Array, Array, Array]] = []
        for other in profiles.elsewhere:
            found = changes(other)
            both = [key for key in here if key in found]
            shared = [(column[g], i) for i, g in enumerate(other.genes) if g in column]
            if len(both) > 1 and len(shared) >= min(SHARED_GENES, len(column)):
                mean = np.mean([found[key] for key in both], axis=0)
                ours, theirs = np.array(shared).T
                fields.append((found, mean, ours, theirs))
        asked = {key for found, *_ in fields for key in found}
        self._index = {key: i for i, key in enumerate(sorted(asked | set(here)))}
        rows = [self._index[key] for key in here]
        n = len(self._index)
        kernel, parts = np.zeros((n, n)), []
        for found, mean, ours, theirs in fields:
            x = np.zeros((n, len(mean)))
            for key, effect in found.items():
                x[self._index[key]] = effect - mean
            kernel += x @ x.T
            part = np.zeros((n, len(column)))  # on the genes of this context
            part[:, ours] = x[:, theirs]
            parts.append(part)
        target = np.stack([self.deltas[key] for key in here]) - self.mean_delta  # (n_here, G)
        # By inner products, as the parts of many contexts side by side would need far more memory.
        gram = np.array([[np.sum(a[rows] * b[rows]) for a in parts] for b in parts])
        scales = np.linalg.lstsq(gram, np.array([np.sum(a[rows] * target) for a in parts]), rcond=None)[0]
        self._scaled = np.zeros((n, len(column)))
        for scale, part in zip(scales, parts, strict=True):
            self._scaled += scale * part
        square = kernel[np.ix_(rows, rows)]
        penalty = self.PENALTY * max(float(np.trace(square)) / len(rows), 1e-12)
        rest = target - self._scaled[rows]
        self._scaled += kernel[:, rows] @ np.linalg.solve(square + penalty * np.eye(len(rows)), rest)

    def _delta(self, key: Perturbation) -> Array:
        at = self._index.get(key)
        return self.mean_delta if at is None else self.mean_delta + self._scaled[at]


class ContextKernel(Baseline):
    r"""A context without a perturbation in training: effects elsewhere, by how similar the controls are.

    With the control profiles C and the effects Y of a perturbation in the n other contexts, their means c̄
    and ȳ, and the control profile c of this context:

    .. math:: \hat y = \bar y + (c - \bar c) C_c^\top (C_c C_c^\top + \lambda I)^{-1} (Y - \bar y)

    λ is ``PENALTY`` times the mean diagonal. Where expression is not negative, an effect is never below
    minus the control. A perturbation that was tested nowhere has the mean effect.

    Source: this project; kernel ridge: Hastie, Tibshirani and Friedman (2009), section 5.8.
    """

    name = "context_kernel"
    PENALTY: ClassVar[float] = 0.3

    @classmethod
    def applies(cls, profiles: Profiles) -> bool:
        """Whether the context is new, and two or more others measure the same genes."""
        return profiles.new_context and sum(_same_genes(profiles, other) for other in profiles.elsewhere) > 1

    def _fit(self, profiles: Profiles) -> None:
        self._contexts = [
            (other.control, changes(other)) for other in profiles.elsewhere if _same_genes(profiles, other)
        ]

    def _delta(self, key: Perturbation) -> Array:
        known = [(control, found[key]) for control, found in self._contexts if key in found]
        if not known:
            return self.mean_delta
        controls, effects = (np.stack(part) for part in zip(*known, strict=True))  # (n, G), (n, G)
        centre, mean = controls.mean(axis=0), effects.mean(axis=0)
        kernel = (controls - centre) @ (controls - centre).T
        penalty = self.PENALTY * float(np.trace(kernel)) / len(kernel)
        result: Array = mean
        if penalty > 0.0:
            near = (controls - centre) @ (self.control - centre)  # (n,)
            solved = np.linalg.solve(kernel + penalty * np.eye(len(kernel)), effects - mean)
            result = mean + near @ solved
            if self.control.min() >= 0.0 and controls.min() >= 0.0:
                result = np.maximum(result, -self.control)
        return result


CONTEXT_BASELINES: tuple[type[Baseline], ...] = (ContextRidge, ContextKernel)


def _same_genes(profiles: Profiles, other: Profiles) -> bool:
    return list(other.genes) == list(profiles.genes)
