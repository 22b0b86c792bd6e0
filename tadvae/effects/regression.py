"""Gaussian process regression of many genes at once, on conditions that measure different genes.

With effects ``y_g`` (n,) of gene g over n conditions, a prior mean ``s·m_g`` and terms ``T_k``::

    y_g ~ N(s·m_g, Σ_k v_k T_k + diag(noise))

All genes of a stratum share the variances ``v_k`` and the scale ``s``, which maximise the likelihood; given
the variances, ``s`` has a closed form (generalised least squares). Genes are grouped into blocks that the
same conditions measure, so that no value has to be imputed for genes that a condition did not measure.

A screen may contain one effect that is far larger than all others (a stimulus among knock-outs), which a
variance shared by all conditions would shrink too much. Each condition with a known noise therefore has an
additional variance ``e_i ≥ 0``: by how much its effects exceed what the other conditions predict, over all
genes.

Source: Rasmussen & Williams 2006, equations 2.25, 2.26 and 5.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tadvae.effects.conditions import Floats

SEARCH_CONDITIONS = 400
"""Largest number of conditions, drawn at random, on which variances are fitted; the weights use all."""
SEARCH_STEPS = 100
"""Largest number of steps of the optimiser."""
OWN_STEPS = 10
"""Number of fixed-point steps for the variances ``e``."""
SMALLEST, LARGEST = 1e-5, 1e2
"""Range of a variance, in units of the mean squared effect."""


@dataclass(frozen=True)
class Block:
    """Genes that the same conditions measure.

    Attributes
    ----------
    genes : (g,) int64
        Sorted vocabulary indices.
    rows : (r,) int64
        Indices of the conditions that measure them.
    effects, prior : (r, g)
        Observed effects and their prior means before scaling.
    """

    genes: np.ndarray
    rows: np.ndarray
    effects: Floats
    prior: Floats


@dataclass(frozen=True)
class Fitted:
    """Posterior of a block: prior mean of a new condition plus ``k(new, rows) @ weights``.

    Attributes
    ----------
    genes : (g,) int64
        Sorted vocabulary indices.
    rows : (r,) int64
        Indices of the training conditions that measure them.
    weights : (r, g)
        Inverse covariance times the residuals of the training conditions.
    precision : (r,)
        Diagonal of the inverse covariance: ``weights / precision`` are the leave-one-out errors (equation
        5.12). Empty for a model from a file.
    """

    genes: np.ndarray
    rows: np.ndarray
    weights: Floats
    precision: Floats = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Regression:
    """The fitted regression of one stratum of genes.

    Attributes
    ----------
    variances : (n_terms,)
        Variances v; terms that are equal on all training conditions cannot be distinguished by the data and
        share their variance in equal parts.
    own : (n,)
        Additional variance e of each condition.
    noise
        Learned noise variance of conditions whose noise is not known.
    scale
        Scale s of the prior means; zero without prior means.
    blocks
        Posterior of each block of genes.
    """

    variances: Floats
    own: Floats
    noise: float
    scale: float
    blocks: list[Fitted]

    def covariance(self, terms: Sequence[Floats]) -> Floats:
        """Covariance ``Σ_k v_k T_k + T_last diag(e)`` of q conditions with the n of training, (q, n)."""
        return weighted_sum(self.variances, terms) + terms[-1] * self.own


def fit_regression(
    terms: Sequence[Floats], noise: Floats, blocks: Sequence[Block], alone: np.ndarray | None = None
) -> Regression:
    """Fit the variances, and solve for the weights.

    Parameters
    ----------
    terms : n_terms of (n, n)
        Covariance terms; the last is 1 for equal conditions, else 0.
    noise : (n,)
        Sampling variance of each condition; zero: not known, it is learned.
    blocks
        Observed effects of genes.
    alone : (n,) bool or None
        Whether a condition may have an additional variance e; None: all may. One of a series of doses may
        not: that its effect exceeds those of lower doses is the curve.
    """
    unit = float(np.mean(np.concatenate([block.effects.ravel() for block in blocks]) ** 2))
    n = len(noise)
    own = np.zeros(n)
    if unit <= 0.0:  # all effects are zero
        return Regression(np.zeros(len(terms)), own, 0.0, 0.0, [])
    unknown = noise <= 0.0
    for last in (False, True):
        variances, learned = _maximise(terms, noise + own, unit, blocks)
        total = weighted_sum(variances, terms)
        # 1e-6 of the mean squared effect on the diagonal keeps the matrix invertible with equal conditions.
        total[np.diag_indices(n)] += np.where(unknown, learned, noise) + 1e-6 * unit
        if last or unknown.any():  # with unknown noise, e_i cannot be distinguished from it
            break
        own = _own(total, blocks, alone)
    total[np.diag_indices(n)] += own
    inverses, scale = _solve(total, blocks)
    return Regression(
        variances,
        own,
        learned,
        scale,
        [
            Fitted(
                block.genes,
                block.rows,
                inverse @ (block.effects - scale * block.prior),
                inverse.diagonal().copy(),
            )
            for inverse, block in zip(inverses, blocks, strict=True)
        ],
    )


def weighted_sum(variances: Floats, terms: Sequence[Floats]) -> Floats:
    """``Σ_k v_k T_k``, without a second copy of the terms, which are the largest arrays of all."""
    total = np.zeros_like(terms[0])
    for variance, term in zip(variances, terms, strict=True):
        if variance:
            total += variance * term
    return total


def _maximise(
    terms: Sequence[Floats], noise: Floats, unit: float, blocks: Sequence[Block]
) -> tuple[Floats, float]:
    """Maximum-likelihood variances (n_terms,), and the noise of conditions for which it is not known."""
    from scipy.optimize import minimize  # training's workers import this module, and fit nothing

    groups, n = _alike(terms), len(noise)
    search = np.arange(n)
    if n > SEARCH_CONDITIONS:
        search = np.sort(np.random.default_rng(0).permutation(n)[:SEARCH_CONDITIONS])
    problem = _Likelihood([terms[alike[0]] for alike in groups], noise, unit, blocks, search)
    # The search is over log variances, which keeps them positive and makes steps relative.
    start = np.full(len(groups) + 1, np.log(unit) - 1.5)
    # A condition seen once does not tell its noise from its own effect: the search keeps their initial ratio.
    start[-1] -= np.log(10.0)
    low, high = np.log(unit * SMALLEST), np.log(unit * LARGEST)
    found = minimize(
        problem,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, high)] * len(start),
        options={"maxiter": SEARCH_STEPS},
    ).x
    variances = np.zeros(len(terms))
    for alike, value in zip(groups, found[:-1], strict=True):
        variances[alike] = np.exp(value) / len(alike)
    return variances, float(np.exp(found[-1])) if (noise <= 0.0).any() else 0.0


def _own(total: Floats, blocks: Sequence[Block], alone: np.ndarray | None = None) -> Floats:
    """Additional variances e of the conditions, (n,), for a covariance without them.

    Each is the most likely value given all others: the mean squared error of predicting the condition's
    effects from all other conditions, minus the expected one. Both come from the inverse covariance, without
    leaving out conditions one by one (Rasmussen & Williams 2006, equation 5.12).
    """
    own = np.zeros(len(total))
    for _ in range(OWN_STEPS):
        inverses, scale = _solve(total + np.diag(own), blocks)
        excess, genes = np.zeros(len(total)), np.zeros(len(total))
        for inverse, block in zip(inverses, blocks, strict=True):
            expected = 1.0 / inverse.diagonal()  # (r,)
            off = inverse @ (block.effects - scale * block.prior) * expected[:, None]  # (r, g)
            excess[block.rows] += (off**2 - expected[:, None]).sum(axis=1)
            genes[block.rows] += len(block.genes)
        own = np.maximum(own + excess / np.maximum(genes, 1.0), 0.0)
        if alone is not None:
            own *= alone
    return own


def _solve(total: Floats, blocks: Sequence[Block]) -> tuple[list[Floats], float]:
    """Inverse covariance of every block (r, r), and the scale of the prior means; 0 without prior means."""
    # The inverse itself is needed: its diagonal gives the leave-one-out errors, and it serves all genes.
    inverses = [np.linalg.inv(total[np.ix_(block.rows, block.rows)]) for block in blocks]
    if not any(np.any(block.prior) for block in blocks):
        return inverses, 0.0
    pairs = list(zip(inverses, blocks, strict=True))
    above = sum(np.sum((inverse @ block.prior) * block.effects) for inverse, block in pairs)
    below = sum(np.sum((inverse @ block.prior) * block.prior) for inverse, block in pairs)
    return inverses, float(above / below)


class _Likelihood:
    """Negative log likelihood per gene, and its gradient with respect to the log variances."""

    def __init__(
        self,
        terms: Sequence[Floats],
        noise: Floats,
        unit: float,
        blocks: Sequence[Block],
        search: np.ndarray,
    ) -> None:
        square = np.ix_(search, search)
        self.terms = torch.from_numpy(np.stack([term[square] for term in terms]))  # (n_terms, n, n)
        self.noise = torch.from_numpy(np.diag(noise[search] + 1e-6 * unit))
        self.unknown = torch.from_numpy((noise[search] <= 0.0).astype(np.float64))
        self.blocks: list[tuple[Tensor, int, Tensor, Tensor, Tensor]] = []
        self.n_genes = 0
        self.has_prior = any(np.any(block.prior) for block in blocks)
        for block in blocks:
            inside = np.isin(block.rows, search)
            if inside.any():
                rows = torch.from_numpy(np.searchsorted(search, block.rows[inside]))
                Y, M = (torch.from_numpy(part[inside]) for part in (block.effects, block.prior))  # (r, g)
                # The likelihood depends on effects Y and prior means M only through these (r, r) products, so
                # one evaluation costs O(r³) however many genes there are.
                self.blocks.append((rows, Y.shape[1], Y @ Y.T, Y @ M.T, M @ M.T))
                self.n_genes += Y.shape[1]

    def __call__(self, log_variances: Floats) -> tuple[float, Floats]:
        """The value, and its gradient by hand: as exact as automatic differentiation, at half the work."""
        variances = torch.from_numpy(np.exp(log_variances))
        total = torch.tensordot(variances[:-1], self.terms, dims=1) + self.noise
        total.diagonal().add_(variances[-1] * self.unknown)
        parts = []
        for rows, g, YY, YM, MM in self.blocks:
            # Cholesky: stable, and the log determinant comes from the diagonal without overflow.
            factor = torch.linalg.cholesky(total[rows][:, rows])
            inverse = torch.cholesky_inverse(factor)
            parts.append((inverse, 2 * float(factor.diagonal().log().sum()), rows, g, YY, YM, MM))
        scale = 0.0
        if self.has_prior:
            below = sum(float((inverse * MM).sum()) for inverse, *_, MM in parts)
            scale = sum(float((inverse * YM).sum()) for inverse, *_, YM, _ in parts) / below
        value, by_total = 0.0, torch.zeros_like(total)
        for inverse, log_determinant, rows, g, YY, YM, MM in parts:
            squares = YY - scale * (YM + YM.T) + scale**2 * MM if self.has_prior else YY
            value += 0.5 * float((inverse * squares).sum()) + 0.5 * g * log_determinant
            # The scale is the best one, where the value does not change with it: it adds nothing here.
            by_total[rows[:, None], rows] += 0.5 * (g * inverse - inverse @ squares @ inverse)
        of_terms = torch.tensordot(self.terms, by_total, dims=2)
        gradient = torch.cat([of_terms, (self.unknown * by_total.diagonal()).sum()[None]]) * variances
        return value / self.n_genes, (gradient / self.n_genes).numpy()


def _alike(terms: Sequence[Floats]) -> list[list[int]]:
    """Group equal terms, by index; terms that are zero are left out."""
    groups: list[list[int]] = []
    for k, term in enumerate(terms):
        if not np.any(term):
            continue
        for group in groups:
            if np.array_equal(term, terms[group[0]]):
                group.append(k)
                break
        else:
            groups.append([k])
    return groups
