"""Gaussian process regression of many genes at once, on conditions that each measure some of them.

With effects ``y_g`` (n,) of gene g over n conditions, a prior mean ``s·m_g`` and terms ``T_k``::

    y_g ~ N(s·m_g, Σ_k v_k T_k + diag(noise))

All genes of a stratum share the variances ``v_k`` and the scale ``s``. They maximise the likelihood; ``s``
has a closed form given the rest (generalised least squares). Genes are taken in blocks that the same
conditions measure, so that a gene that a condition did not measure is neither zero nor guessed.

A screen may hold one effect that is far larger than all others (a stimulus among knock-outs), which a
variance of all conditions would shrink away. So each condition with a known noise has, above ``v_k``, a
variance of its own, ``e_i ≥ 0``: what the others leave of it beyond what they expect, over all genes.

Source: Rasmussen & Williams 2006, equations 2.25, 2.26 and 5.8.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from tadvae.effects.conditions import Floats

SEARCH_CONDITIONS = 400
"""Conditions that variances are chosen on, where there are more; all of them are learned from."""
SEARCH_STEPS = 100
OWN_STEPS = 10
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
        Conditions that measure them.
    effects, prior : (r, g)
        Observed effects and their prior means before scaling.
    """

    genes: np.ndarray
    rows: np.ndarray
    effects: Floats
    prior: Floats


@dataclass(frozen=True)
class Fitted:
    """A block's posterior: prior mean of a new condition plus ``k(new, rows) @ weights``.

    Attributes
    ----------
    genes : (g,)
    rows : (r,)
    weights : (r, g)
    """

    genes: np.ndarray
    rows: np.ndarray
    weights: Floats


@dataclass(frozen=True)
class Regression:
    """One stratum of genes.

    Attributes
    ----------
    variances : (n_terms,)
        v; terms that are equal on all conditions share theirs in equal parts: data cannot tell them apart.
    own : (n,)
        e; variance of each condition's own beyond v.
    noise
        Variance of conditions whose noise was not known beforehand.
    scale
        s; zero without a prior mean.
    blocks
    """

    variances: Floats
    own: Floats
    noise: float
    scale: float
    blocks: list[Fitted]

    def covariance(self, terms: Sequence[Floats]) -> Floats:
        """``Σ_k v_k T_k + T_last diag(e)`` of q conditions with those of training, (q, n)."""
        result: Floats = np.tensordot(self.variances, np.stack(terms), axes=1) + terms[-1] * self.own
        return result


def fit_regression(terms: Sequence[Floats], noise: Floats, blocks: Sequence[Block]) -> Regression:
    """Choose variances and solve.

    Parameters
    ----------
    terms : n_terms of (n, n)
        The last is 1 where two conditions are the same.
    noise : (n,)
        Sampling variance of each condition; zero: not known, to be learned.
    """
    unit = float(np.mean(np.concatenate([block.effects.ravel() for block in blocks]) ** 2))
    n = len(noise)
    own = np.zeros(n)
    if unit <= 0.0:  # nothing ever changes
        return Regression(np.zeros(len(terms)), own, 0.0, 0.0, [])
    unknown = noise <= 0.0
    for last in (False, True):
        variances, learned = _maximise(terms, noise + own, unit, blocks)
        total = np.tensordot(variances, np.stack(terms), axes=1)
        total[np.diag_indices(n)] += np.where(unknown, learned, noise) + 1e-6 * unit
        if last or unknown.any():  # of a condition seen once, noise and variance of its own are one
            break
        own = _own(total, blocks)
    total[np.diag_indices(n)] += own
    inverses, scale = _solve(total, blocks)
    return Regression(
        variances,
        own,
        learned,
        scale,
        [
            Fitted(block.genes, block.rows, inverse @ (block.effects - scale * block.prior))
            for inverse, block in zip(inverses, blocks, strict=True)
        ],
    )


def _maximise(
    terms: Sequence[Floats], noise: Floats, unit: float, blocks: Sequence[Block]
) -> tuple[Floats, float]:
    """Most likely variances (n_terms,), and the noise of conditions where it is zero."""
    groups, n = _alike(terms), len(noise)
    search = np.arange(n)
    if n > SEARCH_CONDITIONS:
        search = np.sort(np.random.default_rng(0).permutation(n)[:SEARCH_CONDITIONS])
    problem = _Likelihood([terms[alike[0]] for alike in groups], noise, unit, blocks, search)
    start = np.full(len(groups) + 1, np.log(unit) - 1.5)
    # of a condition seen once, noise and effect of its own cannot be told apart: the search keeps their ratio
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


def _own(total: Floats, blocks: Sequence[Block]) -> Floats:
    """Variances of the conditions' own, (n,), for a covariance without them.

    Each is the most likely one given all others: what a condition's effects are off from the others' forecast
    in mean square, less what that forecast expects (Rasmussen & Williams 2006, equation 5.12).
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
    return own


def _solve(total: Floats, blocks: Sequence[Block]) -> tuple[list[Floats], float]:
    """Inverse covariance of every block (r, r), and the scale of the prior means; 0 without any."""
    inverses = [np.linalg.inv(total[np.ix_(block.rows, block.rows)]) for block in blocks]
    if not any(np.any(block.prior) for block in blocks):
        return inverses, 0.0
    pairs = list(zip(inverses, blocks, strict=True))
    above = sum(np.sum((inverse @ block.prior) * block.effects) for inverse, block in pairs)
    below = sum(np.sum((inverse @ block.prior) * block.prior) for inverse, block in pairs)
    return inverses, float(above / below)


class _Likelihood:
    """Negative log likelihood a gene, and its gradient by the log variances."""

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
                self.blocks.append((rows, Y.shape[1], Y @ Y.T, Y @ M.T, M @ M.T))
                self.n_genes += Y.shape[1]

    def __call__(self, log_variances: Floats) -> tuple[float, Floats]:
        theta = torch.tensor(log_variances, requires_grad=True)
        total = torch.tensordot(theta[:-1].exp(), self.terms, dims=1) + self.noise
        total = total + torch.diag(theta[-1].exp() * self.unknown)
        parts = []
        for rows, g, YY, YM, MM in self.blocks:
            factor = torch.linalg.cholesky(total[rows][:, rows])
            inverse = torch.cholesky_inverse(factor)
            parts.append((inverse, 2 * factor.diagonal().log().sum(), g, YY, YM, MM))
        below = sum((inverse * MM).sum() for inverse, *_, MM in parts)
        above = sum((inverse * YM).sum() for inverse, _, _, _, YM, _ in parts)
        scale = above / below if self.has_prior else torch.zeros((), dtype=torch.float64)
        value = torch.zeros((), dtype=torch.float64)
        for inverse, log_determinant, g, YY, YM, MM in parts:
            squares = YY - scale * (YM + YM.T) + scale**2 * MM
            value = value + 0.5 * (inverse * squares).sum() + 0.5 * g * log_determinant
        value = value / self.n_genes
        value.backward()
        assert theta.grad is not None
        return float(value.detach()), theta.grad.numpy()


def _alike(terms: Sequence[Floats]) -> list[list[int]]:
    """Terms in groups that are equal; those that are zero are in none."""
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
