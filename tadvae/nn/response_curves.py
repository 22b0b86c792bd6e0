"""Curves of response to dose and time: a monotone, saturating factor of the shift of a target.

Source: the Hill equation (Hill 1910) over the logarithm of the dose; that a perturbation's latent effect is
scaled by a learned monotone function of its dose: CPA (Lotfollahi et al. 2023) and chemCPA (Hetzel et al.
2022), which learn a sigmoid or a small network per drug.
"""

import numpy as np
import torch
from torch import Tensor, nn


class ResponseCurves(nn.Module):
    """``h(d) = d^n / (d^n + e^n) = σ(n (log d − log e))`` with a slope n > 0 and a midpoint e per target.

    With ``x = (log d − centre) / scale``, ``log n = a + a_t`` and the midpoint ``m = b + b_t``: a and b are
    shared by all targets, a_t and b_t start at zero and are pulled to it (:meth:`deviation`). Of several
    amounts (dose, time) the factors are multiplied; an amount that is not given has the factor 1, that of
    saturation.

    Parameters
    ----------
    used : (n_amounts,) bool
        Amounts that the model reads.
    centre, scale : (n_amounts,)
        Mean and standard deviation of the logarithms in training.
    """

    centre: Tensor
    scale: Tensor
    used: Tensor

    def __init__(self, n_targets: int, used: np.ndarray, centre: np.ndarray, scale: np.ndarray) -> None:
        super().__init__()
        self.shared = nn.Parameter(torch.zeros(len(used), 2))
        self.own = nn.Parameter(torch.zeros(len(used), n_targets, 2))
        for name, values in (("centre", centre), ("scale", scale)):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32), persistent=False)
        self.register_buffer("used", torch.as_tensor(used), persistent=False)

    def forward(self, target: Tensor, log_amounts: Tensor) -> Tensor:
        """Factor of each of n targets, (n,); targets beyond those of the vocabulary have the shared curve.

        Parameters
        ----------
        log_amounts : (n, n_amounts)
            Logarithms; NaN: not given.
        """
        n_targets = self.own.shape[1]
        named = target < n_targets
        own = (
            self.own[:, target.clamp(max=max(n_targets - 1, 0))] if n_targets else self.own.new_zeros(1, 1, 1)
        )
        curves = self.shared[:, None] + own * named[:, None]  # (n_amounts, n, 2)
        given = ~torch.isnan(log_amounts) & self.used  # (n, n_amounts)
        x = (torch.nan_to_num(log_amounts) - self.centre) / self.scale
        factor = torch.sigmoid(torch.exp(curves[..., 0].T) * (x - curves[..., 1].T))  # (n, n_amounts)
        return torch.where(given, factor, 1.0).prod(dim=1)

    def deviation(self) -> Tensor:
        """Mean square of the targets' own deviations from the shared curve."""
        return (self.own**2).mean() if self.own.numel() else self.own.sum()
