"""From pathway activities to latent factors."""

from typing import Literal

import torch
from torch import Tensor, nn

from tadvae.base.config import Config


class LatentConfig(Config):
    """How activities become the mean and variance of factors."""

    kind: Literal["loadings", "identity"] = "loadings"
    """``loadings``: δ, learned; ``identity``: every pathway is a factor, without variance (NetActivity)."""
    activation: Literal["leaky_relu", "elu"] = "leaky_relu"
    """Of the activities, before δ (slope 0.2 as published, or NetActivity's)."""
    variance: Literal["log", "softplus"] = "log"
    """What δ gives for the variance: its logarithm, or the argument of a softplus (published)."""


class FactorLoadings(nn.Module):
    """``(μ, log σ²)_k = Σ_p δ_kp a_p`` over the pathways that a dataset can see (DESIGN §5.5).

    δ names the factors by their pathways. Pathways that are not available are left out, and the sum is
    scaled by ``sqrt(P / available)``: its variance then does not depend on the size of the panel.
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
        """δ, shape (K, P)."""
        return torch.eye(self.n_pathways) if self.config.kind == "identity" else self.mean.weight

    def forward(self, activity: Tensor, available: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log variance, each (B, K); the latter None where factors have no variance.

        Parameters
        ----------
        activity : (B, P)
        available : (B, P) bool
        """
        active = self.activation(activity) * available  # (B, P)
        if self.config.kind == "identity":
            return active, None
        share = available.to(activity.dtype).mean(dim=1, keepdim=True).clamp(min=1e-6)  # (B, 1)
        seen = active / share.sqrt()  # (B, P)
        spread = self.log_variance(seen)
        if self.config.variance == "softplus":
            return self.mean(seen), nn.functional.softplus(spread).clamp(min=1e-12).log()
        return self.mean(seen), spread.clamp(-12.0, 6.0)


def sample(mean: Tensor, log_variance: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """``μ + σ ε``; with no generator or no variance the mean itself."""
    if generator is None or log_variance is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return mean + noise * torch.exp(0.5 * log_variance)
