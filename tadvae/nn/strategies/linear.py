"""The masked linear layer: signed weights, no attention."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tadvae.nn.attention import edge_sum, edge_values
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import Contributions, PathwayLayer

if TYPE_CHECKING:
    from tadvae.nn.strategies.base import PathwayConfig


class LinearMasking(PathwayLayer, name="linear"):
    """``a_p = Σ_g m_pg w_pg x_g + b_p``, with ``m = 1`` for members and the leak λ elsewhere.

    Without a leak this is the layer of NetActivity (Ruiz-Arenas et al. 2024); with a leak it is that of SENA
    (de la Fuente et al. 2025), whose weights are dense. With ``value_mode`` film and bins, a function of x
    replaces ``w·x``: ``Σ_b w_b φ_b(x)``, affine or piecewise linear.
    """

    inside: Tensor
    own_settings = frozenset({"leak", "weight_init"})
    has_tokens = False

    def __init__(
        self,
        config: "PathwayConfig",
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__(config, edges)
        if config.leak:  # a dense layer: weights are multiplied by 1 inside and λ outside, as published
            inside = torch.zeros(edges.n_genes, edges.n_pathways, dtype=torch.bool)
            inside[edges.gene, edges.pathway] = True
            self.register_buffer("inside", inside, persistent=False)
            self.weight = nn.Parameter(self._start(inside.shape, torch.tensor(float(edges.n_genes))))
            return
        slope = self._start((edges.n_edges,), edges.size.clamp(min=1)[edges.pathway])  # (E,)
        identity = torch.tensor(self.expression.identity)
        self.weight = nn.Parameter(slope if len(identity) == 1 else slope[:, None] * identity)

    @property
    def is_linear(self) -> bool:
        """Whether φ(x) = x."""
        return self.config.value_mode == "scale"

    def _start(self, shape: tuple[int, ...], inputs: Tensor) -> Tensor:
        """Initial weights: about the scaled mean of a pathway's genes, or those of a dense layer."""
        if self.config.weight_init == "members":
            return (1.0 + 0.1 * torch.randn(shape)) / inputs**0.5
        result: Tensor = torch.empty(shape).uniform_(-1.0, 1.0) / self.edges.n_genes**0.5
        return result

    def sums(self, cells: PackedCells) -> Tensor:
        """Masked weighted sums, shape (B, P)."""
        if self.config.leak:
            n_genes = self.edges.n_genes
            dense = cells.values.new_zeros(cells.n_cells * n_genes)
            dense = dense.index_add(0, cells.cell * n_genes + cells.gene_ids, cells.values)
            return dense.view(-1, n_genes) @ self._leaking()  # (B, P)
        edges = self.edges.active(cells)
        weight = self.weight.view(-1, self.expression.n_basis)[edges.edge]  # (E, n_basis)
        return edge_sum(cells, edges, self.expression.of(cells.values), weight, self.numba)

    def _leaking(self) -> Tensor:
        """Weights times the mask, (n_genes, P)."""
        return torch.where(self.inside, self.weight, self.config.leak * self.weight)

    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """Contributions w·x of the members, and with a leak also λ·w·x of all other genes."""
        cells = self.tokens_of(cells)
        if self.config.leak:
            chosen = torch.arange(self.edges.n_pathways, device=cells.cell.device)
            if pathway is not None:
                chosen = chosen[pathway : pathway + 1]
            value = cells.values[:, None] * self._leaking()[cells.gene_ids][:, chosen]  # (T, n)
            n = len(chosen)
            return Contributions(
                cell=cells.cell.repeat_interleave(n),
                gene=cells.gene_ids.repeat_interleave(n),
                pathway=chosen.repeat(len(cells.gene_ids)),
                value=value.flatten(),
            )
        edges = self.edges.active(cells, pathway)
        pairs = edges.expand(cells)
        weight = self.weight.view(-1, self.expression.n_basis)[edges.edge]
        return Contributions(
            cell=cells.cell[pairs.token],
            gene=cells.gene_ids[pairs.token],
            pathway=edges.pathway[pairs.edge],
            value=edge_values(self.expression.of(cells.values), weight.T[..., None], pairs)[:, 0],
        )

    def reads(self, pathway: int) -> Tensor:
        """Vocabulary indices of the members; with a leak, of every gene."""
        return torch.arange(self.edges.n_genes) if self.config.leak else super().reads(pathway)
