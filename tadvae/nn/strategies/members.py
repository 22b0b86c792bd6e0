"""Attention over the measured members of a pathway: a read-out that knows how many genes are silent."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tadvae.nn.attention import edge_dot, edge_sum, edge_values
from tadvae.nn.edges import ActiveEdges, CellEdges, EdgeTable, softmax_by_slot, sum_by_slot
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.attention import AttentionLayer, Pairs, with_edges

if TYPE_CHECKING:
    from tadvae.nn.strategies.base import PathwayConfig


class MemberMasking(AttentionLayer, name="members"):
    """``a_p = Σ_heads Σ_g α_pg √m_p (1/h + o_p·v_g / √d_head) x_g + b_p``, with keys of genes, not of cells.

    ``α_p = softmax(q_p·W_k E_g / √d_head)`` runs over the members g of the pathway that the cell's dataset
    measures, silent ones included: a silent gene has a weight and no value, so the activity of a cell that
    expresses few members is small. ``v_g = W_v E_g``, m_p is the number of members, h that of heads. The
    read-out o_p starts at zero: the activity starts as a weighted mean of the members' expression, times
    √m_p, in a unit that does not depend on the panel. With ``value_mode`` film and bins, a function of x
    replaces x in both summands.

    The weights depend on the panel and not on the cell. They are computed once per panel, and a cell costs
    one multiplication for each of its (token, edge) pairs.
    """

    identity: Tensor

    def __init__(
        self,
        config: "PathwayConfig",
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__(config, edges, encoder, given)
        # coefficients c of x itself, (n_basis,)
        identity = torch.tensor(self.expression.identity, dtype=torch.float64)
        self.register_buffer("identity", identity, persistent=False)
        with torch.no_grad():
            self.readout.zero_()

    @property
    def is_linear(self) -> bool:
        """Whether φ(x) = x, without an encoder."""
        return self.config.value_mode == "scale" and self.encoder is None

    def sums(self, cells: PackedCells) -> Tensor:
        """Activities without their bias, shape (B, P)."""
        parts, rows = [], []
        for part, panel, row in by_panel(cells):
            edges = self.edges.active(part, genes=panel)
            weight = self.attention(edges)  # (E, h)
            if self.encoder is None:
                total = (weight * self.loads(edges)).sum(-1).T  # (E, n_basis)
                basis = self.expression.of(part.values)
                parts.append(edge_sum(part, edges, basis, total, self.numba))
            else:
                _, pairs, value = self.encoded_values(part, edges)
                total = (weight[pairs.edge] * value).sum(-1)  # (N,)
                parts.append(sum_by_slot(total, pairs).view(part.n_cells, -1))
            rows.append(row)
        if not parts:
            return self.bias.new_zeros(0, len(self.bias))
        return torch.cat(parts)[torch.argsort(torch.cat(rows))]

    def attention(self, edges: ActiveEdges) -> Tensor:
        """Weights α of the edges of one panel, (E, h); they sum to one over the members of a pathway."""
        embedding = self.embedding()
        keys = self._heads(self.w_key(embedding[edges.genes]))[:, None]  # (G, 1, h, d_head)
        logit = edge_dot(self.queries(embedding), keys, edges, self.numba).squeeze(0)  # (E, h)
        every = torch.arange(edges.n_edges, device=logit.device)
        return softmax_by_slot(logit, CellEdges(every, every, edges.pathway, edges.n_pathways))

    def loads(self, edges: ActiveEdges) -> Tensor:
        """``√m_p (c_b/h + o_p·v_gb / √d_head)`` of the edges, per basis function b, (n_basis, E, h)."""
        values = self._heads(self.w_value(self.values.modulate(self.embedding()[edges.genes])))
        learned = edge_dot(self._readouts(), values, edges, self.numba)
        identity = self.identity.to(learned.dtype)
        return self.size_factor(edges)[:, None] * (identity[:, None, None] / learned.shape[-1] + learned)

    def _readouts(self) -> Tensor:
        """Read-outs o/√d_head, (P, h, d_head)."""
        readout = self._heads(self.readout)
        result: Tensor = readout / readout.shape[-1] ** 0.5
        return result

    def size_factor(self, edges: ActiveEdges) -> Tensor:
        """√m_p of the pathway of each edge, (E,)."""
        size: Tensor = self.edges.size.to(self.bias.dtype)
        return size.sqrt()[edges.pathway]

    def encoded_values(self, cells: PackedCells, edges: ActiveEdges) -> tuple[PackedCells, CellEdges, Tensor]:
        """The tokens with an edge, their pairs, and of each ``√m_p (x/h + o_p·v_t / √d_head)``, (N, h)."""
        kept, edges, read = with_edges(cells, edges)
        pairs = edges.expand(kept)
        _, value = self.keys_and_values(cells, self.embedding(), read)  # (T', h, d_head)
        pathway = edges.pathway[pairs.edge]
        learned = (self._readouts()[pathway] * value[pairs.token]).sum(-1)
        basis = self.expression.of(kept.values).dense(self.expression.n_basis)  # (T', n_basis)
        own = (basis @ self.identity.to(basis.dtype))[pairs.token, None]  # (N, 1)
        return kept, pairs, self.size_factor(edges)[pairs.edge, None] * (own / learned.shape[-1] + learned)

    def pairs(self, cells: PackedCells, pathway: int | None = None) -> Pairs:
        """Attention weights and values of every pair, for one pathway or for all; in plain torch.

        The weights of a cell sum to less than one: silent members have the rest.
        """
        found = []
        for part, panel, row in by_panel(self.tokens_of(cells)):
            edges = self.edges.active(part, pathway, panel)
            if self.encoder is None:
                pairs = edges.expand(part)
                value = edge_values(self.expression.of(part.values), self.loads(edges), pairs)
            else:
                part, pairs, value = self.encoded_values(part, edges)
            found.append(
                Pairs(
                    cell=row[part.cell[pairs.token]],
                    gene=part.gene_ids[pairs.token],
                    pathway=edges.pathway[pairs.edge],
                    weight=self.attention(edges)[pairs.edge],
                    value=value,
                )
            )
        if len(found) == 1:
            return found[0]
        return Pairs(
            *(
                torch.cat([getattr(part, name) for part in found])
                for name in ("cell", "gene", "pathway", "weight", "value")
            )
        )


def by_panel(cells: PackedCells) -> Iterator[tuple[PackedCells, Tensor, Tensor]]:
    """The cells of each panel that occurs, the panel's genes, and the cells' rows among all, (n,) int64.

    Raises
    ------
    ValueError
        If the cells came without panels.
    """
    if cells.panel is None:
        raise ValueError("masking 'members' needs the measured genes: pack the cells with their panels")
    for i, genes in enumerate(cells.panels):
        chosen = cells.panel == i  # (B,)
        row = torch.nonzero(chosen)[:, 0]
        if len(row) == cells.n_cells:
            yield cells, genes, row
        elif len(row):
            token = torch.nonzero(chosen[cells.cell])[:, 0]
            place = torch.cumsum(chosen, 0) - 1  # (B,) row of each chosen cell among the chosen
            part = replace(
                cells,
                gene_ids=cells.gene_ids[token],
                values=cells.values[token],
                cell=place[cells.cell[token]],
                n_cells=len(row),
                panel=cells.panel[row],
                n_pairs=None,
            )
            yield part, genes, row
