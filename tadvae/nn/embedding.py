"""Embeddings of genes and pathways."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def embedding_table(n: int, d: int) -> nn.Parameter:
    """A learned table of n vectors of width d; their mean length is about one at the start."""
    return nn.Parameter(torch.randn(n, d) / d**0.5)


@dataclass(frozen=True)
class GivenVectors:
    """Vectors from files of the user; a gene or pathway without a vector has a row of zeros.

    Attributes
    ----------
    gene : (n_genes, d)
        Vectors of the genes; None: no file.
    pathway : (P, d)
        Vectors of the pathways; None: no file.
    """

    gene: Tensor | None = None
    pathway: Tensor | None = None
