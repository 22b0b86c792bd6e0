"""The global edge table: which gene can speak to which pathway.

Edges live once, over the whole gene vocabulary; a dataset with a smaller panel simply has no tokens for
the edges of genes it did not measure. Work and memory follow the number of (cell, edge) pairs.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tadvae.batch import PackedCells
from tadvae.pathways.membership import Membership


@dataclass(frozen=True)
class CellEdges:
    """Edges of the tokens of some cells: N (token, edge) pairs.

    Attributes
    ----------
    token, edge : (N,) int64
        Into the cells' tokens and into the edge table.
    slot : (N,) int64
        ``cell * P + pathway``: the sum or softmax that the pair belongs to.
    n_slots
        ``B * P``.
    """

    token: Tensor
    edge: Tensor
    slot: Tensor
    n_slots: int


class EdgeTable(nn.Module):
    """Edges sorted by gene, so that a token finds its own in one step.

    Attributes
    ----------
    gene, pathway : (E,) int64
        Ends of every edge.
    """

    gene: Tensor
    pathway: Tensor
    first: Tensor
    degree: Tensor

    def __init__(self, membership: Membership, n_genes: int) -> None:
        super().__init__()
        gene = torch.as_tensor(membership.gene, dtype=torch.int64)
        pathway = torch.as_tensor(membership.pathway, dtype=torch.int64)
        order = torch.argsort(gene * membership.n_pathways + pathway)
        degree = torch.bincount(gene, minlength=n_genes)
        self.n_pathways = membership.n_pathways
        self.register_buffer("gene", gene[order], persistent=False)
        self.register_buffer("pathway", pathway[order], persistent=False)
        self.register_buffer("first", torch.cumsum(degree, 0) - degree, persistent=False)
        self.register_buffer("degree", degree, persistent=False)

    @property
    def n_edges(self) -> int:
        """E."""
        return len(self.gene)

    def expand(self, cells: PackedCells) -> CellEdges:
        """Every (token, edge) pair of the cells."""
        degree = self.degree[cells.gene_ids]  # (T,)
        token = torch.repeat_interleave(torch.arange(len(degree), device=degree.device), degree)  # (N,)
        before = torch.cumsum(degree, 0) - degree  # (T,)
        within = torch.arange(len(token), device=degree.device) - before[token]  # (N,)
        edge = self.first[cells.gene_ids[token]] + within  # (N,)
        slot = cells.cell[token] * self.n_pathways + self.pathway[edge]  # (N,)
        return CellEdges(token, edge, slot, cells.n_cells * self.n_pathways)


def sum_by_slot(values: Tensor, edges: CellEdges) -> Tensor:
    """Sum (N, …) values into (n_slots, …)."""
    result = values.new_zeros(edges.n_slots, *values.shape[1:])
    return result.index_add(0, edges.slot, values)


def softmax_by_slot(logits: Tensor, edges: CellEdges) -> Tensor:
    """Softmax of (N, h) logits within each slot; a slot without pairs has no weights, and no NaN."""
    index = edges.slot[:, None].expand_as(logits)
    highest = logits.detach().new_full((edges.n_slots, logits.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, index, logits.detach(), "amax")  # (n_slots, h)
    weight = torch.exp(logits - highest[edges.slot])  # (N, h)
    return weight / sum_by_slot(weight, edges)[edges.slot]
