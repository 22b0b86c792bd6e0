"""The decoder: any list of genes, from their embeddings."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config


class DecoderConfig(Config):
    """``x̂_g = ⟨h(u), D_g⟩ + b_g``."""

    kind: Literal["embedding", "mlp", "linear"] = "embedding"
    """``embedding``: h is a linear map plus a small network that starts at zero, so effects start out
    additive; ``mlp``: h is one layer of ``d_gene`` units, with a LeakyReLU after it and after x̂ (published);
    ``linear``: h(u) = u (NetActivity)."""
    d_gene: int = Field(64, ge=1)
    """Width of the genes' decoder embeddings; of no meaning where ``linear``."""
    hidden: int = Field(128, ge=1)
    """``embedding`` only: units of the small network."""
    decode: Literal["residual", "direct"] = "residual"
    """``residual``: added to the context's control profile, so that "no change" is where training starts;
    ``direct``: the whole profile (published)."""
    counterfactual: Literal["abduction", "mean"] = "abduction"
    """Predicted cells keep what the model does not explain of their control cell, or are the decoder's mean
    alone (published)."""


class GeneDecoder(nn.Module):
    """Genes from the latent factors, any list of them."""

    def __init__(self, config: DecoderConfig, n_factors: int, n_genes: int) -> None:
        super().__init__()
        self.config = config
        width = n_factors if config.kind == "linear" else config.d_gene
        if config.kind == "embedding":
            self.linear = nn.Linear(n_factors, width, bias=False)
            last = nn.Linear(config.hidden, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.network = nn.Sequential(nn.Linear(n_factors, config.hidden), nn.LeakyReLU(0.2), last)
        elif config.kind == "mlp":
            self.network = nn.Sequential(nn.Linear(n_factors, width), nn.LeakyReLU(0.2))
        self.gene = nn.Parameter(torch.randn(n_genes, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(n_genes))

    @property
    def width(self) -> int:
        """Length of a gene's embedding."""
        return self.gene.shape[1]

    def hidden(self, u: Tensor) -> Tensor:
        """h(u), shape (B, width)."""
        if self.config.kind == "linear":
            return u
        result: Tensor = self.network(u) if self.config.kind == "mlp" else self.linear(u) + self.network(u)
        return result

    def forward(self, hidden: Tensor, genes: Tensor) -> Tensor:
        """Values of a gene list, shape (B, G)."""
        values = hidden @ self.gene[genes].T + self.bias[genes]
        return nn.functional.leaky_relu(values, 0.2) if self.config.kind == "mlp" else values

    def change(self, hidden: Tensor, genes: Tensor) -> Tensor:
        """Change of a gene list for a change of h(u), shape (B, G); not where x̂ ends in a LeakyReLU."""
        return hidden @ self.gene[genes].T
