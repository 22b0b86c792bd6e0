"""Base class of the two soft strategies: the learned mask W, one weight per edge."""

from abc import abstractmethod
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from tadvae.nn.edges import ActiveEdges, EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.strategies.attention import AttentionLayer

if TYPE_CHECKING:
    from tadvae.nn.strategies.base import PathwayConfig


class GatedAttention(AttentionLayer):
    """Attention with a learnable mask ``W = start + ε`` over members and candidates."""

    own_settings = frozenset({"candidates", "gate_noise"})

    def __init__(
        self,
        config: "PathwayConfig",
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__(config, edges, encoder, given)
        self.mask = nn.Parameter(self.start() + config.gate_noise * torch.randn(edges.n_edges))

    @abstractmethod
    def candidate_start(self) -> Tensor:
        """Initial W of the candidates of each pathway, without ε, (P,); for members it is 1."""

    def start(self) -> Tensor:
        """Initial W of all edges, without ε, (E,)."""
        return torch.where(self.edges.is_member, 1.0, self.candidate_start()[self.edges.pathway])

    def mask_of(self, edges: ActiveEdges) -> Tensor:
        """W of the active edges, (E,)."""
        return self.mask[edges.edge]

    @torch.no_grad()
    def learned_edges(self) -> pd.DataFrame:
        """Edges that training has changed: candidates added and members removed.

        An edge counts as a member if its W is closer to the initial W of members than to that of candidates.

        Returns
        -------
        One row per changed edge, sorted by the change of W: ``pathway``, ``gene`` (vocabulary index),
        ``change`` (``added`` or ``removed``), ``gate`` and ``gate_at_start`` (σ of W, from 0 to 1).
        """
        W, start, member = self.mask.cpu(), self.start().cpu(), self.edges.is_member.cpu()
        pathway, gene = self.edges.pathway.cpu(), self.edges.gene.cpu()
        middle = (1 + self.candidate_start().cpu()[pathway]) / 2  # (E,)
        moved = torch.nonzero((middle < W) != member)[:, 0]
        moved = moved[torch.argsort((W - start)[moved].abs(), descending=True, stable=True)]
        return pd.DataFrame(
            {
                "pathway": pathway[moved],
                "gene": gene[moved],
                "change": ["removed" if was else "added" for was in member[moved]],
                "gate": torch.sigmoid(W[moved]),
                "gate_at_start": torch.sigmoid(start[moved]),
            }
        )
