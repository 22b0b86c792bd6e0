"""From pathway activities to latent factors."""

import torch
from torch import Tensor, nn


class FactorLoadings(nn.Module):
    """``(μ, log σ²)_k = Σ_p δ_kp a_p`` over the pathways that a dataset can see (DESIGN §5.5).

    δ names the factors by their pathways. Pathways that are not available are left out, and the sum is
    scaled by ``sqrt(P / available)``: its variance then does not depend on the size of the panel.
    """

    def __init__(self, n_pathways: int, n_factors: int) -> None:
        super().__init__()
        self.mean = nn.Linear(n_pathways, n_factors)
        self.log_variance = nn.Linear(n_pathways, n_factors)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -2.0)

    def forward(self, activity: Tensor, available: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, each (B, K).

        Parameters
        ----------
        activity : (B, P)
        available : (B, P) bool
        """
        share = available.to(activity.dtype).mean(dim=1, keepdim=True).clamp(min=1e-6)  # (B, 1)
        seen = nn.functional.leaky_relu(activity, 0.2) * available / share.sqrt()  # (B, P)
        log_variance = self.log_variance(seen).clamp(-12.0, 6.0)
        return self.mean(seen), log_variance


def sample(mean: Tensor, log_variance: Tensor, generator: torch.Generator | None) -> Tensor:
    """``μ + σ ε``; with no generator the mean itself."""
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return mean + noise * torch.exp(0.5 * log_variance)
