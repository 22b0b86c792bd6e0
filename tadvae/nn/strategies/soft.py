"""Soft masking, to the letter of the paper: gates multiply the logits."""

import torch
from torch import Tensor

from tadvae.nn.edges import ActiveEdges
from tadvae.nn.strategies.attention import Gates
from tadvae.nn.strategies.gated import GatedAttention


class SoftMasking(GatedAttention, name="soft"):
    """``softmax(QKᵀ/√d_head ⊙ σ(W)) V`` with ``W = M + ε``.

    Source: T-AD-VAE, masking approach 2; over all genes with ``candidates="all"``. Note what the equation
    does: a gate of zero gives a logit of zero, so a gene that is "suppressed" keeps an average weight, and
    more than that where its logit was negative.
    """

    def candidate_start(self) -> Tensor:
        """M is 0 outside."""
        return torch.zeros(self.edges.n_pathways, device=self.edges.gene.device)

    def gates(self, edges: ActiveEdges) -> Gates:
        """A factor σ(W)."""
        return torch.sigmoid(self.mask_of(edges)), None
