"""Regression of mean effects: the change of the mean profile by a perturbation, from all conditions.

There are two regressions (:mod:`tadvae.effects.regression`): one of single perturbations, which shrinks a
noisy effect towards the common effects of its context, of its target in other contexts and of all
perturbations; and one of combinations, whose prior mean is the scaled sum of the effects of its parts. The
additive baseline is a special case: without noise and without covariance between conditions, the predictions
are the observed single effects and their sum.

The network is trained on single cells; this regression is fitted to means, of which there are few, in closed
form. ``weight`` combines both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from pydantic import Field

from tadvae.base.config import Config
from tadvae.effects.conditions import (
    Conditions,
    Floats,
    combination_terms,
    nearness,
    same_place,
    same_targets,
    single_terms,
    squared_distances,
)
from tadvae.effects.regression import Block, Regression, fit_regression

Pairs = Sequence[tuple[int, int]]
"""(target, modality) pairs of a perturbation, as indices of the model."""
LEAST_COMBINATIONS = 3
"""With fewer combinations in training, combinations are predicted as sums of single effects, scaled by
:data:`UNTESTED_SCALE`."""
UNTESTED_SCALE = 0.7
"""Targets together have a smaller effect than the sum of their single effects. On three screens trained
without their combinations, 0.7 of the sum has a 12 to 26% smaller L2 error than the sum: docs/experiments.md,
section 5."""
UNSURE_COMBINATIONS = 10
"""Prior weight of the mean of the parts for a combination with a target that was never perturbed alone in
training: with this number of training combinations, the regression has the same weight. See
docs/experiments.md, section 5."""
LEAST_GENES = 100
"""With fewer genes, all genes are in one stratum."""


class EffectsConfig(Config):
    """The regression of mean effects, and its weight in predictions."""

    weight: float = Field(0.7, ge=0, le=1)
    """Weight of the regression, from 0 to 1, in the predicted mean of a new perturbation in a context with
    other training perturbations; the network has the remaining weight. In other cases the regression is used
    alone. 0: the network is used alone in all cases."""
    strata: list[float] = [0.8, 0.98]
    """Quantiles of the signal-to-noise ratio of genes; they divide the genes into strata, each with its own
    variances."""


@dataclass(frozen=True)
class Observed:
    """Observed mean effects of the training conditions.

    Attributes
    ----------
    conditions
        The n conditions.
    effects
        Mean profile of each condition minus that of the controls, (G_d,) on the genes of its dataset.
    n_cells : (n,)
        Number of cells of each condition.
    genes
        Sorted vocabulary indices of the genes of each dataset.
    variance
        Variance of each gene between control cells, (G_d,) by dataset; None for datasets of profiles or
        signatures.
    """

    conditions: Conditions
    effects: list[Floats]
    n_cells: np.ndarray
    genes: Mapping[int, np.ndarray]
    variance: Mapping[int, Floats | None]

    def __getitem__(self, rows: np.ndarray) -> Self:
        """The effects of some conditions."""
        return type(self)(
            self.conditions[rows],
            [self.effects[i] for i in rows],
            self.n_cells[rows],
            self.genes,
            self.variance,
        )

    def noise(self) -> list[Floats]:
        """Variance of a single cell of each condition, per gene, (G_d,) each; zeros if it is not known."""
        result = []
        for dataset in self.conditions.dataset.tolist():
            variance = self.variance[dataset]
            # a gene that no control cell expresses has sampling noise too, hence a lower bound
            floor = 0.0 if variance is None else max(0.05 * float(variance.mean()), 1e-8)
            zeros = np.zeros(len(self.genes[dataset]))
            result.append(zeros if variance is None else np.maximum(variance, floor))
        return result


@dataclass
class Stage:
    """One regression per stratum of genes, and the training conditions.

    Attributes
    ----------
    conditions
        The n training conditions.
    strata
        Fitted regression of each stratum.
    """

    conditions: Conditions
    strata: list[Regression] = field(default_factory=list)

    @classmethod
    def fit(
        cls, observed: Observed, terms: Sequence[Floats], prior: Sequence[Floats], config: EffectsConfig
    ) -> Self:
        """Fit the variances and weights of every stratum."""
        conditions = observed.conditions
        genes = np.unique(np.concatenate([observed.genes[d] for d in conditions.dataset.tolist()]))
        noise = observed.noise()
        stratum = _strata(observed, noise, genes, config)  # (G,)
        result = cls(conditions)
        for s in np.unique(stratum):
            blocks = _blocks(observed, prior, genes[stratum == s])
            inside = [np.isin(observed.genes[d], genes[stratum == s]) for d in conditions.dataset.tolist()]
            cell = np.array([n[i].mean() if i.any() else 0.0 for n, i in zip(noise, inside, strict=True)])
            result.strata.append(fit_regression(terms, cell / observed.n_cells, blocks))
        return result

    def predict(self, terms: Sequence[Floats], genes: np.ndarray, prior: Floats | None = None) -> Floats:
        """Mean effects of q new conditions on some genes, (q, G); untrained genes have their prior mean.

        Parameters
        ----------
        terms : n_terms of (q, n)
            Covariance terms between new and training conditions.
        prior : (q, G) or None
            Prior means before scaling; None: zero.
        """
        result = np.zeros((len(terms[0]), len(genes))) if prior is None else prior.copy()
        for regression in self.strata:
            covariance = regression.covariance(terms)  # (q, n)
            for block in regression.blocks:
                _, ours, theirs = np.intersect1d(genes, block.genes, assume_unique=True, return_indices=True)
                if len(ours):
                    result[:, ours] *= regression.scale
                    result[:, ours] += covariance[:, block.rows] @ block.weights[:, theirs]
        return result


@dataclass
class EffectModel:
    """The regressions of single perturbations and of combinations.

    Attributes
    ----------
    n_targets, signs
        Number of targets, and the sign of each modality, in the vocabulary.
    n_controls
        Number of control cells by index of the context.
    genes
        Sorted vocabulary indices of the genes of each dataset.
    singles, combinations
        The fitted regressions; None if there are too few conditions in training.
    sums
        Prior means of the training combinations, (G_d,) each.
    spread : (n_combinations,)
        Median squared distance between sums in the context of each training combination.
    """

    n_targets: int
    signs: list[int]
    n_controls: Mapping[int, int]
    genes: Mapping[int, np.ndarray]
    singles: Stage | None = None
    combinations: Stage | None = None
    sums: list[Floats] = field(default_factory=list)
    spread: Floats = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def fit(
        cls,
        observed: Observed,
        signs: Sequence[int],
        n_controls: Mapping[int, int],
        config: EffectsConfig,
    ) -> Self:
        """Fit both regressions to the training conditions."""
        conditions = observed.conditions
        result = cls(conditions.targets.shape[1], list(signs), n_controls, observed.genes)
        alone = np.flatnonzero(conditions.size == 1)
        if len(alone):
            part = observed[alone]
            zeros = [np.zeros_like(effect) for effect in part.effects]
            terms = single_terms(part.conditions, part.conditions)
            result.singles = Stage.fit(part, terms, zeros, config)
        several = np.flatnonzero(conditions.size > 1)
        if result.singles is not None and len(several) >= LEAST_COMBINATIONS:
            part = observed[several]
            of = part.conditions
            result.sums = [
                result._sum(of[np.array([i])], observed.genes[d])[0]
                for i, d in enumerate(of.dataset.tolist())
            ]
            result.spread = _spread(of, result.sums)
            terms = combination_terms(of, of, result._near(of, result.sums, of))
            result.combinations = Stage.fit(part, terms, result.sums, config)
        return result

    def suits(self, n_targets: int, n_modalities: int) -> bool:
        """Whether the regression is over the targets and modalities of a vocabulary of these sizes."""
        return self.n_targets == n_targets and len(self.signs) == n_modalities

    def predict(
        self, dataset: int, context: int, perturbations: Sequence[Pairs], genes: np.ndarray
    ) -> Floats:
        """Mean effects, (M, G) on sorted vocabulary genes.

        Parameters
        ----------
        context
            Index of the context in the vocabulary; −1: a context that is not in training.
        """
        places = [(dataset, context)] * len(perturbations)
        asked = Conditions.of(places, perturbations, self.n_targets, self.signs, self.n_controls)
        result = np.zeros((len(asked), len(genes)))
        if self.singles is None:
            return result
        wanted = np.array([len(dict(pairs)) for pairs in perturbations])
        alone, several = np.flatnonzero(wanted == 1), np.flatnonzero(wanted > 1)
        if len(alone):
            terms = single_terms(asked[alone], self.singles.conditions)
            result[alone] = self.singles.predict(terms, genes)
        if len(several):
            of = asked[several]
            unknown = wanted[several] - of.size
            sums = self._sum(of, genes, unknown)
            found, share = UNTESTED_SCALE * sums, 0.0
            if self.combinations is not None:
                own = self._sum(of, self.genes[dataset], unknown)
                near = self._near(of, list(own), self.combinations.conditions)
                terms = combination_terms(of, self.combinations.conditions, near)
                found = self.combinations.predict(terms, genes, sums)
                n = len(self.combinations.conditions)
                share = n / (n + UNSURE_COMBINATIONS)
            unsure = self._unsure(of, unknown)[:, None]
            mean = sums / wanted[several][:, None]
            result[several] = np.where(unsure, share * found + (1.0 - share) * mean, found)
        return result

    def is_between(self, dataset: int, context: int, perturbations: Sequence[Pairs]) -> np.ndarray:
        """Whether each of M perturbations is new, in a context with training perturbations; bool, (M,)."""
        places = [(dataset, context)] * len(perturbations)
        asked = Conditions.of(places, perturbations, self.n_targets, self.signs, self.n_controls)
        near, seen = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
        for stage in (self.singles, self.combinations):
            if stage is not None:
                place = same_place(asked, stage.conditions) > 0
                near |= place.any(axis=1)
                seen |= (place & (same_targets(asked, stage.conditions) > 0)).any(axis=1)
        return near & ~seen

    def _unsure(self, of: Conditions, unknown: np.ndarray) -> np.ndarray:
        """Whether a combination is new and has a target that was never perturbed alone; bool, (n,)."""
        assert self.singles is not None
        alone = (self.singles.conditions.targets != 0).any(axis=0)  # (n_targets,)
        never = ((of.targets != 0) & ~alone).any(axis=1)
        if self.combinations is not None:
            never &= ~(same_targets(of, self.combinations.conditions) > 0).any(axis=1)
        result: np.ndarray = never | (unknown > 0)
        return result

    def _sum(self, of: Conditions, genes: np.ndarray, unknown: np.ndarray | None = None) -> Floats:
        """Sum of the single effects of the targets of conditions in one context, (n, G).

        ``unknown`` counts targets that are not in training: each adds the mean effect of a perturbation.
        """
        assert self.singles is not None
        total = np.zeros((len(of), len(genes)))
        for sign in (1, -1):
            used = np.flatnonzero((of.targets == sign).any(axis=0))
            if len(used):
                targets = np.zeros((len(used), self.n_targets), np.int64)
                targets[np.arange(len(used)), used] = sign
                total += (of.targets[:, used] == sign) @ self._parts(of, targets, genes)
        if unknown is not None and unknown.any():
            none = np.zeros((1, self.n_targets), np.int64)
            total += unknown[:, None] * self._parts(of, none, genes)
        return total

    def _parts(self, of: Conditions, targets: np.ndarray, genes: np.ndarray) -> Floats:
        """Effects of single targets (k, n_targets) in the context of some conditions, (k, G)."""
        assert self.singles is not None
        dataset, context, controls = (
            np.full(len(targets), column[0]) for column in (of.dataset, of.context, of.n_controls)
        )
        parts = Conditions(dataset, context, targets, controls)
        return self.singles.predict(single_terms(parts, self.singles.conditions), genes)

    def _near(self, a: Conditions, sums: list[Floats], b: Conditions) -> Floats:
        """:func:`nearness` of conditions to training combinations of the same place, else 0."""
        result = np.zeros((len(a), len(b)))
        for i, j in _places(a, b):
            mine, theirs = np.stack([sums[k] for k in i]), np.stack([self.sums[k] for k in j])
            result[np.ix_(i, j)] = nearness(mine, theirs, self.spread[j])
        return result


def _places(a: Conditions, b: Conditions) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of a and of b for every (dataset, context) that both have."""
    both = []
    for place in sorted(set(zip(a.dataset.tolist(), a.context.tolist(), strict=True))):
        i, j = (np.flatnonzero((c.dataset == place[0]) & (c.context == place[1])) for c in (a, b))
        if len(j):
            both.append((i, j))
    return both


def _spread(of: Conditions, sums: list[Floats]) -> Floats:
    """Median squared distance between the sums in the context of each condition, (n,)."""
    result = np.ones(len(of))
    for rows, _ in _places(of, of):
        S = np.stack([sums[i] for i in rows])
        squared = squared_distances(S, S)[np.triu_indices(len(S), 1)]
        median = float(np.median(squared)) if len(squared) else 0.0
        result[rows] = median if median > 0.0 else 1.0
    return result


def _strata(
    observed: Observed, noise: Sequence[Floats], genes: np.ndarray, config: EffectsConfig
) -> np.ndarray:
    """Stratum of each gene by its signal-to-noise over all conditions, (G,)."""
    if len(genes) < LEAST_GENES or not config.strata:
        return np.zeros(len(genes), np.int64)
    signal, expected = np.zeros(len(genes)), np.zeros(len(genes))
    for i, dataset in enumerate(observed.conditions.dataset.tolist()):
        at = np.searchsorted(genes, observed.genes[dataset])
        signal[at] += observed.effects[i] ** 2
        expected[at] += noise[i] / observed.n_cells[i] if noise[i].any() else 1.0
    ratio = signal / np.maximum(expected, 1e-12)
    return np.searchsorted(np.quantile(ratio, config.strata), ratio, side="right")


def _blocks(observed: Observed, prior: Sequence[Floats], genes: np.ndarray) -> list[Block]:
    """Group genes by the set of datasets that measure them."""
    dataset = observed.conditions.dataset
    datasets = np.unique(dataset)
    measured = np.stack([np.isin(genes, observed.genes[int(d)]) for d in datasets])  # (D, G)
    blocks = []
    for pattern in np.unique(measured, axis=1).T:  # (D,)
        chosen = genes[(measured == pattern[:, None]).all(axis=0)]
        rows = np.flatnonzero(np.isin(dataset, datasets[pattern]))
        at = {int(d): np.searchsorted(observed.genes[int(d)], chosen) for d in datasets[pattern]}
        effects = np.stack([observed.effects[i][at[int(dataset[i])]] for i in rows.tolist()])
        means = np.stack([prior[i][at[int(dataset[i])]] for i in rows.tolist()])
        blocks.append(Block(chosen, rows, effects, means))
    return blocks
