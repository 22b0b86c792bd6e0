"""Hard masking: a pathway sees only its members."""

from tadvae.nn.strategies.attention import AttentionLayer


class HardMasking(AttentionLayer, name="hard"):
    """``softmax(QKᵀ/√d_head + M_logits) V`` with ``M_logits`` 0 for members and −∞ elsewhere.

    Source: T-AD-VAE, masking approach 1. An edge outside the mask has weight zero, so it has no edge here.
    """
