"""Base class of the attention strategies: embeddings, queries, keys, values, and the sum over edges."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tadvae.nn.attention import (
    edge_attention,
    edge_dot,
    edge_logits,
    edge_values,
    member_mean,
    token_attention,
    token_pairs,
)
from tadvae.nn.edges import ActiveEdges, EdgeTable, softmax_by_slot
from tadvae.nn.embedding import GivenVectors, embedding_table
from tadvae.nn.encoder import EncoderConfig, TokenEncoder
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import Contributions, PathwayLayer
from tadvae.nn.token_rows import DenseTokens, ScaledTokens
from tadvae.nn.tokens import TokenValues

if TYPE_CHECKING:
    from tadvae.nn.strategies.base import PathwayConfig

Gates = tuple[Tensor | None, Tensor | None]
"""Factor and summand of the logits of each active edge, (E,) each; None means one and zero."""


@dataclass(frozen=True)
class Pairs:
    """Attention weights and values of N (token, pathway) pairs.

    Attributes
    ----------
    cell, gene, pathway : (N,) int64
        Index of the cell, vocabulary index of the gene, and index of the pathway.
    weight : (N, h)
        Attention weights; they sum to one over the tokens of a cell.
    value : (N, h)
        Read-out of the token's value.
    """

    cell: Tensor
    gene: Tensor
    pathway: Tensor
    weight: Tensor
    value: Tensor


class AttentionLayer(PathwayLayer):
    """``softmax(QKᵀ/√d_head) V`` of pathways over the tokens of a cell, read out to one scalar per pathway.

    Queries are pathways; the read-out is one vector per pathway, so that the activity is
    ``Σ_heads Σ_t α_pt·(o_p·v_t) + b_p`` and the contribution of every token is exact. A strategy defines
    which tokens a pathway sees (its edges) and how their logits are gated (:meth:`gates`). A pathway that
    sees no token has no contributions: its activity is its bias.
    """

    def __init__(
        self,
        config: "PathwayConfig",
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__(config, edges)
        d, P, given = config.d_embed, edges.n_pathways, given or GivenVectors()
        self.gene = embedding_table(edges.n_genes, d)
        self.query = embedding_table(P, d)
        self.readout = nn.Parameter(torch.randn(P, d) / d**0.5)
        self.w_query = nn.Linear(d, d, bias=False)
        self.w_key = nn.Linear(d, d, bias=False)
        self.w_value = nn.Linear(d, d, bias=False)
        self.values = TokenValues(self.expression, d)
        self.encoder: TokenEncoder | None = None
        if encoder is not None and encoder.kind != "none":
            self.encoder = TokenEncoder(encoder, d, config.n_heads)
        if config.gene_vectors is not None and config.gene_vectors_use == "frozen":
            rows = torch.zeros(edges.n_genes, d) if given.gene is None else given.gene
            self.gene_given = nn.Parameter(rows, requires_grad=False)
        elif given.gene is not None:
            with torch.no_grad():
                self.gene[(given.gene != 0).any(1)] = given.gene[(given.gene != 0).any(1)]
        with torch.no_grad():  # the read-out starts so that members contribute positively
            members = member_mean(self.w_value(self.embedding()), edges, self.numba)
            size = edges.size[:, None]
            self.readout.copy_(torch.where(size > 0, members * size, self.readout))
        if config.pathway_init == "text":
            rows = torch.zeros(P, d) if given.pathway is None else given.pathway
            self.text = nn.Parameter(rows, requires_grad=False)
            self.w_text = nn.Linear(d, d, bias=False)

    def gates(self, edges: ActiveEdges) -> Gates:
        """Factor and summand that the strategy applies to the logits of each edge."""
        return None, None

    # -- parameters to scalars ----------------------------------------------------------------------

    def embedding(self) -> Tensor:
        """Gene embeddings E, (n_genes, d); a given, frozen vector replaces the learned one."""
        if not hasattr(self, "gene_given"):
            return self.gene
        has = (self.gene_given != 0).any(1, keepdim=True)
        return torch.where(has, self.gene_given, self.gene)

    def queries(self, embedding: Tensor) -> Tensor:
        """Scaled queries Q/√d_head, (P, h, d_head)."""
        query: Tensor = self.query
        if self.config.pathway_init == "members":
            query = query + member_mean(embedding, self.edges, self.numba)
        elif self.config.pathway_init == "text":
            query = query + self.w_text(self.text)
        q = self._heads(self.w_query(query))
        result: Tensor = q / q.shape[-1] ** 0.5
        return result

    def edge_scalars(self, edges: ActiveEdges) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Inputs of :func:`edge_attention`: ``match`` and ``shift`` (E, h), ``load`` (n_basis, E, h)."""
        embedding = self.embedding()
        rows = embedding[edges.genes]  # (G, d)
        keys = self._heads(self.w_key(rows))[:, None]  # (G, 1, h, d_head)
        logit = edge_dot(self.queries(embedding), keys, edges, self.numba).squeeze(0)  # (E, h)
        values = self.w_value(self.values.modulate(rows))  # (G, n_basis, d)
        load = edge_dot(self._heads(self.readout), self._heads(values), edges, self.numba)
        gate, shift = self.gates(edges)
        logit = logit if gate is None else logit * gate[:, None]
        shift = None if shift is None else shift[:, None].expand_as(logit)
        if self.values.plain:
            return logit, shift, load
        return None, logit if shift is None else logit + shift, load

    def keys_and_values(
        self, cells: PackedCells, embedding: Tensor, read: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys K and values V of every token, (T, h, d_head) each; with an encoder, of those at ``read``."""
        genes, x = cells.gene_ids, cells.values
        if self.encoder is not None:
            given = (
                ScaledTokens.from_genes(embedding, genes, x, self.numba)
                if self.values.plain
                else DenseTokens(self.values(embedding[genes], x))
            )
            encoded = self.encoder(given, cells.offsets, read)  # (T', d)
            return self._heads(self.w_key(encoded)), self._heads(self.w_value(encoded))
        rows = embedding[genes]  # (T, d)
        tokens = self.values(rows, x)
        # without an encoder, the keys of film and bins do not depend on expression
        keys = self.w_key(tokens if self.values.plain else rows)
        return self._heads(keys), self._heads(self.w_value(tokens))

    def _heads(self, rows: Tensor) -> Tensor:
        result: Tensor = rows.unflatten(-1, (self.config.n_heads, -1))
        return result

    # -- cells to activities ------------------------------------------------------------------------

    def sums(self, cells: PackedCells) -> Tensor:
        """Activities without their bias, shape (B, P)."""
        edges = self.edges.active(cells)
        if self.encoder is None:
            basis = self.expression.of(cells.values)
            return edge_attention(cells, edges, basis, *self.edge_scalars(edges), self.numba)
        kept, edges, projected = self.encoded(cells, edges)
        return token_attention(kept, edges, *projected, *self.gates(edges), self.numba)

    def encoded(
        self, cells: PackedCells, edges: ActiveEdges
    ) -> tuple[PackedCells, ActiveEdges, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The cells and edges of the tokens with an edge alone; queries, read-outs, their keys and values."""
        kept, edges, read = with_edges(cells, edges)
        embedding = self.embedding()
        query, readout = self.queries(embedding), self._heads(self.readout)
        return kept, edges, (query, readout, *self.keys_and_values(cells, embedding, read))

    def pairs(self, cells: PackedCells, pathway: int | None = None) -> Pairs:
        """Attention weights and values of every pair, for one pathway or for all; in plain torch."""
        cells = self.tokens_of(cells)
        edges = self.edges.active(cells, pathway)
        if self.encoder is None:
            pairs = edges.expand(cells)
            match, shift, load = self.edge_scalars(edges)
            logits = edge_logits(cells.values, match, shift, pairs, like=load)
            value = edge_values(self.expression.of(cells.values), load, pairs)
        else:
            cells, edges, projected = self.encoded(cells, edges)
            pairs = edges.expand(cells)
            logits, value = token_pairs(edges, pairs, *projected, *self.gates(edges))
        return Pairs(
            cell=cells.cell[pairs.token],
            gene=cells.gene_ids[pairs.token],
            pathway=edges.pathway[pairs.edge],
            weight=softmax_by_slot(logits, pairs),
            value=value,
        )

    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """Contributions α·(o·v) of every gene, summed over heads."""
        pairs = self.pairs(cells, pathway)
        return Contributions(pairs.cell, pairs.gene, pairs.pathway, (pairs.weight * pairs.value).sum(-1))


def with_edges(cells: PackedCells, edges: ActiveEdges) -> tuple[PackedCells, ActiveEdges, Tensor]:
    """The cells with those tokens alone that have an edge, their edges, and the tokens' positions, (T',)."""
    read = torch.nonzero(edges.token_gene >= 0)[:, 0]
    kept = replace(cells, gene_ids=cells.gene_ids[read], values=cells.values[read], cell=cells.cell[read])
    return kept, replace(edges, token_gene=edges.token_gene[read]), read
