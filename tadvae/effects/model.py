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
from functools import cached_property
from typing import Self

import numpy as np
from pydantic import Field

from tadvae.base.config import Config
from tadvae.data.amounts import Pair
from tadvae.effects.conditions import (
    Conditions,
    Floats,
    combination_terms,
    nearness,
    of_themselves,
    same_amounts,
    same_place,
    same_targets,
    single_terms,
    squared_distances,
)
from tadvae.effects.errors import StageErrors
from tadvae.effects.new_contexts import ContextEffects, fit_new_contexts
from tadvae.effects.stage import Observed, Stage
from tadvae.effects.targets_elsewhere import Elsewhere, fit_elsewhere

Pairs = Sequence[Pair]
"""Pairs of a perturbation, as indices of the model."""
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


class EffectsConfig(Config):
    """The regression of mean effects, and its weight in predictions."""

    weight: float = Field(0.7, ge=0, le=1)
    """Weight of the regression, from 0 to 1, in the predicted mean of a new perturbation in a context with
    other training perturbations; the network has the remaining weight. In other cases the regression is used
    alone. 0: the network is used alone in all cases."""
    contexts: bool = True
    """Whether contexts learn from each other by target and by control profile (docs/model.md).

    - true: a target that only other contexts tested is predicted by regressions on its effects there, and
      in a new context by the contexts with similar controls.
    - false: by the covariance terms alone; use it to measure what the contexts part contributes.
    """
    pathways: bool = True
    """Whether targets that share pathways are expected to have similar effects.

    - true: for targets that were never perturbed; the data decide how much it counts.
    - false: use it to measure what the pathways contribute to the regression.
    """
    strata: list[float] = [0.8, 0.98]
    """Quantiles of the signal-to-noise ratio of genes; they divide the genes into strata, each with its own
    variances."""


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
    similar : (n_targets, n_targets) or None
        Similarity of targets, from what is known of them.
    elsewhere
        Effects of targets in contexts of training that did not test them; None: from the regression.
    new_contexts
        Effects in new contexts of a dataset, by dataset.
    observed
        The effects that the regressions were fitted to, for fine-tuning; None in models of earlier versions.
    """

    n_targets: int
    signs: list[int]
    n_controls: Mapping[int, int]
    genes: Mapping[int, np.ndarray]
    singles: Stage | None = None
    combinations: Stage | None = None
    sums: list[Floats] = field(default_factory=list)
    spread: Floats = field(default_factory=lambda: np.zeros(0))
    similar: Floats | None = None
    elsewhere: Elsewhere | None = None
    new_contexts: dict[int, ContextEffects] = field(default_factory=dict)
    observed: Observed | None = None

    @classmethod
    def fit(
        cls,
        observed: Observed,
        signs: Sequence[int],
        n_controls: Mapping[int, int],
        config: EffectsConfig,
        similar: Floats | None = None,
    ) -> Self:
        """Fit both regressions to the training conditions.

        ``similar`` is the similarity of targets, (n_targets, n_targets), if something is known of them.
        """
        conditions = observed.conditions
        result = cls(conditions.targets.shape[1], list(signs), n_controls, observed.genes)
        result.similar = similar if config.pathways else None
        result.observed = observed
        alone = np.flatnonzero(conditions.size == 1)
        if len(alone):
            part = observed[alone]
            plain = np.flatnonzero(~part.conditions.has_amounts)
            zeros = [np.zeros_like(effect) for effect in part.effects]
            terms = single_terms(part.conditions, part.conditions, result.similar)
            result.singles = stage = Stage.fit(part, terms, zeros, config.strata)
            if config.contexts and len(plain):
                left_out = stage.left_out(part)
                result.elsewhere = fit_elsewhere(
                    part.conditions[plain],
                    [part.effects[i] for i in plain.tolist()],
                    [left_out[i] for i in plain.tolist()],
                    observed.genes,
                    lambda asked, genes: stage.predict(
                        single_terms(asked, stage.conditions, result.similar), genes
                    ),
                )
        if config.contexts:
            without = observed[np.flatnonzero(~conditions.has_amounts)]
            result.new_contexts = fit_new_contexts(without.conditions, without.effects, without.controls)
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
            result.combinations = Stage.fit(part, terms, result.sums, config.strata)
        return result

    def suits(self, n_targets: int, n_modalities: int) -> bool:
        """Whether the regression is over the targets and modalities of a vocabulary of these sizes."""
        return self.n_targets == n_targets and len(self.signs) == n_modalities

    def predict(
        self,
        dataset: int,
        context: int,
        perturbations: Sequence[Pairs],
        genes: np.ndarray,
        control: np.ndarray | None = None,
    ) -> Floats:
        """Mean effects, (M, G) on sorted vocabulary genes.

        Parameters
        ----------
        context
            Index of the context in the vocabulary; −1: a context that is not in training.
        control : (G,) or None
            Mean control profile of the context. A context that is not in training is compared by it with
            those that are.
        """
        places = [(dataset, context)] * len(perturbations)
        asked = Conditions.of(places, perturbations, self.n_targets, self.signs, self.n_controls)
        result = np.zeros((len(asked), len(genes)))
        if self.singles is None:
            return result
        wanted = np.array([len({pair[0] for pair in pairs}) for pairs in perturbations])
        alone, several = np.flatnonzero(wanted == 1), np.flatnonzero(wanted > 1)
        if len(alone):
            terms = single_terms(asked[alone], self.singles.conditions, self.similar)
            result[alone] = self.singles.predict(terms, genes)
            self._from_elsewhere(asked, alone, genes, result)
        if len(several):
            of = asked[several]
            unknown = wanted[several] - of.size
            sums = self._sum(of, genes, unknown)
            found, share = UNTESTED_SCALE * sums, 0.0
            if self.combinations is not None:
                panel = self.genes[dataset]
                own = sums if np.array_equal(genes, panel) else self._sum(of, panel, unknown)
                found = self.combinations.predict(self._combination_terms(of, own), genes, sums)
                n = len(self.combinations.conditions)
                share = n / (n + UNSURE_COMBINATIONS)
            unsure = self._unsure(of, unknown)[:, None]
            mean = sums / wanted[several][:, None]
            result[several] = np.where(unsure, share * found + (1.0 - share) * mean, found)
        if control is not None:
            known = (wanted == asked.size) & ~asked.has_amounts  # without targets that are not in training
            self._in_new_context(asked, np.flatnonzero(known & (wanted > 0)), genes, control, result)
        return result

    def standard_errors(
        self,
        dataset: int,
        context: int,
        perturbations: Sequence[Pairs],
        genes: np.ndarray,
        widened: bool = True,
    ) -> Floats:
        """Standard errors of the mean effects of :meth:`predict`, (M, G); see :mod:`tadvae.effects.errors`.

        NaN where the regression says nothing of its error: in a context without training conditions, for a
        target that is predicted from other contexts or that training lacks, for a combination whose targets
        were not all perturbed alone or where training has too few combinations, and for control cells.
        """
        places = [(dataset, context)] * len(perturbations)
        asked = Conditions.of(places, perturbations, self.n_targets, self.signs, self.n_controls)
        result = np.full((len(asked), len(genes)), np.nan)
        wanted = np.array([len({pair[0] for pair in pairs}) for pairs in perturbations])
        known = wanted == asked.size
        singles, combinations = self._errors
        if singles is not None and self.singles is not None:
            training = self.singles.conditions
            chosen = known & (wanted == 1) & same_place(asked, training).any(axis=1)
            if self.elsewhere is not None:
                chosen &= (self.elsewhere.rows(asked) < 0) | asked.has_amounts
            of = asked[np.flatnonzero(chosen)]
            if len(of):
                own = of_themselves(lambda part: single_terms(part, part, self.similar, training), of)
                terms = single_terms(of, training, self.similar)
                result[chosen] = singles.predict(terms, own, genes, widened)
        if combinations is not None and self.combinations is not None:
            training = self.combinations.conditions
            chosen = known & (wanted > 1) & same_place(asked, training).any(axis=1)
            of = asked[np.flatnonzero(chosen)]
            sure = ~self._unsure(of, np.zeros(len(of), np.int64))
            chosen[chosen], of = sure, of[np.flatnonzero(sure)]
            if len(of):
                terms = self._combination_terms(of, self._sum(of, self.genes[dataset]))
                own = of_themselves(
                    lambda part: combination_terms(part, part, np.eye(len(part)), training), of
                )
                result[chosen] = combinations.predict(terms, own, genes, widened)
        return result

    @cached_property
    def _errors(self) -> tuple[StageErrors | None, StageErrors | None]:
        """What the standard errors of singles and of combinations need; None: there are none."""
        singles = combinations = None
        if self.observed is None:  # a model of an earlier version
            return singles, combinations
        size = self.observed.conditions.size
        if self.singles is not None:
            of = self.singles.conditions
            terms = single_terms(of, of, self.similar)
            singles = StageErrors.of(self.singles, self.observed[np.flatnonzero(size == 1)], terms)
        if self.combinations is not None:
            terms = self._combination_terms(self.combinations.conditions, self.sums)
            part = self.observed[np.flatnonzero(size > 1)]
            combinations = StageErrors.of(self.combinations, part, terms)
        return singles, combinations

    def _from_elsewhere(
        self, asked: Conditions, alone: np.ndarray, genes: np.ndarray, result: Floats
    ) -> None:
        """Replace the effects of single targets that only other contexts tested."""
        alone = alone[~asked.has_amounts[alone]]
        if self.elsewhere is None or not len(alone):
            return
        panel = self.genes.get(int(asked.dataset[0]), genes)
        _, ours, theirs = np.intersect1d(genes, panel, assume_unique=True, return_indices=True)
        for row, found in zip(alone.tolist(), self.elsewhere.rows(asked[alone]).tolist(), strict=True):
            if found >= 0:
                result[row, ours] = self.elsewhere.effects[found][theirs]

    def _in_new_context(
        self, asked: Conditions, rows: np.ndarray, genes: np.ndarray, control: np.ndarray, result: Floats
    ) -> None:
        """Replace the effects in a context without training conditions, where its controls tell more."""
        dataset = int(asked.dataset[0]) if len(asked) else -1
        contexts = self.new_contexts.get(dataset)
        stages = [stage for stage in (self.singles, self.combinations) if stage is not None]
        seen = any(same_place(asked[np.zeros(1, np.int64)], stage.conditions).any() for stage in stages)
        if contexts is None or seen or not len(rows) or not np.array_equal(genes, self.genes[dataset]):
            return
        known, effects = contexts.predict(control.astype(np.float64), asked.targets[rows])
        result[rows[known]] = effects

    def is_between(self, dataset: int, context: int, perturbations: Sequence[Pairs]) -> np.ndarray:
        """Whether each of M perturbations is new, in a context with training perturbations; bool, (M,).

        False for a target that other contexts tested and that is predicted from its effects there.
        """
        places = [(dataset, context)] * len(perturbations)
        asked = Conditions.of(places, perturbations, self.n_targets, self.signs, self.n_controls)
        near, seen = np.zeros(len(asked), bool), np.zeros(len(asked), bool)
        for stage in (self.singles, self.combinations):
            if stage is not None:
                place = same_place(asked, stage.conditions) > 0
                near |= place.any(axis=1)
                same = same_targets(asked, stage.conditions) * same_amounts(asked, stage.conditions)
                seen |= (place & (same > 0)).any(axis=1)
        if self.elsewhere is not None:
            seen |= (self.elsewhere.rows(asked) >= 0) & ~asked.has_amounts
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
        kinds = np.unique(np.nan_to_num(of.amounts, nan=np.inf), axis=0, return_inverse=True)[1].ravel()
        if (
            len(of) and kinds.max() > 0
        ):  # single effects are those at the dose and the time of the combination
            for kind in range(kinds.max() + 1):
                rows = np.flatnonzero(kinds == kind)
                total[rows] = self._sum(of[rows], genes, None if unknown is None else unknown[rows])
            return total
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
        parts = Conditions(
            dataset, context, targets, controls, np.repeat(of.amounts[:1], len(targets), axis=0)
        )
        return self.singles.predict(single_terms(parts, self.singles.conditions, self.similar), genes)

    def _combination_terms(self, of: Conditions, sums: Sequence[Floats] | Floats) -> list[Floats]:
        """Covariance terms of combinations, and their sums on all genes of their dataset, with training's."""
        assert self.combinations is not None
        near = self._near(of, list(sums), self.combinations.conditions)
        return combination_terms(of, self.combinations.conditions, near)

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
