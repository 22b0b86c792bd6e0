"""Embeddings of genes and pathways."""

import torch
from torch import Tensor, nn


def embedding_table(n: int, d: int) -> nn.Parameter:
    """Rows of about unit length."""
    return nn.Parameter(torch.randn(n, d) / d**0.5)


def mean_by_pathway(rows: Tensor, pathway: Tensor, n_pathways: int) -> Tensor:
    """Mean of edge rows (E, d) over each pathway's edges, shape (P, d); zero where there are none."""
    total = rows.new_zeros(n_pathways, rows.shape[1]).index_add(0, pathway, rows)
    size = torch.bincount(pathway, minlength=n_pathways).clamp(min=1)
    return total / size[:, None]
