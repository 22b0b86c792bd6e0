"""Losses: reconstruction, discrepancy between sets of cells, KL, sparsity; and their schedules.

Source: Zhang et al. 2023 and its code (loss, biased MMD and their constants); Gretton et al. 2012 (unbiased
MMD, median heuristic).
"""

from dataclasses import dataclass
from typing import Any, Literal

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
    curves: float = Field(0.1, ge=0)
    """Weight of the mean square by which the curves of dose and time of a target deviate from the curve that
    all targets share; only for screens with doses or times."""
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


def published_bandwidths(sigma: float, device: torch.device | None = None) -> Tensor:
    """Bandwidths σ/32·2^i for i = 0..9, shape (10,)."""
    return sigma / 32.0 * 2.0 ** torch.arange(10, device=device)


def median_bandwidths(distance: Tensor, real: Tensor | None = None) -> Tensor:
    """Bandwidths: median squared distance of observed cells times 1/4, 1/2, 1, 2, 4; (…, 5).

    Parameters
    ----------
    distance : (…, m, m)
        Squared distances of the observed cells of each set.
    real : (…, m) bool or None
        Whether a row is a cell, not padding; None: all are.
    """
    m = distance.shape[-1]
    i, j = torch.triu_indices(m, m, offset=1, device=distance.device)
    pairs = distance[..., i, j]  # (…, m (m − 1) / 2)
    if real is not None:
        pairs = pairs.masked_fill(~(real[..., i] & real[..., j]), torch.nan)
    if m < 2:
        median = distance.new_ones(distance.shape[:-2])
    else:
        median = pairs.nanmedian(dim=-1).values.nan_to_num(1.0)
    factors = 2.0 ** torch.arange(-2, 3, device=distance.device, dtype=distance.dtype)
    return median.clamp(min=1e-6)[..., None] * factors


@dataclass(frozen=True)
class Products:
    """Inner products of the n cells of one set and the m cells of another, which decide all distances.

    Attributes
    ----------
    xx : (…, n, n)
        Of the first set with itself.
    xy : (…, n, m)
        Of the first with the second.
    yy : (…, m, m)
        Of the second with itself.
    """

    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> "Products":
        """Of the cells (…, n, G) and (…, m, G)."""
        return cls(x @ x.transpose(-1, -2), x @ y.transpose(-1, -2), y @ y.transpose(-1, -2))


def _distances(norm_x: Tensor, norm_y: Tensor, product: Tensor) -> Tensor:
    """Squared distances ‖x_i − y_j‖² from the squared norms (…, n) and (…, m), and the product (…, n, m)."""
    # One matrix product needs (n, m) memory; differences of all rows would need (n, m, G). Rounding can make
    # the distance of equal rows slightly negative, hence the clamp.
    norms = norm_x[..., :, None] + norm_y[..., None, :]
    return norms.sub(product, alpha=2).clamp(min=0)


class _Kernel(torch.autograd.Function):
    """``Σ_b exp(−d²/b)`` for bandwidths that double from one to the next."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor, bandwidths: Tensor) -> Tensor:
        if distance.device.type != "cpu":  # a GPU waits for calls, not for exponentials
            each = torch.exp(distance[..., None] / -bandwidths[..., None, None, :])  # (…, n, m, k)
            ctx.save_for_backward((each / bandwidths[..., None, None, :]).sum(-1))
            return each.sum(-1)
        # exp(−d²/b) is the square of exp(−d²/2b): one exponential, for the widest, serves all bandwidths.
        width = bandwidths[..., -1, None, None]
        each = torch.exp(-distance / width)
        total, slope = each.clone(), each / width
        for i in range(2, bandwidths.shape[-1] + 1):
            each = each * each
            total += each
            slope += each / bandwidths[..., -i, None, None]
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -grads[0] * ctx.saved_tensors[0], None


def _kernel(distance: Tensor, bandwidths: Tensor) -> Tensor:
    result: Tensor = _Kernel.apply(distance, bandwidths)  # type: ignore[no-untyped-call]
    return result


def mmd(
    products: Products,
    bandwidths: Tensor | None,
    *,
    unbiased: bool,
    weight_x: Tensor | None = None,
    weight_y: Tensor | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy of sets of cells with the kernel ``Σ_b exp(−d²/b)``, shape (…).

    Parameters
    ----------
    products
        Of the predicted cells and the observed ones; the observed ones get no gradient.
    bandwidths : (…, k) or None
        Bandwidths b, in units of squared expression, each twice the one before; None:
        :func:`median_bandwidths`.
    unbiased
        True: U-statistic, which can be negative and needs two cells in each set, and means nothing where
        there are fewer; False: V-statistic, which includes the distance of each cell to itself.
    weight_x, weight_y : (…, n) and (…, m), or None
        1/n for each of the n cells of a set, and zero for padding; None: all rows are cells.
    """
    weight_x, weight_y = _weights(products.xx, weight_x), _weights(products.yy, weight_y)
    with torch.no_grad():
        norm_y = products.yy.diagonal(dim1=-2, dim2=-1)
        observed = _distances(norm_y, norm_y, products.yy)
        if bandwidths is None:
            bandwidths = median_bandwidths(observed, weight_y > 0)
        pairs_y, same_y = _pairs(weight_y, unbiased)
        kyy = _kernel(observed, bandwidths)
        within_y = _mean(kyy, weight_y, pairs_y) - (same_y * kyy.diagonal(dim1=-2, dim2=-1)).sum(-1)
        pairs_x, same_x = _pairs(weight_x, unbiased)
        pairs = torch.cat([pairs_x, -2 * weight_y], -1)  # (…, n + m)
    # One kernel for the pairs of x with x and of x with y: many small operations are dear on a GPU.
    norm_x = products.xx.diagonal(dim1=-2, dim2=-1)
    product = torch.cat([products.xx, products.xy], -1)  # (…, n, n + m)
    kernel = _kernel(_distances(norm_x, torch.cat([norm_x, norm_y], -1), product), bandwidths)
    same = kernel[..., : norm_x.shape[-1]].diagonal(dim1=-2, dim2=-1)
    return _mean(kernel, weight_x, pairs) - (same_x * same).sum(-1) + within_y


def _weights(rows: Tensor, weight: Tensor | None) -> Tensor:
    """The weights, or those of sets without padding."""
    return rows.new_full(rows.shape[:-1], 1 / max(rows.shape[-2], 1)) if weight is None else weight


def _mean(kernel: Tensor, weight_x: Tensor, weight_y: Tensor) -> Tensor:
    """Weighted mean of a kernel (…, n, m) over all pairs."""
    return (weight_x[..., None, :] @ kernel @ weight_y[..., None]).squeeze(-1).squeeze(-1)


def _pairs(weight: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Weights of the second cell of a pair within a set, and of the pairs of a cell with itself to omit."""
    square = weight**2
    if not unbiased:
        return weight, torch.zeros_like(weight)
    # Σ_i w_i² is 1/n: of the n² pairs, n² − n are of two different cells.
    of_different = (1 - square.sum(-1, keepdim=True)).clamp(min=1e-12)
    return weight / of_different, square / of_different


def weighted_sums(rows: Tensor, weight: Tensor) -> Tensor:
    """Sums (b, G) over the cells (b, n, G) of each bag with their weights (b, n)."""
    return (weight[:, None] @ rows).squeeze(1)


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
    """Negative log likelihood of each count, shape (n, G).

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
    return -likelihood


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
