"""The global edge table: which gene can contribute to which pathway.

Edges are stored once, over the whole gene vocabulary: the members of every pathway and, if a strategy can
learn them, candidates. A dataset with a smaller panel has no tokens for the edges of genes that it did not
measure. Time and memory are proportional to the number of (token, edge) pairs.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from tadvae.nn.packed import PackedCells
from tadvae.pathways.membership import Membership

Ends = tuple[np.ndarray, np.ndarray]
"""Pathway and gene of n edges: two arrays of integers, shape (n,)."""


@dataclass(frozen=True)
class CellEdges:
    """Edges of the tokens of some cells: N (token, edge) pairs.

    Attributes
    ----------
    token, edge : (N,) int64
        Index of the token among the cells' tokens, and of the edge among the active edges.
    slot : (N,) int64
        ``cell * P + pathway``: index of the sum or softmax that the pair belongs to.
    n_slots
        Number of (cell, pathway) slots, ``B * P``.
    """

    token: Tensor
    edge: Tensor
    slot: Tensor
    n_slots: int


@dataclass(frozen=True)
class ActiveEdges:
    """The E edges of the G genes that some cells have tokens of, sorted by gene.

    Attributes
    ----------
    genes : (G,) int64
        Vocabulary indices, sorted.
    starts : (G + 1,) int64
        Position of each gene's first edge, and E at the end.
    edge : (E,) int64
        Index of each edge in the edge table.
    gene, pathway : (E,) int64
        Gene and pathway of each edge; ``gene`` is an index into ``genes``.
    token_gene : (T,) int64
        Index of each token's gene in ``genes``, -1 if it has no edge.
    n_pathways
        Number P of pathways.
    is_whole
        Whether no edge of the genes is left out.
    order
        All edges of the table in the order of a GPU's kernel, if these are all; else None.
    every
        Whether every gene has an edge to every pathway, in the order of the pathways.
    """

    genes: Tensor
    starts: Tensor
    edge: Tensor
    gene: Tensor
    pathway: Tensor
    token_gene: Tensor
    n_pathways: int
    is_whole: bool = False
    order: "EdgeOrder | None" = None
    every: bool = False

    @property
    def n_edges(self) -> int:
        """Number E of active edges."""
        return len(self.edge)

    def expand(self, cells: PackedCells) -> CellEdges:
        """Every (token, edge) pair of the cells."""
        # Repeats each token once per edge of its gene, without a loop: `within` counts the edges of a token.
        # Where the number of pairs is known, as it is while training on a GPU, no step waits for another.
        n_pairs = cells.n_pairs if self.is_whole else None
        if n_pairs is None:
            has_edges = torch.nonzero(self.token_gene >= 0)[:, 0]  # (T',)
            gene = self.token_gene[has_edges]
            degree = torch.diff(self.starts)[gene]
        else:
            has_edges, gene = None, self.token_gene.clamp(min=0)
            degree = torch.diff(self.starts).index_select(0, gene) * (self.token_gene >= 0)
        number = torch.arange(len(gene), device=gene.device)
        which = torch.repeat_interleave(number, degree, output_size=n_pairs)  # (N,)
        before = torch.cumsum(degree, 0) - degree  # (T',)
        within = torch.arange(len(which), device=gene.device) - before[which]  # (N,)
        token = which if has_edges is None else has_edges[which]
        edge = self.starts[gene[which]] + within  # (N,)
        slot = cells.cell[token] * self.n_pathways + self.pathway[edge]  # (N,)
        return CellEdges(token, edge, slot, cells.n_cells * self.n_pathways)


@dataclass(frozen=True)
class EdgeOrder:
    """All E edges of a table, as a kernel on a GPU looks them up: constants of the network.

    Attributes
    ----------
    gene, pathway : (E,) int64
        Gene and pathway of each edge; edges are sorted by gene.
    gene_starts : (n_genes + 1,) int64
        Position of each gene's first edge.
    path_starts : (P + 1,) int64
        Position of each pathway's first edge in ``path_order``.
    path_order : (E,) int64
        Edges sorted by pathway.
    """

    gene: Tensor
    pathway: Tensor
    gene_starts: Tensor
    path_starts: Tensor
    path_order: Tensor

    @classmethod
    def of(cls, table: "EdgeTable") -> "EdgeOrder":
        """The edges of a table, where the table is."""
        gene, pathway, device = table.gene, table.pathway, table.gene.device
        by_pathway, path_order = torch.sort(pathway, stable=True)
        genes, pathways = (torch.arange(n + 1, device=device) for n in (table.n_genes, table.n_pathways))
        return cls(
            gene,
            pathway,
            torch.searchsorted(gene, genes),
            torch.searchsorted(by_pathway, pathways),
            path_order,
        )


class EdgeTable(nn.Module):
    """Edges sorted by gene, so that the edges of a token are consecutive.

    Parameters
    ----------
    membership
        Pathways and their member genes.
    n_genes
        Size of the gene vocabulary.
    candidates
        Further edges that a strategy may learn, without repeats; edges of members are ignored.

    Attributes
    ----------
    gene, pathway : (E,) int64
        Gene and pathway of every edge.
    is_member : (E,) bool
        Whether the gene is a member of the pathway, not a candidate.
    logit : (E,) float32
        Logit that was learned before training; zero where none was.
    member_starts : (P + 1,) int64
        Position of each pathway's first member in ``member_gene``.
    member_gene : (M,) int64
        Genes of the members, sorted by pathway; without those that fine-tuning added.
    """

    gene: Tensor
    pathway: Tensor
    is_member: Tensor
    logit: Tensor
    member_starts: Tensor
    member_gene: Tensor

    def __init__(self, membership: Membership, n_genes: int, candidates: Ends | None = None) -> None:
        super().__init__()
        self.n_pathways, self.n_genes = membership.n_pathways, n_genes
        self._all: tuple[ActiveEdges, Tensor] | None = None
        # One integer per edge: sorting it sorts by gene, then by pathway.
        key = membership.gene * self.n_pathways + membership.pathway  # (M,)
        member = np.ones(len(key), bool)
        if candidates is not None:
            pathway, gene = (np.asarray(ends, np.int64) for ends in candidates)
            _check(pathway, gene, self.n_pathways, n_genes)
            other = np.setdiff1d(gene * self.n_pathways + pathway, key)
            key, member = np.concatenate([key, other]), np.concatenate([member, np.zeros(len(other), bool)])
        self.has_logits = membership.logit is not None
        logit = np.zeros(len(key), np.float32)
        if membership.logit is not None:
            logit[: len(membership.logit)] = membership.logit
        order = np.argsort(key, kind="stable")
        self._constant("gene", key[order] // max(self.n_pathways, 1))
        self._constant("pathway", key[order] % max(self.n_pathways, 1))
        self._constant("is_member", member[order])
        self._constant("logit", logit[order])
        first = slice(None) if membership.late is None else ~membership.late
        counted = membership.pathway[first]
        self._constant("member_starts", np.searchsorted(counted, np.arange(self.n_pathways + 1)))
        self._constant("member_gene", membership.gene[first])

    def _constant(self, name: str, values: np.ndarray) -> None:
        # computed from the vocabulary, so not saved with the weights
        # unlike from_numpy, it heeds the device that a module is built on
        self.register_buffer(name, torch.as_tensor(np.ascontiguousarray(values)), persistent=False)

    @property
    def n_edges(self) -> int:
        """Number E of edges."""
        return len(self.gene)

    @property
    def size(self) -> Tensor:
        """Number of members of each pathway, (P,) int64."""
        return torch.diff(self.member_starts)

    def degree(self) -> np.ndarray:
        """Number of edges of each gene, (n_genes,), in host memory."""
        degree: np.ndarray = np.bincount(self.gene.cpu().numpy(), minlength=self.n_genes)
        return degree

    def n_candidates(self) -> Tensor:
        """Number of candidates of each pathway, (P,) int64."""
        none = torch.zeros(self.n_pathways, dtype=torch.int64, device=self.pathway.device)
        return none.index_add(0, self.pathway, (~self.is_member).long())

    def active(
        self, cells: PackedCells, pathway: int | None = None, genes: Tensor | None = None
    ) -> ActiveEdges:
        """Edges of some genes, with the tokens of the cells that belong to them.

        Parameters
        ----------
        pathway
            Index of the only pathway whose edges are wanted; None: all.
        genes
            Vocabulary indices; None: the genes that the cells have tokens of, or, on a GPU, all.
        """
        if pathway is None and genes is None and self.gene.device.type != "cpu":
            return self._every(cells.gene_ids)
        keep = torch.zeros(self.n_genes, dtype=torch.bool, device=self.gene.device)
        keep[cells.gene_ids if genes is None else genes] = True
        kept = keep[self.gene] if pathway is None else keep[self.gene] & (self.pathway == pathway)
        chosen = self._chosen(torch.nonzero(kept)[:, 0], cells.gene_ids)
        return replace(chosen, is_whole=pathway is None)

    def _every(self, token_genes: Tensor) -> ActiveEdges:
        """All edges: what they are is computed once, as a GPU would wait for the shapes of some."""
        if self._all is None or self._all[0].edge.device != self.gene.device:
            every = torch.arange(self.n_genes, device=self.gene.device)
            edges = self._chosen(torch.arange(self.n_edges, device=self.gene.device), every)
            order = EdgeOrder.of(self) if self.gene.device.type == "cuda" else None
            self._all = (
                replace(edges, token_gene=edges.token_gene[:0], is_whole=True, order=order),
                edges.token_gene,
            )
        edges, place = self._all
        return replace(edges, token_gene=place.index_select(0, token_genes))

    def _chosen(self, edge: Tensor, token_genes: Tensor) -> ActiveEdges:
        """The edges (E,), given as sorted indices, and the tokens' genes (T,) among theirs."""
        genes, gene, degree = torch.unique_consecutive(
            self.gene[edge], return_inverse=True, return_counts=True
        )
        place = torch.full((self.n_genes,), -1, device=edge.device)
        place[genes] = torch.arange(len(genes), device=edge.device)
        return ActiveEdges(
            genes=genes,
            starts=torch.nn.functional.pad(torch.cumsum(degree, 0), (1, 0)),
            edge=edge,
            gene=gene,
            pathway=self.pathway[edge],
            token_gene=place[token_genes],
            n_pathways=self.n_pathways,
        )


def _check(pathway: np.ndarray, gene: np.ndarray, n_pathways: int, n_genes: int) -> None:
    if pathway.ndim != 1 or pathway.shape != gene.shape:
        raise ValueError(f"candidates: arrays of shapes {pathway.shape} and {gene.shape}")
    for name, ends, limit in (("pathway", pathway, n_pathways), ("gene", gene, n_genes)):
        if ends.size and (ends.min() < 0 or ends.max() >= limit):
            raise ValueError(f"candidates: expected a {name} in [0, {limit})")


def every_pair(genes: Tensor, token_gene: Tensor, n_pathways: int) -> ActiveEdges:
    """Edges of every gene (G,) to every one of some pathways; they belong to no edge table."""
    gene, pathway = (torch.arange(n, device=genes.device) for n in (len(genes), n_pathways))
    return ActiveEdges(
        genes=genes,
        starts=torch.arange(len(genes) + 1, device=genes.device) * n_pathways,
        edge=torch.arange(len(genes) * n_pathways, device=genes.device),
        gene=gene.repeat_interleave(n_pathways),
        pathway=pathway.repeat(len(genes)),
        token_gene=token_gene,
        n_pathways=n_pathways,
        every=True,
    )


def sum_by_slot(values: Tensor, edges: CellEdges) -> Tensor:
    """Sum (N, …) values into (n_slots, …)."""
    result = values.new_zeros(edges.n_slots, *values.shape[1:])
    return result.index_add(0, edges.slot, values)


def softmax_by_slot(logits: Tensor, edges: CellEdges) -> Tensor:
    """Softmax of (N, h) logits within each slot; a slot without pairs has no weights, and no NaN."""
    # The largest logit of the slot is subtracted, so that exp cannot overflow. The result does not depend on
    # what is subtracted, so the maximum needs no gradient.
    index = edges.slot[:, None].expand_as(logits)
    highest = logits.detach().new_full((edges.n_slots, logits.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, index, logits.detach(), "amax")  # (n_slots, h)
    weight = torch.exp(logits - highest[edges.slot])  # (N, h)
    return weight / sum_by_slot(weight, edges)[edges.slot]
