"""Base class of masking strategies: contributions of genes that sum to the activity of a pathway."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tadvae.base.config import Config, OptionalFile
from tadvae.base.errors import UserError
from tadvae.nn.attention import kernels
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.packed import PackedCells
from tadvae.nn.tokens import Affine, Expression, Hats, Linear, measured

STRATEGIES: dict[str, type["PathwayLayer"]] = {}
"""All strategies by name; a subclass with a name registers itself."""


class PathwayConfig(Config):
    """The pathway layer: from the genes of a cell to pathway activities."""

    masking: str = "agreement"
    """How a pathway is restricted to its genes.

    - ``hard``: attention over the expressed member genes (the paper, approach 1); use it to reproduce the
      paper.
    - ``soft``: attention whose logits are multiplied by learned gates (the paper, approach 2); use it to
      reproduce the paper.
    - ``soft_log``: attention whose weights are multiplied by learned gates; use it to learn which genes
      belong to a pathway.
    - ``agreement``: attention over the members that the panel measures, expressed or not, with weights
      learned before training so that two halves of a panel agree; the usual choice. Where no dataset has 100
      control cells to learn from, such as profiles, it is ``members``.
    - ``members``: the same with weights from embeddings, learned in training; use it with an encoder.
    - ``linear``: one signed weight per member gene, as NetActivity and SENA; use it for speed, or to
      reproduce them.
    - ``none``: attention over all genes of the cell; use it as the control without pathways.
    """
    d_embed: int = Field(128, ge=1)
    """Width of gene and pathway embeddings (the paper: 128 or 256)."""
    n_heads: int = Field(8, ge=1)
    """Number of attention heads (the paper: head size 16, so 8 or 16 heads)."""
    pathway_init: Literal["learned", "members", "text"] = "members"
    """How pathway queries start.

    - ``learned``: a learned table; use it to reproduce the paper.
    - ``members``: the table plus the mean embedding of the member genes; the usual choice.
    - ``text``: the table plus a learned map of the vectors in ``pathway_vectors``; use it if you have
      embeddings of pathway descriptions.
    """
    pathway_vectors: OptionalFile = None
    """File of vectors by pathway id or name (Parquet, or text with tabs); only for ``pathway_init: text``."""
    value_mode: Literal["scale", "film", "bins"] = "scale"
    """How expression enters a token.

    - ``scale``: the gene embedding times expression, for keys and values, as in the paper; the usual choice.
    - ``film``: keys from the gene only, values an affine function of expression; use it with an encoder.
    - ``bins``: keys from the gene only, values a piecewise linear function of expression; use it if effects
      are not linear in log expression.
    """
    n_bins: int = Field(8, ge=2)
    """Number of evenly spaced knots; only for ``bins``."""
    bins_max: float = Field(7.0, gt=0)
    """The last knot, in log1p units; larger values are treated as this value; only for ``bins``."""
    tokens: Literal["expressed", "all"] = "expressed"
    """The genes of a cell that are tokens.

    - ``expressed``: genes with counts; fast, the usual choice.
    - ``all``: every gene that the dataset measures; use it to reproduce the paper.
    """
    gene_vectors: OptionalFile = None
    """File of gene vectors (Parquet, or text with tabs: gene, numbers); genes without one are learned."""
    gene_vectors_use: Literal["warm", "frozen"] = "warm"
    """How given gene vectors are used.

    - ``warm``: as the start of training; use it with enough training cells.
    - ``frozen``: unchanged during training; use it to keep the vectors comparable with their source.
    """
    candidates: int | Literal["all"] = 0
    """Genes in addition to its members that each pathway may learn; only for ``soft`` and ``soft_log``.

    - ``0``: none, members only.
    - a number: this number of genes, those that share most pathways with the members; use it to find missing
      members.
    - ``all``: every gene; use it to reproduce the paper. It needs much memory.
    """
    gate_noise: float = Field(0.01, ge=0)
    """Standard deviation of ε in W = M + ε at the start; only for ``soft`` and ``soft_log``."""
    prior_mass: float = Field(0.9, gt=0, lt=1)
    """Share of the attention on members at the start; only for ``soft_log``."""
    leak: float = Field(0.0, ge=0, le=1)
    """Weight λ of genes outside a pathway (SENA); only for ``linear``."""
    weight_init: Literal["members", "genes"] = "members"
    """How the weights of ``linear`` start.

    - ``members``: scaled to the number of members of each pathway; the usual choice.
    - ``genes``: as a dense layer over all genes, which makes the weights of small pathways near zero; use it
      to reproduce SENA.
    """
    kernel: Literal["auto", "numba", "torch"] = "auto"
    """Implementation on the CPU; on a GPU it is always torch.

    - ``auto``: numba if it is installed, else torch; the usual choice.
    - ``numba``: compiled kernels; use it to get an error if numba is missing.
    - ``torch``: plain torch; use it to check the kernels, or on a platform without numba.
    """

    @field_validator("masking")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES:
            raise ValueError(f"expected one of {', '.join(STRATEGIES)}")
        return name

    @field_validator("candidates")
    @classmethod
    def _not_negative(cls, n: int | str) -> int | str:
        if isinstance(n, int) and n < 0:
            raise ValueError("expected 0 or more, or 'all'")
        return n

    @model_validator(mode="after")
    def _consistent(self) -> "PathwayConfig":
        if self.d_embed % self.n_heads:
            raise ValueError(f"d_embed {self.d_embed} is not a multiple of n_heads {self.n_heads}")
        strategy = STRATEGIES[self.masking]
        for setting in sorted(set().union(*(other.own_settings for other in STRATEGIES.values()))):
            changed = getattr(self, setting) != type(self).model_fields[setting].default
            if changed and setting not in strategy.own_settings:
                owners = [f"'{name}'" for name, other in STRATEGIES.items() if setting in other.own_settings]
                raise ValueError(f"'{setting}' belongs to masking {' and '.join(owners)}")
        if strategy.learns_agreement and self.value_mode != "scale":
            raise ValueError(f"masking '{self.masking}' needs value_mode 'scale'; use masking 'members'")
        if self.leak and self.value_mode != "scale":
            raise ValueError("'leak' belongs to value_mode 'scale'")
        if (self.pathway_init == "text") != (self.pathway_vectors is not None):
            raise ValueError("pathway_init 'text' and a file of 'pathway_vectors' belong together")
        if not strategy.has_tokens and (self.gene_vectors or self.pathway_vectors):
            raise ValueError(f"masking '{self.masking}' has no embeddings to give vectors for; use 'members'")
        return self


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Exclude a function from torch.compile: the kernels are compiled, and shapes change at every step.

    torch's own decorator imports the whole compiler when the module is loaded, which takes seconds.
    """
    eager: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def inner(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*arguments)
        if not eager:
            eager.append(torch.compiler.disable(function))
        return eager[0](*arguments)

    return inner


@dataclass(frozen=True)
class Contributions:
    """Contributions of genes to pathway activities: N numbers, without those that are always zero.

    Attributes
    ----------
    cell, gene, pathway : (N,) int64
        Index of the cell, vocabulary index of the gene, and index of the pathway.
    value : (N,)
        Contribution of the gene to the activity, in units of the activity.
    """

    cell: Tensor
    gene: Tensor
    pathway: Tensor
    value: Tensor


class PathwayLayer(nn.Module, ABC):
    """Computes the activities of P pathways from the gene tokens of a cell.

    A subclass with ``name="…"`` is a strategy that ``pathway.masking`` can name.
    """

    own_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of :class:`PathwayConfig` that only some strategies use, this one included."""
    has_tokens: ClassVar[bool] = True
    """Whether the strategy has embedded tokens, which an encoder needs."""
    learns_agreement: ClassVar[bool] = False
    """Whether the logits of the members are learned before training (:mod:`tadvae.training.agreement`)."""

    def __init_subclass__(cls, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            STRATEGIES[name] = cls

    def __init__(
        self,
        config: PathwayConfig,
        edges: EdgeTable,
        encoder: EncoderConfig | None = None,
        given: GivenVectors | None = None,
    ) -> None:
        super().__init__()
        if config.kernel == "numba" and kernels() is None:
            raise UserError(
                "model.pathway.kernel is 'numba', but numba cannot be imported; install it, or set 'auto'."
            )
        self.config = config
        self.edges = edges
        self.numba = config.kernel != "torch"
        self.expression = expression(config)
        self.bias = nn.Parameter(torch.zeros(edges.n_pathways))

    @property
    def is_linear(self) -> bool:
        """Whether activities less their bias are a linear function of expression, silent genes included."""
        return False

    @uncompiled
    def forward(self, cells: PackedCells) -> Tensor:
        """Activities, shape (B, P): the sum of the contributions plus a bias per pathway."""
        return self.sums(self.tokens_of(cells)) + self.bias

    @abstractmethod
    def sums(self, cells: PackedCells) -> Tensor:
        """Sum of the contributions to each pathway, shape (B, P)."""

    @abstractmethod
    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """Exact contribution of every gene of every cell to one pathway, or to all."""

    def reads(self, pathway: int) -> Tensor:
        """Sorted vocabulary indices of the genes that can contribute to a pathway."""
        return self.edges.gene[self.edges.pathway == pathway]

    def tokens_of(self, cells: PackedCells) -> PackedCells:
        """The cells with expressed or with all measured genes as tokens, as the config says."""
        return measured(cells) if self.config.tokens == "all" else cells


def expression(config: PathwayConfig) -> Expression:
    """The basis functions of expression of the config's ``value_mode``."""
    if config.value_mode == "scale":
        return Linear()
    return Affine() if config.value_mode == "film" else Hats(config.n_bins, config.bins_max)


def pathway_layer(
    config: PathwayConfig,
    edges: EdgeTable,
    encoder: EncoderConfig | None = None,
    given: GivenVectors | None = None,
) -> PathwayLayer:
    """Build the layer that the config names.

    Parameters
    ----------
    encoder
        Config of the encoder; None: no encoder.
    given
        Vectors from the files of the config; without them zeros are used, into which weights can be loaded.
    """
    strategy = STRATEGIES[config.masking]
    if strategy.learns_agreement and not edges.has_logits:
        strategy = STRATEGIES["members"]
    return strategy(config, edges, encoder, given)
