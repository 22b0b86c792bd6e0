"""No masking, as a control: every pathway sees every token."""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.attention import AttentionLayer, Pairs


class NoMasking(AttentionLayer, name="none"):
    """``softmax(QKᵀ/√d_head) V`` over all tokens of the cell.

    It runs cell by cell through scaled_dot_product_attention, which does not store the weights.
    """

    def sums(self, cells: PackedCells) -> Tensor:
        """Activities without their bias, shape (B, P)."""
        embedding = self.embedding()
        query = self.queries(embedding).transpose(0, 1)[None]  # (1, h, P, d_head)
        readout = self._heads(self.readout).transpose(0, 1)[None]
        n_tokens = torch.diff(cells.offsets).tolist()
        key, value = (part.transpose(0, 1)[None] for part in self.keys_and_values(cells, embedding))
        nothing = 0.0 * query
        if not key.shape[2]:  # DDP waits for a gradient of every parameter
            nothing = nothing + key.sum() + value.sum()
        rows = []
        for k, v in zip(key.split(n_tokens, dim=2), value.split(n_tokens, dim=2), strict=True):
            seen = scaled_dot_product_attention(query, k, v, scale=1.0) if k.shape[2] else nothing
            rows.append((seen * readout).sum((0, 1, 3)))  # (P,)
        return torch.stack(rows) if rows else self.bias.new_zeros(0, len(self.bias))

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
