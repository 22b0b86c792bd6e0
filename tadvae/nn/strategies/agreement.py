"""Attention over the measured members of a pathway, with weights learned before training."""

import torch
from torch import Tensor

from tadvae.nn.attention import edge_sum, edge_values
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import Contributions, PathwayLayer


class AgreementMasking(PathwayLayer, name="agreement"):
    """``a_p = √m_p Σ_g α_pg x_g + b_p``, ``α_p = softmax(l_p)`` over the m_p members that the panel measures.

    The logits l are those of the pathways (:attr:`tadvae.pathways.membership.Membership.logit`), learned
    from the control cells before training so that the activities of a cell through two halves of its genes
    agree (:mod:`tadvae.training.agreement`). Training does not change them: what an activity means does not
    depend on the perturbations of a screen. Silent members have a weight and no value, as in ``members``.
    """

    has_tokens = False
    learns_agreement = True

    @property
    def is_linear(self) -> bool:
        """Always: φ(x) = x."""
        return True

    def odds(self) -> Tensor:
        """``exp(l_pg)`` of all edges, (E,); a membership has no logits whose exponential is infinite."""
        return torch.exp(self.edges.logit)

    def scale(self, cells: PackedCells) -> Tensor:
        """``√m_p / Σ_g exp(l_pg)`` over the members that each panel measures, (n_panels, P)."""
        if cells.panel is None:
            raise ValueError("masking 'agreement' needs the measured genes: pack the cells with their panels")
        every, rows = self.edges, []
        odds = self.odds()
        for genes in cells.panels:
            measured = odds.new_zeros(every.n_genes).index_fill(0, genes, 1.0)[every.gene]  # (E,)
            zeros = odds.new_zeros(every.n_pathways)
            size = zeros.index_add(0, every.pathway, measured)
            total = zeros.index_add(0, every.pathway, measured * odds)
            rows.append(size.sqrt() / total.clamp(min=torch.finfo(total.dtype).tiny))
        return torch.stack(rows)

    def sums(self, cells: PackedCells) -> Tensor:
        """Weighted sums of the members, shape (B, P)."""
        edges = self.edges.active(cells)
        odds = self.odds()[edges.edge, None]  # (E, 1)
        # the weights differ between panels by a factor for each pathway, so that no panel is read by itself
        total = edge_sum(cells, edges, self.expression.of(cells.values), odds, self.numba)
        return total * self.scale(cells)[cells.panel]

    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """Contributions ``√m_p α_pg x_g`` of the members."""
        cells = self.tokens_of(cells)
        edges = self.edges.active(cells, pathway)
        pairs = edges.expand(cells)
        cell, of = cells.cell[pairs.token], edges.pathway[pairs.edge]
        odds = self.odds()[edges.edge][None, :, None]  # (1, E, 1)
        value = edge_values(self.expression.of(cells.values), odds, pairs)[:, 0]
        return Contributions(
            cell=cell,
            gene=cells.gene_ids[pairs.token],
            pathway=of,
            value=value * self.scale(cells)[cells.panel][cell, of],
        )
