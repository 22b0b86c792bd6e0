"""Embeddings of genes and pathways."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def embedding_table(n: int, d: int) -> nn.Parameter:
    """Rows of about unit length."""
    return nn.Parameter(torch.randn(n, d) / d**0.5)


@dataclass(frozen=True)
class GivenVectors:
    """Vectors that the user gave; a row of zeros where a gene or pathway has none.

    Attributes
    ----------
    gene : (n_genes, d)
    pathway : (P, d)
    """

    gene: Tensor | None = None
    pathway: Tensor | None = None
