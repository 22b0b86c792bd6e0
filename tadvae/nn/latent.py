"""From pathway activities to the distribution of latent factors."""

from typing import Literal

import torch
from torch import Tensor, nn

from tadvae.base.config import Config


class LatentConfig(Config):
    """How the mean and variance of factors are computed from pathway activities."""

    kind: Literal["loadings", "identity"] = "loadings"
    """The map from pathways to factors.

    - ``loadings``: learned loadings δ of factors on pathways; the usual choice.
    - ``identity``: every pathway is a factor, without variance; use it to reproduce NetActivity.
    """
    activation: Literal["leaky_relu", "elu"] = "leaky_relu"
    """Activation function of the activities, before δ.

    - ``leaky_relu``: slope 0.2, as in the discrepancy VAE; the usual choice.
    - ``elu``: as in NetActivity; use it to reproduce it.
    """
    variance: Literal["log", "softplus"] = "log"
    """How the variance is computed.

    - ``log``: δ gives its logarithm; numerically stable, the usual choice.
    - ``softplus``: δ gives the argument of a softplus; use it to reproduce publications.
    """


class FactorLoadings(nn.Module):
    """``(μ, log σ²)_k = Σ_p δ_kp a_p`` over the pathways that are available in a dataset.

    The loadings δ describe each factor by its pathways. Unavailable pathways are left out, and the sum is
    scaled by ``sqrt(P / available)``, so that its variance does not depend on the size of the panel.
    """

    def __init__(self, n_pathways: int, n_factors: int, config: LatentConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LatentConfig()
        self.activation = nn.ELU() if config.activation == "elu" else nn.LeakyReLU(0.2)
        self.n_pathways = n_pathways
        if config.kind == "identity":
            return
        self.mean = nn.Linear(n_pathways, n_factors)
        self.log_variance = nn.Linear(n_pathways, n_factors)
        if config.variance == "log":
            nn.init.zeros_(self.log_variance.weight)
            nn.init.constant_(self.log_variance.bias, -2.0)

    @property
    def loadings(self) -> Tensor:
        """Loadings δ of the means, shape (K, P)."""
        return torch.eye(self.n_pathways) if self.config.kind == "identity" else self.mean.weight

    def forward(self, activity: Tensor, available: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log variance of the factors, each (B, K); log variance is None if they have none.

        Parameters
        ----------
        activity : (B, P)
            Activities of the pathways.
        available : (B, P) bool
            Whether a pathway has enough measured genes in the dataset of the cell.
        """
        active = self.activation(activity) * available  # (B, P)
        if self.config.kind == "identity":
            return active, None
        share = available.to(activity.dtype).mean(dim=1, keepdim=True).clamp(min=1e-6)  # (B, 1)
        seen = active / share.sqrt()  # (B, P)
        spread = self.log_variance(seen)
        if self.config.variance == "softplus":
            return self.mean(seen), nn.functional.softplus(spread).clamp(min=1e-12).log()
        # Clamped, so that neither the variance nor the KL divergence overflows in float32.
        return self.mean(seen), spread.clamp(-12.0, 6.0)


def sample(mean: Tensor, log_variance: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Draw ``μ + σ ε``, on the device of the generator; without one or a variance, return the mean."""
    if generator is None or log_variance is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + noise * torch.exp(0.5 * log_variance)
