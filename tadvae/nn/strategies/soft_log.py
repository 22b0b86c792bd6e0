"""Soft masking whose gates multiply the weights: a closed gate takes a gene out."""

import torch
from torch import Tensor

from tadvae.nn.edges import ActiveEdges
from tadvae.nn.strategies.attention import Gates
from tadvae.nn.strategies.gated import GatedAttention


class SoftLogMasking(GatedAttention, name="soft_log"):
    """``softmax(QKᵀ/√d_head + log σ(W)) V``.

    Members start at ``W = 1 + ε``. The n candidates of a pathway with m members start lower, so that with
    equal logits a share of ``prior_mass`` = 1 − δ of the attention is inside:
    ``log σ(W) = log σ(1) + log(δ m / ((1 − δ) n))``, though never above a member (REFERENCES A6).
    """

    own_settings = GatedAttention.own_settings | {"prior_mass"}

    def candidate_start(self) -> Tensor:
        """Calibrated to the numbers of members and candidates."""
        outside = 1 - self.config.prior_mass
        members, candidates = self.edges.size.clamp(min=1), self.edges.n_candidates().clamp(min=1)
        share = outside * members / (self.config.prior_mass * candidates)  # (P,)
        gate = torch.sigmoid(torch.ones(())) * share.clamp(max=1.0)
        return torch.logit(gate.float())

    def gates(self, edges: ActiveEdges) -> Gates:
        """A summand log σ(W)."""
        return None, torch.nn.functional.logsigmoid(self.mask_of(edges))
