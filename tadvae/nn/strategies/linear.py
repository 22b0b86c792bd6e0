"""The masked linear layer: signed weights, no attention."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tadvae.batch import PackedCells
from tadvae.nn.attention import edge_sum, edge_values
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.strategies.base import Contributions, PathwayLayer

if TYPE_CHECKING:
    from tadvae.nn.masking import PathwayConfig


class LinearMasking(PathwayLayer, name="linear"):
    """``a_p = Σ_g m_pg w_pg x_g + b_p``, with ``m = 1`` for members and the leak λ elsewhere.

    Without a leak this is NetActivity's layer; with one it is SENA's, whose weights are dense (REFERENCES
    A2, A3). Under ``value_mode`` film and bins a member has a function of x in place of ``w·x``:
    ``Σ_b w_b φ_b(x)``, affine or piecewise linear.
    """

    own_settings = frozenset({"leak"})
    has_tokens = False

    def __init__(
        self,
        config: "PathwayConfig",
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__(config, edges)
        slope = torch.randn(edges.n_edges) / edges.size.clamp(min=1)[edges.pathway] ** 0.5  # (E,)
        identity = torch.tensor(self.expression.identity)
        self.weight = nn.Parameter(slope if len(identity) == 1 else slope[:, None] * identity)
        if config.leak:
            self.outside = nn.Parameter(torch.randn(edges.n_genes, edges.n_pathways) / edges.n_genes**0.5)

    def sums(self, cells: PackedCells) -> Tensor:
        """Masked sums, shape (B, P)."""
        edges = self.edges.active(cells)
        weight = self.weight.view(-1, self.expression.n_basis)[edges.edge]  # (E, n_basis)
        activity = edge_sum(cells, edges, self.expression.of(cells.values), weight, self.numba)
        if not self.config.leak:
            return activity
        n_genes = self.edges.n_genes
        dense = cells.values.new_zeros(cells.n_cells * n_genes)
        dense = dense.index_add(0, cells.cell * n_genes + cells.gene_ids, cells.values).view(-1, n_genes)
        return activity + self.config.leak * (dense @ self._outside())  # (B, P)

    def _outside(self) -> Tensor:
        """Weights of the genes outside, zero where a gene is a member, (n_genes, P)."""
        inside = torch.ones_like(self.outside)
        inside[self.edges.gene, self.edges.pathway] = 0.0
        return self.outside * inside

    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """w·x of the members, and with a leak λ·w·x of every other gene."""
        cells = self.tokens_of(cells)
        edges = self.edges.active(cells, pathway)
        pairs = edges.expand(cells)
        weight = self.weight.view(-1, self.expression.n_basis)[edges.edge]
        members = Contributions(
            cell=cells.cell[pairs.token],
            gene=cells.gene_ids[pairs.token],
            pathway=edges.pathway[pairs.edge],
            value=edge_values(self.expression.of(cells.values), weight.T[..., None], pairs)[:, 0],
        )
        if not self.config.leak:
            return members
        device = cells.cell.device
        every = torch.arange(self.edges.n_pathways, device=device)
        chosen = every if pathway is None else every[pathway : pathway + 1]
        edge = torch.zeros(self.edges.n_genes, self.edges.n_pathways, dtype=torch.bool, device=device)
        edge[self.edges.gene, self.edges.pathway] = True
        token, column = torch.nonzero(~edge[:, chosen][cells.gene_ids], as_tuple=True)  # (N,)
        gene, outside = cells.gene_ids[token], chosen[column]
        leaking = self.config.leak * cells.values[token] * self.outside[gene, outside]
        return Contributions(
            cell=torch.cat([members.cell, cells.cell[token]]),
            gene=torch.cat([members.gene, gene]),
            pathway=torch.cat([members.pathway, outside]),
            value=torch.cat([members.value, leaking]),
        )

    def reads(self, pathway: int) -> Tensor:
        """The members; with a leak every gene."""
        return torch.arange(self.edges.n_genes) if self.config.leak else super().reads(pathway)
