"""Losses: reconstruction, discrepancy between sets of cells, KL, sparsity; and their schedules.

Source: Zhang et al. 2023 (loss and biased MMD; constants in REFERENCES A1); Gretton et al. 2012
(unbiased MMD, median heuristic).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config


class Schedule(Config):
    """A weight over training: ``low`` until ``start``, then straight to ``high`` at ``end``; in epochs."""

    low: float = 0.0
    high: float = 1.0
    start: float = Field(0.0, ge=0)
    end: float = Field(0.0, ge=0)

    def at(self, epoch: float) -> float:
        """Value at a (fractional) epoch."""
        if epoch >= self.end:
            return self.high
        if epoch < self.start:
            return self.low
        return self.low + (self.high - self.low) * (epoch - self.start) / (self.end - self.start)


class LossConfig(Config):
    """``reconstruction + β KL + α MMD + λ |G|₁ + mean matching``."""

    alpha: Schedule = Schedule(high=1.0, start=0, end=5)
    """Weight of the MMD."""
    beta: Schedule = Schedule(high=1e-3, start=0, end=10)
    """Weight of the KL divergence."""
    kl: Literal["sum", "mean"] = "sum"
    """Mean over cells of the sum over factors, or the mean over both divided by the number of cells once
    more, as SENA's code does (REFERENCES A1)."""
    temperature: Schedule = Schedule(low=1.0, high=5.0, start=0, end=50)
    """Sharpness of the targets' assignment to factors."""
    sparsity: float = Field(1e-3, ge=0)
    """λ of the L1 norm of the graph."""
    l1: Literal["sum", "mean"] = "sum"
    """The norm is the sum over edges, or the mean over the K × K matrix (SENA)."""
    likelihood: Literal["gaussian", "negative_binomial"] = "gaussian"
    """Of the reconstruction: squared error on log values (published), or of the counts (negative log
    likelihood, mean over cells and genes; needs counts and their library sizes)."""
    mean_match: float = Field(10.0, ge=0)
    """Weight of the squared distance of bag means; for bags of one profile it stands in for the MMD."""
    mmd: Literal["unbiased", "biased"] = "unbiased"
    """``unbiased``: U-statistic, bandwidths around the median distance; ``biased``: as published."""
    sigma: float = Field(1000.0, gt=0)
    """``biased`` only: bandwidths are σ/32·2^i for i in 0..9."""


def published_bandwidths(sigma: float) -> Tensor:
    """σ/32·2^i, i = 0..9, shape (10,)."""
    return sigma / 32.0 * 2.0 ** torch.arange(10)


def median_bandwidths(observed: Tensor) -> Tensor:
    """Median squared distance of the observed cells times 1/4, 1/2, 1, 2, 4; shape (5,), no gradient."""
    with torch.no_grad():
        distance = squared_distances(observed, observed)
        i, j = torch.triu_indices(len(observed), len(observed), offset=1)
        median = distance[i, j].median() if len(i) else distance.new_tensor(1.0)
        return median.clamp(min=1e-6) * 2.0 ** torch.arange(-2, 3).to(distance)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """‖x_i − y_j‖², shape (n, m)."""
    product = x @ y.T
    return ((x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2 * product).clamp(min=0)


def mmd(x: Tensor, y: Tensor, bandwidths: Tensor, *, unbiased: bool) -> Tensor:
    """Squared maximum mean discrepancy with the kernel ``Σ_b exp(−d²/b)``.

    Parameters
    ----------
    x : (n, G)
    y : (m, G)
    bandwidths : (k,)
    unbiased
        U-statistic (may be below zero, needs two cells on each side) or V-statistic with the diagonal.
    """

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = squared_distances(a, b)
        return torch.exp(-distance[None] / bandwidths[:, None, None]).sum(0)

    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    if not unbiased:
        return kxx.mean() + kyy.mean() - 2 * kxy.mean()
    n, m = len(x), len(y)
    xx = (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1))
    yy = (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1))
    return xx + yy - 2 * kxy.mean()


def kl_divergence(mean: Tensor, log_variance: Tensor | None, reduction: str = "sum") -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), reduced as :attr:`LossConfig.kl` says; zero without a variance."""
    if log_variance is None:
        return mean.new_zeros(())
    each = -0.5 * (1 + log_variance - mean**2 - log_variance.exp())  # (B, K)
    return each.sum(1).mean() if reduction == "sum" else each.mean() / len(each)


def l1_norm(adjacency: Tensor, reduction: str = "sum") -> Tensor:
    """|G|₁ of (K, K), reduced as :attr:`LossConfig.l1` says."""
    return adjacency.abs().sum() if reduction == "sum" else adjacency.abs().mean()


def negative_binomial(counts: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Negative log likelihood of counts, mean over all of them.

    ``NB(x; m, r)`` with mean m and variance ``m + m²/r``.

    Parameters
    ----------
    counts, mean : (n, G)
        ``mean`` above zero.
    log_dispersion : (G,)
        log r.
    """
    r = log_dispersion.exp()
    log_total = torch.log(r + mean)
    likelihood = (
        torch.lgamma(counts + r)
        - torch.lgamma(r)
        - torch.lgamma(counts + 1)
        + r * (log_dispersion - log_total)
        + counts * (mean.log() - log_total)
    )
    return -likelihood.mean()


def expected_counts(values: Tensor, per_unit: Tensor) -> Tensor:
    """Mean counts from log1p-normalised values: ``(e^s(x) − 1)·per_unit``, above zero and smooth.

    ``s(x) = softplus(10 x) / 10`` is x for expressed genes, and keeps a gradient at and below zero.

    Parameters
    ----------
    values : (n, G)
    per_unit : (n,)
        Counts of a cell that are one normalised unit: library size / 10⁴ for CP10K.
    """
    positive = nn.functional.softplus(values, beta=10.0)
    return torch.expm1(positive).clamp(min=1e-6) * per_unit[:, None]
