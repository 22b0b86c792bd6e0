"""Masking strategies: how the genes of a cell make the activity of a pathway.

Each strategy is one class that turns a cell's tokens into per-gene *contributions*; the activity is their
sum plus a bias, so contributions are exact by construction. A new strategy is one subclass of
:class:`PathwayLayer` in :data:`STRATEGIES`.

While keys and values depend on the gene's identity alone (no encoder), ``q·k`` and the value's read-out
are numbers of an *edge*, the same for every cell: they are computed once a step over the E edges, and a
cell costs a few scalars for each of its (token, edge) pairs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from tadvae.batch import PackedCells
from tadvae.config import Config
from tadvae.nn.edges import CellEdges, EdgeTable, softmax_by_slot, sum_by_slot
from tadvae.nn.embedding import embedding_table, mean_by_pathway


class PathwayConfig(Config):
    """The pathway layer."""

    masking: Literal["hard", "linear"] = "hard"
    """``hard``: attention over member genes only (the paper, approach 1); ``linear``: a signed weight for
    each member gene, as NetActivity and SENA have it."""
    d_embed: int = Field(128, ge=1)
    """Width of gene and pathway embeddings (the paper: 128 or 256)."""
    n_heads: int = Field(8, ge=1)
    """Attention heads (the paper: head size 16)."""
    pathway_init: Literal["learned", "members"] = "members"
    """Pathway queries: a learned table, or one plus the mean embedding of the member genes."""
    leak: float = Field(0.0, ge=0, le=1)
    """``linear`` only: weight λ of genes outside a pathway (SENA)."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "PathwayConfig":
        if self.d_embed % self.n_heads:
            raise ValueError(f"d_embed {self.d_embed} is not a multiple of n_heads {self.n_heads}")
        if self.leak and self.masking != "linear":
            raise ValueError("'leak' belongs to masking 'linear'")
        return self


@dataclass(frozen=True)
class Contributions:
    """What each token adds to each pathway.

    Attributes
    ----------
    edges
        N (token, edge) pairs.
    value : (N,)
        Contribution of each pair.
    """

    edges: CellEdges
    value: Tensor


class PathwayLayer(nn.Module, ABC):
    """Activities of P pathways from a cell's gene tokens."""

    def __init__(self, config: PathwayConfig, edges: EdgeTable, n_genes: int) -> None:
        super().__init__()
        self.config = config
        self.edges = edges
        self.bias = nn.Parameter(torch.zeros(edges.n_pathways))

    @abstractmethod
    def contributions(self, cells: PackedCells) -> Contributions:
        """Exact contribution of every (token, edge) pair."""

    def forward(self, cells: PackedCells) -> Tensor:
        """Activities, shape (B, P): the sum of the contributions plus a bias."""
        parts = self.contributions(cells)
        return sum_by_slot(parts.value, parts.edges).view(cells.n_cells, -1) + self.bias  # (B, P)


class HardMasking(PathwayLayer):
    """``softmax(QKᵀ/√d + M_logits) V`` over a pathway's expressed members, read out to one scalar.

    Tokens are ``E[g]·x`` (the paper, step 3), so keys and values scale with expression:
    ``logit = x·(q_p·W_K E_g)/√d_head`` and ``value = x·(o_p·W_V E_g)``. A pathway without an expressed
    member has no contribution: its activity is its bias.
    """

    def __init__(self, config: PathwayConfig, edges: EdgeTable, n_genes: int) -> None:
        super().__init__(config, edges, n_genes)
        d = config.d_embed
        self.gene = embedding_table(n_genes, d)
        self.query = embedding_table(edges.n_pathways, d)
        self.readout = nn.Parameter(torch.randn(edges.n_pathways, d) / d**0.5)
        self.w_query = nn.Linear(d, d, bias=False)
        self.w_key = nn.Linear(d, d, bias=False)
        self.w_value = nn.Linear(d, d, bias=False)

    def edge_scalars(self) -> tuple[Tensor, Tensor]:
        """(q·k)/√d_head and the value's read-out for every edge and head, each (E, h)."""
        gene, pathway = self.edges.gene, self.edges.pathway
        heads = (self.edges.n_edges, self.config.n_heads, self.config.d_embed // self.config.n_heads)
        rows = self.gene[gene]  # (E, d)
        query: Tensor = self.query
        if self.config.pathway_init == "members":
            query = query + mean_by_pathway(rows, pathway, self.edges.n_pathways)
        q = self.w_query(query)[pathway].view(heads)  # (E, h, d/h)
        k = self.w_key(rows).view(heads)  # (E, h, d/h)
        v = self.w_value(rows).view(heads)  # (E, h, d/h)
        o = self.readout[pathway].view(heads)  # (E, h, d/h)
        return (q * k).sum(-1) / k.shape[-1] ** 0.5, (o * v).sum(-1)

    def contributions(self, cells: PackedCells) -> Contributions:
        """α·x·(o·v), summed over heads."""
        edges = self.edges.expand(cells)
        match, loading = self.edge_scalars()
        x = cells.values[edges.token][:, None]  # (N, 1)
        weight = softmax_by_slot(x * match[edges.edge], edges)  # (N, h)
        return Contributions(edges, (weight * x * loading[edges.edge]).sum(-1))


class LinearMasking(PathwayLayer):
    """``a_p = Σ_g m_pg w_pg x_g + b_p``, with ``m = 1`` for members and the leak λ elsewhere.

    Without a leak this is NetActivity's layer; with one it is SENA's, whose weights are dense.
    """

    def __init__(self, config: PathwayConfig, edges: EdgeTable, n_genes: int) -> None:
        super().__init__(config, edges, n_genes)
        size = torch.bincount(edges.pathway, minlength=edges.n_pathways).clamp(min=1)
        self.weight = nn.Parameter(torch.randn(edges.n_edges) / size[edges.pathway] ** 0.5)
        if config.leak:
            self.outside = nn.Parameter(torch.randn(n_genes, edges.n_pathways) / n_genes**0.5)

    def contributions(self, cells: PackedCells) -> Contributions:
        """w·x of the members; genes outside add ``λ·w·x`` in :meth:`forward` alone."""
        edges = self.edges.expand(cells)
        return Contributions(edges, cells.values[edges.token] * self.weight[edges.edge])

    def forward(self, cells: PackedCells) -> Tensor:
        """Activities, shape (B, P)."""
        activity = super().forward(cells)
        if not self.config.leak:
            return activity
        n_genes = len(self.outside)
        inside = torch.ones_like(self.outside)
        inside[self.edges.gene, self.edges.pathway] = 0.0
        dense = cells.values.new_zeros(cells.n_cells * n_genes)
        dense = dense.index_add(0, cells.cell * n_genes + cells.gene_ids, cells.values).view(-1, n_genes)
        return activity + self.config.leak * (dense @ (self.outside * inside))  # (B, P)


STRATEGIES: dict[str, type[PathwayLayer]] = {"hard": HardMasking, "linear": LinearMasking}


def pathway_layer(config: PathwayConfig, edges: EdgeTable, n_genes: int) -> PathwayLayer:
    """Build the layer that the config names."""
    return STRATEGIES[config.masking](config, edges, n_genes)
