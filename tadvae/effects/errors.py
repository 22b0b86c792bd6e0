"""Standard errors of the regression's mean effects: its posterior variance, widened by its own errors.

With the covariance ``k`` of a condition with those of training, ``K`` that of training with the noise, and
``k₀`` the prior variance of the condition, the effects of all genes of a stratum have the variance::

    V = k₀ − k K⁻¹ kᵀ,   reported is √(ρ V),   ρ = max(1, Σ (error² − noise) / Σ V)

The variances in k maximise a likelihood and are taken for certain, and combinations depart from the sum of
their parts in ways that no term describes, so V alone is too small (docs/experiments.md, section 19). ρ
measures by how much: in training, every perturbation is predicted from all others, in all contexts together,
and the mean of the squared errors, less the sampling noise of what is observed, is compared with the mean of
the V of these predictions. ρ never narrows: a small number of conditions can be right by chance. It is that
of perturbations that are predicted from others: a condition of training, which was observed, has ρ = 1.

Source: Rasmussen & Williams 2006, equation 2.26; equation 5.12 for one condition left out, and the same by
blocks of the inverse covariance for several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tadvae.effects.conditions import Conditions, Floats
from tadvae.effects.regression import Fitted, Regression, weighted_sum
from tadvae.effects.stage import Observed, Stage


@dataclass(frozen=True)
class BlockErrors:
    """What the variance of a block of genes needs.

    Attributes
    ----------
    block
        Its genes and training conditions.
    inverse : (r, r)
        Inverse covariance of the training conditions, with their noise.
    """

    block: Fitted
    inverse: Floats


@dataclass(frozen=True)
class StratumErrors:
    """What the variances of a stratum of genes need.

    Attributes
    ----------
    regression
        The fitted regression of the stratum.
    blocks
        One for each block of the regression.
    factor
        ρ, at least 1.
    """

    regression: Regression
    blocks: list[BlockErrors]
    factor: float

    @classmethod
    def of(
        cls, regression: Regression, terms: Sequence[Floats], observed: Observed, noise: Floats, unit: float
    ) -> "StratumErrors":
        """Invert the covariance of the training conditions, and learn the factor.

        Parameters
        ----------
        terms : n_terms of (n, n)
            Covariance terms of the training conditions.
        noise : (n,)
            Sampling variance of each condition; zero: not known, the regression has learned it.
        unit
            Mean squared effect of the stratum.
        """
        known = np.where(noise > 0.0, noise, regression.noise)
        diagonal = known + regression.own + 1e-6 * unit
        total = weighted_sum(regression.variances, terms)
        total[np.diag_indices(len(total))] += diagonal
        blocks, squares, expected = [], 0.0, 0.0
        for block in regression.blocks:
            rows = block.rows
            inverse = np.linalg.inv(total[np.ix_(rows, rows)])
            blocks.append(BlockErrors(block, inverse))
            errors, variances = left_out(inverse, block.weights, perturbations(observed.conditions[rows]))
            squares += float((errors**2 - known[rows, None]).sum())
            expected += float((variances - diagonal[rows]).sum()) * errors.shape[1]
        return cls(regression, blocks, max(squares / expected, 1.0) if expected > 0.0 else 1.0)


def perturbations(conditions: Conditions) -> np.ndarray:
    """Number of the perturbation of each condition, the same in all datasets and contexts, (n,)."""
    amounts = np.nan_to_num(conditions.amounts, nan=np.inf)
    keys = np.concatenate([conditions.targets.astype(np.float64), amounts], axis=1)
    result: np.ndarray = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    return result


def left_out(inverse: Floats, weights: Floats, group: np.ndarray) -> tuple[Floats, Floats]:
    """Errors (r, G), and their variances (r,), of each group of conditions predicted from all others.

    Parameters
    ----------
    inverse : (r, r)
        Inverse covariance of the conditions, with their noise.
    weights : (r, G)
        Inverse covariance times what is predicted.
    group : (r,)
        Number of the group of each condition; a group is left out at once.
    """
    errors, variances = np.empty_like(weights), np.empty(len(weights))
    for rows in np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1]):
        covariance = np.linalg.inv(inverse[np.ix_(rows, rows)])
        errors[rows] = covariance @ weights[rows]
        variances[rows] = covariance.diagonal()
    return errors, variances


@dataclass(frozen=True)
class StageErrors:
    """Standard errors of the effects that a stage predicts."""

    strata: list[StratumErrors]

    @classmethod
    def of(cls, stage: Stage, observed: Observed, terms: Sequence[Floats]) -> "StageErrors":
        """Compute what standard errors need, from the fitted stage.

        Parameters
        ----------
        observed
            The effects that the stage was fitted to.
        terms : n_terms of (n, n)
            Covariance terms of its training conditions.
        """
        noise, datasets = observed.noise(), observed.conditions.dataset.tolist()
        strata = []
        for regression in stage.strata:
            if not regression.blocks:  # all effects are zero
                continue
            genes = np.concatenate([block.genes for block in regression.blocks])
            inside = [np.isin(observed.genes[d], genes) for d in datasets]
            cell = np.array([n[i].mean() if i.any() else 0.0 for n, i in zip(noise, inside, strict=True)])
            effects = np.concatenate([e[i] for e, i in zip(observed.effects, inside, strict=True)])
            unit = float(np.mean(effects**2))
            strata.append(StratumErrors.of(regression, terms, observed, cell / observed.n_cells, unit))
        return cls(strata)

    def predict(
        self, terms: Sequence[Floats], own_terms: Sequence[Floats], genes: np.ndarray, widened: bool = True
    ) -> Floats:
        """Standard errors of the effects of q conditions, (q, G); NaN for genes without training.

        Parameters
        ----------
        terms : n_terms of (q, n)
            Covariance terms between the conditions and those of training.
        own_terms : n_terms of (q,)
            Covariance terms of each condition with itself.
        widened
            Whether the factor ρ is applied, to conditions that training lacks.
        """
        result = np.full((len(terms[0]), len(genes)), np.nan)
        for stratum in self.strata:
            regression = stratum.regression
            covariance = regression.covariance(terms)  # (q, n)
            # a condition of training has its own additional variance, a new one has none
            prior = np.tensordot(regression.variances, np.stack(own_terms), 1) + terms[-1] @ regression.own
            seen = terms[-1].any(axis=1)  # (q,)
            factor = np.where(seen | (not widened), 1.0, stratum.factor)  # (q,)
            for part in stratum.blocks:
                at = np.flatnonzero(np.isin(genes, part.block.genes))
                near = covariance[:, part.block.rows]
                variance = prior - ((near @ part.inverse) * near).sum(axis=1)  # (q,)
                result[:, at] = np.sqrt(factor * np.maximum(variance, 0.0))[:, None]
        return result
