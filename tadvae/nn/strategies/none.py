"""No masking, as a control: every pathway sees every token."""

import torch
from torch import Tensor

from tadvae.nn.attention import edge_attention, kernels
from tadvae.nn.cell_attention import Lengths, attention_by_cell
from tadvae.nn.edges import every_pair
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.attention import AttentionLayer, Pairs

PAIRS = 2**22
"""Most (gene, pathway) pairs whose logits and values are held at once."""


class NoMasking(AttentionLayer, name="none"):
    """``softmax(QKᵀ/√d_head) V`` over all tokens of the cell.

    Without an encoder, logits and values depend on gene, pathway and expression alone: on the CPU they are
    computed once per step for every pair of a gene and a pathway, for some pathways at a time, and go through
    the kernel of the masked strategies. Otherwise it is attention within cells.
    """

    def sums(self, cells: PackedCells) -> Tensor:
        """Activities without their bias, shape (B, P)."""
        embedding = self.embedding()
        query, readout = self.queries(embedding), self._heads(self.readout)  # (P, h, d_head)
        if self.encoder is None and self.numba and kernels() is not None and query.device.type == "cpu":
            return self._sums_of_pairs(cells, embedding, query, readout)
        B, P = cells.n_cells, self.edges.n_pathways
        key, value = self.keys_and_values(cells, embedding)
        lengths = Lengths.of(cells.offsets)
        seen = attention_by_cell(query.repeat(B, 1, 1), key, value, Lengths.same(P, B), lengths, scale=1.0)
        result: Tensor = (seen.unflatten(0, (B, P)) * readout).sum((2, 3))
        if not len(key):  # DDP waits for a gradient of every parameter
            result = result + 0.0 * (query.sum() + key.sum() + value.sum())
        return result

    def _sums_of_pairs(self, cells: PackedCells, embedding: Tensor, query: Tensor, readout: Tensor) -> Tensor:
        genes, token_gene = torch.unique(cells.gene_ids, return_inverse=True)
        rows = embedding[genes]  # (G, d)
        keys = self._heads(self.w_key(rows))  # (G, h, d_head)
        values = self._heads(self.w_value(self.values.modulate(rows)))  # (G, n_basis, h, d_head)
        basis = self.expression.of(cells.values)
        n = max(1, PAIRS // max(len(genes), 1))
        parts = []
        for first in range(0, self.edges.n_pathways, n):
            some = slice(first, first + n)
            logit = torch.einsum("phi,ghi->gph", query[some], keys).flatten(0, 1)  # (G p, h)
            load = torch.einsum("phi,gbhi->bgph", readout[some], values).flatten(1, 2)  # (n_basis, G p, h)
            edges = every_pair(genes, token_gene, len(query[some]))
            match, shift = (logit, None) if self.values.plain else (None, logit)
            parts.append(edge_attention(cells, edges, basis, match, shift, load, self.numba))
        return torch.cat(parts, dim=1) if parts else query.new_zeros(cells.n_cells, 0)

    def pairs(self, cells: PackedCells, pathway: int | None = None) -> Pairs:
        """Attention weights and values of every pair; for all pathways these are ``T · P`` pairs."""
        cells = self.tokens_of(cells)
        embedding = self.embedding()
        P, T = self.edges.n_pathways, len(cells.gene_ids)
        every = torch.arange(P, device=self.bias.device)
        chosen = every if pathway is None else every[pathway : pathway + 1]
        query, readout = self.queries(embedding)[chosen], self._heads(self.readout)[chosen]  # (p, h, d_head)
        key, value = self.keys_and_values(cells, embedding)
        logits = torch.einsum("phi,thi->tph", query, key)
        parts = [torch.softmax(part, dim=0) for part in logits.split(torch.diff(cells.offsets).tolist())]
        weight = torch.cat(parts) if parts else logits
        return Pairs(
            cell=cells.cell.repeat_interleave(len(chosen)),
            gene=cells.gene_ids.repeat_interleave(len(chosen)),
            pathway=chosen.repeat(T),
            weight=weight.flatten(0, 1),
            value=torch.einsum("phi,thi->tph", readout, value).flatten(0, 1),
        )

    def reads(self, pathway: int) -> Tensor:
        """Vocabulary indices of all genes."""
        return torch.arange(self.edges.n_genes)
