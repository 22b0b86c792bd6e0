"""The causal layer: factors act on each other along a directed acyclic graph, perturbations on factors.

Source: Zhang et al. 2023 (discrepancy VAE): the linear structural equations of the factors, and the shift of
one factor by a target that a softmax assigns to it. Added here: targets by gene embedding, so that targets
without training cells can be predicted; and a scale of shifts by modality and dataset, because the same
target is perturbed with different strength in different screens.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config
from tadvae.nn.response_curves import ResponseCurves


class CausalConfig(Config):
    """Latent factors, the graph between them, and how perturbations shift them."""

    n_factors: int = Field(32, ge=1)
    """Number K of latent factors."""
    targets: Literal["identity", "gene"] = "identity"
    """How a target is represented.

    - ``identity``: a one-hot code, as published; use it if all targets of interest are in the training data.
    - ``gene``: the embedding of the target gene plus a correction; use it to predict targets that were never
      perturbed in training.
    """
    hidden: int = Field(128, ge=1)
    """Width of the network that assigns targets to factors."""
    graph: bool = True
    """Whether factors act on each other; without the graph, u = z (NetActivity)."""
    graph_init: float = Field(0.1, ge=0)
    """Standard deviation of the initial edge weights G (published: 0.1)."""
    shift: Literal["assigned", "free"] = "free"
    """Factors that a target can shift.

    - ``assigned``: the one factor that the target is assigned to, as published; use it if each target should
      explain one factor.
    - ``free``: in addition every factor, by a learned amount that is zero at the start; use it for
      prediction accuracy.
    """
    interaction: Literal["additive", "pairwise"] = "additive"
    """How the shifts of several targets are combined.

    - ``additive``: their sum, as published; the usual choice.
    - ``pairwise``: the sum plus a low-rank term per pair of targets, zero at the start; use it if many
      combinations are in the training data.
    """
    interaction_rank: int = Field(8, ge=1)
    """Rank of the pair term; only for ``pairwise``."""
    sign_prior: Literal["none", "start", "strict"] = "start"
    """Prior knowledge on the direction of activating and silencing modalities.

    - ``none``: no prior, as published; use it to reproduce publications.
    - ``start``: a target shifts factors in opposite directions in silencing and activating screens, and
      silencing starts with a negative shift; the usual choice.
    - ``strict``: in addition, the shift of the assigned factor never changes its sign; use it if training
      with ``start`` reverses signs.
    """
    scales: bool = True
    """Whether all shifts are multiplied by a learned ``exp(modality + dataset)``; the published models do
    not have it."""


@dataclass(frozen=True)
class Intervention:
    """Perturbations of n bags; the targets of all bags in one array.

    Attributes
    ----------
    target, modality : (n_targets,) int64
        Index of each target, and of the modality that perturbs it.
    dataset : (n_targets,) int64
        Index of the dataset of each target's bag.
    bag : (n_targets,) int64
        Index of the bag that each target belongs to.
    n_bags
        Number of bags; a bag without targets is not perturbed.
    log_amounts : (n_targets, 2) or None
        Logarithms of the dose and the time of each target, NaN where not given; None: the model reads none.
    """

    target: Tensor
    modality: Tensor
    dataset: Tensor
    bag: Tensor
    n_bags: int
    log_amounts: Tensor | None = None


class CausalLayer(nn.Module):
    """``u = (z + Σ_i v_i + Σ_{i<j} e_ij)(I − triu(G, 1))⁻¹`` with the shift ``v_i = b_i s_i``.

    ``b = softmax(temperature · f(target))`` assigns a target to a factor; ``shift="free"`` adds a learned
    vector of the target to ``v_i``; ``interaction="pairwise"`` sets ``e_ij = Q (P v_i ⊙ P v_j)``.

    With doses or times, v_i is multiplied by a monotone saturating function of them
    (:class:`tadvae.nn.response_curves.ResponseCurves`).

    The shift is ``s = sign(modality) · exp(modality + dataset) · s_target``, so that datasets that activate a
    target and datasets that silence it train the same ``s_target``.
    """

    sign: Tensor
    target_gene: Tensor

    def __init__(
        self,
        config: CausalConfig,
        target_gene: Tensor,
        signs: Tensor,
        n_datasets: int,
        d_gene: int,
        curves: ResponseCurves | None = None,
    ) -> None:
        super().__init__()
        K, n_targets = config.n_factors, len(target_gene)
        self.config = config
        if config.graph:
            self.graph = nn.Parameter(torch.randn(K, K) * config.graph_init)
        # Screens without perturbations have no targets, and torch warns about layers of width 0.
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
        self.curves = curves
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
        # Edges only lead from lower to higher factors, so the graph is acyclic by construction and training
        # needs no acyclicity constraint.
        if not self.config.graph:
            K = self.config.n_factors
            return next(self.assign.parameters()).new_zeros(K, K)
        return torch.triu(self.graph, diagonal=1)

    def codes(self, target: Tensor, gene_embedding: Tensor) -> Tensor:
        """Input of f for each target, shape (n, width).

        Indices of ``n_targets`` and above mean genes of the vocabulary that no screen perturbed; they need
        ``targets="gene"``, whose code is the embedding of the gene plus a learned correction of the target.
        """
        if self.config.targets == "identity":
            return nn.functional.one_hot(target, max(self.n_targets, 1)).to(gene_embedding.dtype)
        named = torch.nonzero(target < self.n_targets)[:, 0]
        gene = (target - self.n_targets).index_copy(0, named, self.target_gene[target[named]])
        code = gene_embedding[gene.clamp(min=0)] * (gene >= 0)[:, None]
        return code.index_add(0, named, self.own[target[named]])

    def assignment(self, codes: Tensor, temperature: float) -> Tensor:
        """Assignment b of targets to factors, shape (n, K); rows sum to one."""
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
        if self.curves is not None and intervention.log_amounts is not None:
            scale = scale * self.curves(intervention.target, intervention.log_amounts)
        rows = rows * scale[:, None]
        total = self._by_bag(rows, intervention)
        if self.config.interaction == "pairwise":
            # Σ_{i<j} a_i a_j = ((Σ a_i)² − Σ a_i²) / 2: all pairs from two sums, for any number of targets.
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
        # I − G is upper triangular with ones on its diagonal, so it is always invertible: back substitution
        # needs no inverse, loses fewer digits, and costs O(K²) per cell.
        identity = torch.eye(z.shape[1], device=z.device, dtype=z.dtype)
        result: Tensor = torch.linalg.solve_triangular(
            identity - self.adjacency(), z, upper=True, left=False, unitriangular=True
        )
        return result
