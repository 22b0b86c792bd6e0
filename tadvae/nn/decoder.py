"""The decoder: any list of genes, from their embeddings."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.config import Config


class DecoderConfig(Config):
    """``x̂_g = ⟨h(u), D_g⟩ + b_g``."""

    d_gene: int = Field(64, ge=1)
    """Width of the genes' decoder embeddings."""
    hidden: int = Field(128, ge=1)
    decode: Literal["residual", "direct"] = "residual"
    """``residual``: added to the context's control profile, so that "no change" is where training starts;
    ``direct``: the whole profile (published)."""
    counterfactual: Literal["abduction", "mean"] = "abduction"
    """Predicted cells keep what the model does not explain of their control cell, or are the decoder's mean
    alone (published)."""


class GeneDecoder(nn.Module):
    """h is a linear map plus a small network that starts at zero, so effects start out additive."""

    def __init__(self, config: DecoderConfig, n_factors: int, n_genes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_factors, config.d_gene, bias=False)
        last = nn.Linear(config.hidden, config.d_gene)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(nn.Linear(n_factors, config.hidden), nn.LeakyReLU(0.2), last)
        self.gene = nn.Parameter(torch.randn(n_genes, config.d_gene) / config.d_gene**0.5)
        self.bias = nn.Parameter(torch.zeros(n_genes))

    def hidden(self, u: Tensor) -> Tensor:
        """h(u), shape (B, d_gene)."""
        return self.linear(u) + self.network(u)

    def forward(self, hidden: Tensor, genes: Tensor) -> Tensor:
        """Values of a gene list, shape (B, G)."""
        return hidden @ self.gene[genes].T + self.bias[genes]

    def change(self, hidden: Tensor, genes: Tensor) -> Tensor:
        """Change of a gene list for a change of h(u), shape (B, G)."""
        return hidden @ self.gene[genes].T
