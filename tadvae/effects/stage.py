"""Observed mean effects, and their regression: one Gaussian process per stratum of genes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from tadvae.effects.conditions import Conditions, Floats
from tadvae.effects.regression import Block, Regression, fit_regression

LEAST_GENES = 100
"""With fewer genes, all genes are in one stratum."""


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
    controls
        Mean control profile by context, on the genes of its dataset, (G_d,).
    """

    conditions: Conditions
    effects: list[Floats]
    n_cells: np.ndarray
    genes: Mapping[int, np.ndarray]
    variance: Mapping[int, Floats | None]
    controls: Mapping[int, Floats] = field(default_factory=dict)

    def __getitem__(self, rows: np.ndarray) -> Self:
        """The effects of some conditions."""
        return type(self)(
            self.conditions[rows],
            [self.effects[i] for i in rows],
            self.n_cells[rows],
            self.genes,
            self.variance,
            self.controls,
        )

    def followed_by(self, others: Self) -> Self:
        """These effects, of a model's first datasets, contexts and targets, and those of the others."""
        return type(self)(
            self.conditions.followed_by(others.conditions),
            [*self.effects, *others.effects],
            np.concatenate([self.n_cells, others.n_cells]),
            {**others.genes, **self.genes},
            {**others.variance, **self.variance},
            {**self.controls, **others.controls},
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
        cls, observed: Observed, terms: Sequence[Floats], prior: Sequence[Floats], strata: Sequence[float]
    ) -> Self:
        """Fit the variances and weights of every stratum."""
        conditions = observed.conditions
        genes = np.unique(np.concatenate([observed.genes[d] for d in conditions.dataset.tolist()]))
        noise = observed.noise()
        stratum = _strata(observed, noise, genes, strata)  # (G,)
        result = cls(conditions)
        for s in np.unique(stratum):
            blocks = _blocks(observed, prior, genes[stratum == s])
            inside = [np.isin(observed.genes[d], genes[stratum == s]) for d in conditions.dataset.tolist()]
            cell = np.array([n[i].mean() if i.any() else 0.0 for n, i in zip(noise, inside, strict=True)])
            alone = ~conditions.has_amounts
            result.strata.append(fit_regression(terms, cell / observed.n_cells, blocks, alone))
        return result

    def left_out(self, observed: Observed) -> list[Floats]:
        """Prediction of each training effect from all other conditions, (G_d,) each."""
        result = [effect.copy() for effect in observed.effects]
        for regression in self.strata:
            for block in regression.blocks:
                errors = block.weights / block.precision[:, None]
                for row, error in zip(block.rows.tolist(), errors, strict=True):
                    at = np.searchsorted(observed.genes[int(observed.conditions.dataset[row])], block.genes)
                    result[row][at] -= error
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


def _strata(
    observed: Observed, noise: Sequence[Floats], genes: np.ndarray, strata: Sequence[float]
) -> np.ndarray:
    """Stratum of each gene by its signal-to-noise over all conditions, (G,)."""
    if len(genes) < LEAST_GENES or not strata:
        return np.zeros(len(genes), np.int64)
    signal, expected = np.zeros(len(genes)), np.zeros(len(genes))
    for i, dataset in enumerate(observed.conditions.dataset.tolist()):
        at = np.searchsorted(genes, observed.genes[dataset])
        signal[at] += observed.effects[i] ** 2
        expected[at] += noise[i] / observed.n_cells[i] if noise[i].any() else 1.0
    ratio = signal / np.maximum(expected, 1e-12)
    return np.searchsorted(np.quantile(ratio, strata), ratio, side="right")


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
