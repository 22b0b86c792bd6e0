"""The decoder: expression of any list of genes, from gene embeddings."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config


class DecoderConfig(Config):
    """The decoder ``x̂_g = ⟨h(u), D_g⟩ + b_g``, with an embedding ``D_g`` and a bias ``b_g`` per gene."""

    kind: Literal["embedding", "mlp", "linear"] = "embedding"
    """The function h of the latent factors.

    - ``embedding``: a linear map plus a small network that is zero at the start, so that effects are additive
      at first; the usual choice.
    - ``mlp``: one layer of ``d_gene`` units, with a LeakyReLU after it and after x̂; use it to reproduce the
      discrepancy VAE and SENA.
    - ``linear``: h(u) = u; use it to reproduce NetActivity.
    """
    d_gene: int = Field(64, ge=1)
    """Width of the gene embeddings in the decoder; not used for ``linear``."""
    hidden: int = Field(128, ge=1)
    """Units of the small network; only for ``embedding``."""
    decode: Literal["residual", "direct"] = "residual"
    """What x̂ is.

    - ``residual``: a difference that is added to the control profile of the context, so that training starts
      from "no change"; the usual choice.
    - ``direct``: the whole profile; use it to reproduce publications.
    """
    counterfactual: Literal["abduction", "mean"] = "abduction"
    """How cells are predicted from control cells.

    - ``abduction``: control cell plus predicted change, so that cells keep their individual variation; the
      usual choice.
    - ``mean``: the output of the decoder; use it to reproduce publications.
    """


@dataclass(frozen=True)
class GeneRows:
    """What the decoder knows of a gene list.

    Attributes
    ----------
    embedding : (G, width)
        Embeddings D of the genes.
    bias : (G,)
        Their biases b.
    """

    embedding: Tensor
    bias: Tensor


class GeneDecoder(nn.Module):
    """Computes the expression of any list of genes from latent factors."""

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
        """Width of the gene embeddings."""
        return self.gene.shape[1]

    def hidden(self, u: Tensor) -> Tensor:
        """h(u), shape (B, width)."""
        if self.config.kind == "linear":
            return u
        result: Tensor = self.network(u) if self.config.kind == "mlp" else self.linear(u) + self.network(u)
        return result

    def of(self, genes: Tensor) -> GeneRows:
        """Embeddings and biases of a gene list, which several calls can share."""
        # unlike an index, index_select has a gradient that a GPU need not sort for
        return GeneRows(self.gene.index_select(0, genes), self.bias.index_select(0, genes))

    def forward(self, hidden: Tensor, genes: Tensor | GeneRows) -> Tensor:
        """Values of a gene list, shape (…, G)."""
        rows = self.of(genes) if isinstance(genes, Tensor) else genes
        values = nn.functional.linear(hidden, rows.embedding, rows.bias)
        return nn.functional.leaky_relu(values, 0.2) if self.config.kind == "mlp" else values

    def change(self, hidden: Tensor, genes: Tensor | GeneRows) -> Tensor:
        """Change of expression for a change of h(u), shape (…, G); not valid if x̂ ends in a LeakyReLU."""
        rows = self.of(genes) if isinstance(genes, Tensor) else genes
        return hidden @ rows.embedding.T
