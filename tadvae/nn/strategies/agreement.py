"""Attention over the measured members of a pathway, with weights learned before training."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tadvae.nn.attention import edge_sum, edge_values
from tadvae.nn.edges import ActiveEdges, CellEdges, EdgeTable, softmax_by_slot
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import Contributions, PathwayLayer
from tadvae.nn.strategies.members import by_panel

if TYPE_CHECKING:
    from tadvae.nn.strategies.base import PathwayConfig


class AgreementMasking(PathwayLayer, name="agreement"):
    """``a_p = √m_p Σ_g α_pg x_g + b_p``, ``α_p = softmax(l_p)`` over the m_p members that the panel measures.

    The logits l are those of the pathways (:attr:`tadvae.pathways.membership.Membership.logit`), learned
    from the control cells before training so that the activities of a cell through two halves of its genes
    agree (:mod:`tadvae.training.agreement`). Training does not change them: what an activity means does not
    depend on the perturbations of a screen. Silent members have a weight and no value, as in ``members``.
    """

    has_tokens = False
    learns_agreement = True

    def __init__(
        self,
        config: "PathwayConfig",
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__(config, edges)

    @property
    def is_linear(self) -> bool:
        """Always: φ(x) = x."""
        return True

    def weights(self, edges: ActiveEdges) -> Tensor:
        """``√m_p α_pg`` of the edges of one panel, (E,)."""
        every = torch.arange(edges.n_edges, device=edges.edge.device)
        slots = CellEdges(every, every, edges.pathway, edges.n_pathways)
        share = softmax_by_slot(self.edges.logit[edges.edge][:, None], slots)[:, 0]  # (E,)
        n_measured = torch.zeros(edges.n_pathways, device=share.device, dtype=share.dtype)
        n_measured = n_measured.index_add(0, edges.pathway, torch.ones_like(share))  # (P,)
        result: Tensor = n_measured.sqrt()[edges.pathway] * share
        return result

    def sums(self, cells: PackedCells) -> Tensor:
        """Weighted sums of the members, shape (B, P)."""
        parts, rows = [], []
        for part, panel, row in by_panel(cells):
            edges = self.edges.active(part, genes=panel)
            weight = self.weights(edges)[:, None]  # (E, 1)
            parts.append(edge_sum(part, edges, self.expression.of(part.values), weight, self.numba))
            rows.append(row)
        if not parts:
            return self.bias.new_zeros(0, len(self.bias))
        return torch.cat(parts)[torch.argsort(torch.cat(rows))]

    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """Contributions ``√m_p α_pg x_g`` of the members."""
        cell, gene, of, value = [], [], [], []
        for part, panel, row in by_panel(self.tokens_of(cells)):
            edges = self.edges.active(part, pathway, panel)
            pairs = edges.expand(part)
            basis = self.expression.of(part.values)
            cell.append(row[part.cell[pairs.token]])
            gene.append(part.gene_ids[pairs.token])
            of.append(edges.pathway[pairs.edge])
            value.append(edge_values(basis, self.weights(edges)[None, :, None], pairs)[:, 0])
        return Contributions(*(torch.cat(parts) for parts in (cell, gene, of, value)))
