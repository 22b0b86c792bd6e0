"""Soft masking exactly as in the paper: gates multiply the logits."""

import torch
from torch import Tensor

from tadvae.nn.edges import ActiveEdges
from tadvae.nn.strategies.attention import Gates
from tadvae.nn.strategies.gated import GatedAttention


class SoftMasking(GatedAttention, name="soft"):
    """``softmax(QKᵀ/√d_head ⊙ σ(W)) V`` with ``W = M + ε``.

    Source: T-AD-VAE, masking approach 2; over all genes with ``candidates="all"``. Note the consequence of
    the equation: a gate of zero gives a logit of zero, so a "suppressed" gene keeps an average weight, and
    a larger weight than before if its logit was negative.
    """

    def candidate_start(self) -> Tensor:
        """Zero: M is 0 outside a pathway."""
        return torch.zeros(self.edges.n_pathways, device=self.edges.gene.device)

    def gates(self, edges: ActiveEdges) -> Gates:
        """The factor σ(W) of the logits."""
        return torch.sigmoid(self.mask_of(edges)), None
