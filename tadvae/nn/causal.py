"""The causal layer: factors act on each other along a directed acyclic graph, perturbations on factors.

Source: Zhang et al. 2023 (discrepancy VAE), equations in REFERENCES A1; targets by gene embedding and
shifts by modality and dataset are ours (DESIGN §5.6).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config


class CausalConfig(Config):
    """Latent factors and how perturbations reach them."""

    n_factors: int = Field(32, ge=1)
    """K."""
    targets: Literal["identity", "gene"] = "identity"
    """Targets as one-hot codes (published), or by an embedding of the target gene."""
    hidden: int = Field(128, ge=1)
    graph: bool = True
    """Whether factors act on each other; without, u = z (NetActivity)."""
    graph_init: float = Field(0.1, ge=0)
    """Standard deviation of G at the start (published: 0.1)."""
    shift: Literal["assigned", "free"] = "free"
    """``assigned``: a target acts on the factor it is assigned to (published); ``free``: besides, on any
    factor by an amount of its own, zero at the start."""
    interaction: Literal["additive", "pairwise"] = "additive"
    """``additive``: shifts of several targets add up (published); ``pairwise``: plus a low-rank term of every
    pair of targets, zero at the start."""
    interaction_rank: int = Field(8, ge=1)
    sign_prior: Literal["none", "start", "strict"] = "start"
    """What is believed of activating and silencing modalities. ``none``: nothing (published); ``start``: a
    target's shift through a silencing screen has the other sign than through an activating one, and starts
    below zero; ``strict``: on its assigned factor it stays there."""
    scales: bool = True
    """A factor ``exp(modality + dataset)`` on all shifts; the published models have none."""


@dataclass(frozen=True)
class Intervention:
    """Perturbations of n bags, their targets end to end.

    Attributes
    ----------
    target, modality : (n_targets,) int64
    bag : (n_targets,) int64
        The bag each target belongs to.
    dataset : (n_targets,) int64
    n_bags
        n; a bag without targets is not perturbed.
    """

    target: Tensor
    modality: Tensor
    dataset: Tensor
    bag: Tensor
    n_bags: int


class CausalLayer(nn.Module):
    """``u = (z + Σ_i v_i + Σ_{i<j} e_ij)(I − triu(G, 1))⁻¹`` with the shift ``v_i = b_i s_i``.

    ``b = softmax(temperature · f(target))`` says on which factor a target acts; ``shift="free"`` adds a
    vector of the target's own to ``v_i``; ``interaction="pairwise"`` has ``e_ij = Q (P v_i ⊙ P v_j)``.

    The shift is ``s = sign(modality) · exp(modality + dataset) · s_target``, so that one target can act
    through datasets that activate it and datasets that silence it.
    """

    sign: Tensor
    target_gene: Tensor

    def __init__(
        self, config: CausalConfig, target_gene: Tensor, signs: Tensor, n_datasets: int, d_gene: int
    ) -> None:
        super().__init__()
        K, n_targets = config.n_factors, len(target_gene)
        self.config = config
        if config.graph:
            self.graph = nn.Parameter(torch.randn(K, K) * config.graph_init)
        # screens without perturbations have no targets; a layer of width 0 would be none
        width = max(n_targets, 1) if config.targets == "identity" else d_gene
        self.assign = nn.Sequential(
            nn.Linear(width, config.hidden), nn.LeakyReLU(0.2), nn.Linear(config.hidden, K)
        )
        if config.targets == "identity":
            self.size = nn.Parameter(torch.ones(n_targets))
        else:
            self.own = nn.Parameter(torch.zeros(n_targets, width))
            self.size_of_code = nn.Linear(width, 1)
            nn.init.ones_(self.size_of_code.bias)
        if config.shift == "free":
            self.free = nn.Linear(width, K, bias=False)
            nn.init.zeros_(self.free.weight)
        if config.interaction == "pairwise":
            self.pair_in = nn.Linear(K, config.interaction_rank, bias=False)
            self.pair_out = nn.Linear(config.interaction_rank, K, bias=False)
            nn.init.zeros_(self.pair_out.weight)
        if config.scales:
            self.modality = nn.Parameter(torch.zeros(len(signs)))
            self.dataset = nn.Parameter(torch.zeros(n_datasets))
        self.register_buffer("target_gene", target_gene, persistent=False)
        believed = (
            torch.ones_like(signs) if config.sign_prior == "none" else torch.where(signs == 0, 1, signs)
        )
        self.register_buffer("sign", believed.float(), persistent=False)

    @property
    def n_targets(self) -> int:
        """Number of targets with a name in the vocabulary."""
        return len(self.target_gene)

    def adjacency(self) -> Tensor:
        """The strictly upper triangular graph: entry (i, j) is the effect of factor i on factor j."""
        if not self.config.graph:
            K = self.config.n_factors
            return next(self.assign.parameters()).new_zeros(K, K)
        return torch.triu(self.graph, diagonal=1)

    def codes(self, target: Tensor, gene_embedding: Tensor) -> Tensor:
        """What f sees of each target, shape (n, width).

        Indices of ``n_targets`` and above stand for genes of the vocabulary that no screen targeted; they
        need ``targets="gene"``, whose code is the gene's embedding plus a target's own correction.
        """
        if self.config.targets == "identity":
            return nn.functional.one_hot(target, max(self.n_targets, 1)).to(gene_embedding.dtype)
        named = torch.nonzero(target < self.n_targets)[:, 0]
        gene = (target - self.n_targets).index_copy(0, named, self.target_gene[target[named]])
        code = gene_embedding[gene.clamp(min=0)] * (gene >= 0)[:, None]
        return code.index_add(0, named, self.own[target[named]])

    def assignment(self, codes: Tensor, temperature: float) -> Tensor:
        """b: on which factor each target acts, shape (n, K)."""
        return torch.softmax(temperature * self.assign(codes), dim=-1)

    def shifts(self, intervention: Intervention, gene_embedding: Tensor, temperature: float) -> Tensor:
        """Σ_i v_i + Σ_{i<j} e_ij of every bag, shape (n_bags, K)."""
        codes = self.codes(intervention.target, gene_embedding)
        if self.config.targets == "identity":
            size = self.size[intervention.target]
        else:
            size = self.size_of_code(codes).squeeze(-1)
        if self.config.sign_prior == "strict":
            size = nn.functional.softplus(size)
        rows = self.assignment(codes, temperature) * size[:, None]  # (n_targets, K)
        if self.config.shift == "free":
            rows = rows + self.free(codes)
        scale = self.sign[intervention.modality]
        if self.config.scales:
            of = self.modality[intervention.modality] + self.dataset[intervention.dataset]
            scale = scale * torch.exp(of)
        rows = rows * scale[:, None]
        total = self._by_bag(rows, intervention)
        if self.config.interaction == "pairwise":
            # Σ_{i<j} a_i a_j = ((Σ a_i)² − Σ a_i²) / 2, for any number of targets
            inner = self.pair_in(rows)  # (n_targets, R)
            pairs = (self._by_bag(inner, intervention) ** 2 - self._by_bag(inner**2, intervention)) / 2
            total = total + self.pair_out(pairs)
        return total

    @staticmethod
    def _by_bag(rows: Tensor, intervention: Intervention) -> Tensor:
        """Sum the rows of each bag's targets, shape (n_bags, …)."""
        return rows.new_zeros(intervention.n_bags, rows.shape[1]).index_add(0, intervention.bag, rows)

    def forward(self, z: Tensor) -> Tensor:
        """Solve ``u (I − G) = z`` for row vectors, shape (B, K)."""
        if not self.config.graph:
            return z
        identity = torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
        result: Tensor = torch.linalg.solve_triangular(
            identity - self.adjacency(), z, upper=True, left=False, unitriangular=True
        )
        return result
