"""Losses: reconstruction, discrepancy between sets of cells, KL, sparsity; and their schedules.

Source: Zhang et al. 2023 and its code (loss, biased MMD and their constants); Gretton et al. 2012 (unbiased
MMD, median heuristic).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config


class Schedule(Config):
    """A weight that changes during training: ``low`` until ``start``, then linear to ``high`` at ``end``."""

    low: float = 0.0
    """Value before ``start``."""
    high: float = 1.0
    """Value from ``end`` on."""
    start: float = Field(0.0, ge=0)
    """Epoch at which the value begins to change."""
    end: float = Field(0.0, ge=0)
    """Epoch at which the value reaches ``high``."""

    def at(self, epoch: float) -> float:
        """Value at an epoch, which may be a fraction."""
        if epoch >= self.end:
            return self.high
        if epoch < self.start:
            return self.low
        return self.low + (self.high - self.low) * (epoch - self.start) / (self.end - self.start)


class LossConfig(Config):
    """The loss ``reconstruction + β KL + α MMD + λ |G|₁ + mean matching``."""

    alpha: Schedule = Schedule(high=1.0, start=0, end=5)
    """Weight α of the MMD between predicted and observed perturbed cells, over training."""
    beta: Schedule = Schedule(high=1e-3, start=0, end=10)
    """Weight β of the KL divergence, over training."""
    kl: Literal["sum", "mean"] = "sum"
    """How the KL divergence is reduced.

    - ``sum``: sum over factors, mean over cells; the usual choice.
    - ``mean``: mean over factors and cells, divided once more by the number of cells, as in the code of SENA;
      use it to reproduce SENA.
    """
    temperature: Schedule = Schedule(low=1.0, high=5.0, start=0, end=50)
    """Temperature of the softmax that assigns targets to factors, over training; larger is sharper."""
    sparsity: float = Field(1e-3, ge=0)
    """Weight λ of the L1 norm of the graph."""
    l1: Literal["sum", "mean"] = "sum"
    """How the L1 norm of the graph is reduced.

    - ``sum``: sum over edges; the usual choice.
    - ``mean``: mean over the K × K matrix; use it to reproduce SENA.
    """
    likelihood: Literal["gaussian", "negative_binomial"] = "gaussian"
    """Loss of the reconstruction.

    - ``gaussian``: squared error of log values, as published; the usual choice.
    - ``negative_binomial``: negative log likelihood of the counts, mean over cells and genes; use it for
      counts with their library sizes.
    """
    mean_match: float = Field(10.0, ge=0)
    """Weight of the squared distance between the means of predicted and observed bags; for bags of one
    profile it replaces the MMD."""
    mmd: Literal["unbiased", "biased"] = "unbiased"
    """Estimator of the MMD.

    - ``unbiased``: U-statistic with bandwidths around the median distance; the usual choice.
    - ``biased``: V-statistic with bandwidths from ``sigma``; use it to reproduce publications.
    """
    sigma: float = Field(1000.0, gt=0)
    """Bandwidths are σ/32·2^i for i in 0..9; only for ``biased``."""


def published_bandwidths(sigma: float) -> Tensor:
    """Bandwidths σ/32·2^i for i = 0..9, shape (10,)."""
    return sigma / 32.0 * 2.0 ** torch.arange(10)


def median_bandwidths(observed: Tensor) -> Tensor:
    """Bandwidths: median squared distance of observed cells times 1/4, 1/2, 1, 2, 4; (5,), no gradient."""
    with torch.no_grad():
        distance = squared_distances(observed, observed)
        i, j = torch.triu_indices(len(observed), len(observed), offset=1)
        median = distance[i, j].median() if len(i) else distance.new_tensor(1.0)
        return median.clamp(min=1e-6) * 2.0 ** torch.arange(-2, 3).to(distance)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances ‖x_i − y_j‖², shape (n, m)."""
    # One matrix product needs (n, m) memory; differences of all rows would need (n, m, G). Rounding can make
    # the distance of equal rows slightly negative, hence the clamp.
    product = x @ y.T
    return ((x**2).sum(1)[:, None] + (y**2).sum(1)[None, :] - 2 * product).clamp(min=0)


def mmd(x: Tensor, y: Tensor, bandwidths: Tensor, *, unbiased: bool) -> Tensor:
    """Squared maximum mean discrepancy with the kernel ``Σ_b exp(−d²/b)``.

    Parameters
    ----------
    x : (n, G)
        Predicted cells.
    y : (m, G)
        Observed cells.
    bandwidths : (k,)
        Bandwidths b, in units of squared expression.
    unbiased
        True: U-statistic, which can be negative and needs two cells in each set; False: V-statistic, which
        includes the distance of each cell to itself.
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
    """KL(N(μ, σ²) ‖ N(0, 1)), reduced according to :attr:`LossConfig.kl`; zero without a variance."""
    if log_variance is None:
        return mean.new_zeros(())
    each = -0.5 * (1 + log_variance - mean**2 - log_variance.exp())  # (B, K)
    return each.sum(1).mean() if reduction == "sum" else each.mean() / len(each)


def l1_norm(adjacency: Tensor, reduction: str = "sum") -> Tensor:
    """L1 norm of the graph (K, K), reduced according to :attr:`LossConfig.l1`."""
    return adjacency.abs().sum() if reduction == "sum" else adjacency.abs().mean()


def negative_binomial(counts: Tensor, mean: Tensor, log_dispersion: Tensor) -> Tensor:
    """Negative log likelihood of counts, mean over all of them.

    ``NB(x; m, r)`` with mean m and variance ``m + m²/r``.

    Parameters
    ----------
    counts, mean : (n, G)
        Observed counts and their expected values; ``mean`` must be positive.
    log_dispersion : (G,)
        Logarithm of r, per gene.
    """
    # Computed from logarithms and log-gamma: the factorials and powers of the density itself overflow.
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

    ``s(x) = softplus(10 x) / 10`` is about x for expressed genes, and has a gradient at and below zero too.

    Parameters
    ----------
    values : (n, G)
        Predicted log1p-normalised values.
    per_unit : (n,)
        Counts of each cell per normalised unit: library size / 10⁴ for CP10K.
    """
    positive = nn.functional.softplus(values, beta=10.0)
    return torch.expm1(positive).clamp(min=1e-6) * per_unit[:, None]
