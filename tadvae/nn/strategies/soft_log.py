"""Soft masking whose gates multiply the weights: a gate of zero removes the gene."""

import torch
from torch import Tensor

from tadvae.nn.edges import ActiveEdges
from tadvae.nn.strategies.attention import Gates
from tadvae.nn.strategies.gated import GatedAttention


class SoftLogMasking(GatedAttention, name="soft_log"):
    """``softmax(QKᵀ/√d_head + log σ(W)) V``.

    Members start at ``W = 1 + ε``. The n candidates of a pathway with m members start lower, so that with
    equal logits a share ``prior_mass`` = 1 − δ of the attention is on members:
    ``log σ(W) = log σ(1) + log(δ m / ((1 − δ) n))``, but never above a member. This follows from setting the
    total weight of the n candidates to δ / (1 − δ) times that of the m members.
    """

    own_settings = GatedAttention.own_settings | {"prior_mass"}

    def candidate_start(self) -> Tensor:
        """Initial W that gives candidates a share of ``1 - prior_mass`` of the attention."""
        outside = 1 - self.config.prior_mass
        members, candidates = self.edges.size.clamp(min=1), self.edges.n_candidates().clamp(min=1)
        share = outside * members / (self.config.prior_mass * candidates)  # (P,)
        gate = torch.sigmoid(torch.ones(())) * share.clamp(max=1.0)
        return torch.logit(gate.float())

    def gates(self, edges: ActiveEdges) -> Gates:
        """The summand log σ(W) of the logits."""
        return None, torch.nn.functional.logsigmoid(self.mask_of(edges))
