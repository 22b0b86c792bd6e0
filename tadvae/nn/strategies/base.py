"""What every masking strategy is: per-gene contributions that add up to a pathway's activity."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.nn.attention import kernels
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.packed import PackedCells
from tadvae.nn.tokens import Affine, Expression, Hats, Linear, measured

STRATEGIES: dict[str, type["PathwayLayer"]] = {}
"""Every strategy by its name; a subclass enters itself."""


class PathwayConfig(Config):
    """The pathway layer."""

    masking: str = "hard"
    """``hard``: attention over member genes only (the paper, approach 1); ``soft``: learned gates multiply
    the logits (the paper, approach 2); ``soft_log``: learned gates multiply the weights; ``linear``: a
    signed weight for each member gene, as NetActivity and SENA have it; ``none``: attention over all genes
    of the cell, the control."""
    d_embed: int = Field(128, ge=1)
    """Width of gene and pathway embeddings (the paper: 128 or 256)."""
    n_heads: int = Field(8, ge=1)
    """Attention heads (the paper: head size 16, so 8 or 16 of them)."""
    pathway_init: Literal["learned", "members", "text"] = "members"
    """Pathway queries: a learned table; one plus the mean embedding of the member genes; or one plus a
    learned map of the vectors in ``pathway_vectors``."""
    pathway_vectors: str | None = None
    """``pathway_init: text`` only: file of vectors by pathway id or name (Parquet, or text with tabs)."""
    value_mode: Literal["scale", "film", "bins"] = "scale"
    """How expression enters a token: ``scale``: the embedding times expression, keys too (the paper);
    ``film`` and ``bins``: keys from the gene alone, values modulated by expression, affine or piecewise
    linear."""
    n_bins: int = Field(8, ge=2)
    """``bins`` only: number of evenly spaced knots."""
    bins_max: float = Field(7.0, gt=0)
    """``bins`` only: the last knot, in log1p units; values beyond it count as it."""
    tokens: Literal["expressed", "all"] = "expressed"
    """Which genes of a cell are tokens: those with counts, or every gene that its dataset measured."""
    gene_vectors: str | None = None
    """File of gene vectors (Parquet, or text with tabs: gene, numbers); genes without one are learned."""
    gene_vectors_use: Literal["warm", "frozen"] = "warm"
    """Whether given vectors are where training starts, or stay as they are."""
    candidates: int | Literal["all"] = 0
    """``soft`` and ``soft_log``: genes beyond its members that each pathway may recruit."""
    gate_noise: float = Field(0.01, ge=0)
    """``soft`` and ``soft_log``: standard deviation of ε in W = M + ε."""
    prior_mass: float = Field(0.9, gt=0, lt=1)
    """``soft_log`` only: share of the attention that starts inside the pathway."""
    leak: float = Field(0.0, ge=0, le=1)
    """``linear`` only: weight λ of genes outside a pathway (SENA)."""
    weight_init: Literal["members", "genes"] = "members"
    """``linear`` only: weights start with the size that suits a pathway's number of members, or that of a
    dense layer over all genes, which starts small pathways near zero (SENA)."""
    kernel: Literal["auto", "numba", "torch"] = "auto"
    """CPU kernels: ``auto`` takes numba where it is installed; GPU tensors always take torch."""

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
        if self.leak and self.value_mode != "scale":
            raise ValueError("'leak' belongs to value_mode 'scale'")
        if (self.pathway_init == "text") != (self.pathway_vectors is not None):
            raise ValueError("pathway_init 'text' and a file of 'pathway_vectors' belong together")
        if not strategy.has_tokens and (self.gene_vectors or self.pathway_vectors):
            raise ValueError(f"masking '{self.masking}' has no embeddings to give vectors for")
        return self


def uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep torch.compile out: the kernels are compiled already, and the shapes differ from step to step.

    torch's own decorator would import the whole compiler here, where hardly anybody needs it.
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
    """What each gene of each cell adds to each pathway: N numbers that are not trivially zero.

    Attributes
    ----------
    cell, gene, pathway : (N,) int64
        ``gene`` is an index of the vocabulary.
    value : (N,)
    """

    cell: Tensor
    gene: Tensor
    pathway: Tensor
    value: Tensor


class PathwayLayer(nn.Module, ABC):
    """Activities of P pathways from a cell's gene tokens.

    A subclass with ``name="…"`` is a strategy; ``pathway.masking`` chooses one.
    """

    own_settings: ClassVar[frozenset[str]] = frozenset()
    """Settings of :class:`PathwayConfig` that not every strategy reads, but this one does."""
    has_tokens: ClassVar[bool] = True
    """Whether there are embedded tokens, which an encoder can work on."""

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

    @uncompiled
    def forward(self, cells: PackedCells) -> Tensor:
        """Activities, shape (B, P): the sum of the contributions plus a bias."""
        return self.sums(self.tokens_of(cells)) + self.bias

    @abstractmethod
    def sums(self, cells: PackedCells) -> Tensor:
        """The sum of the contributions, shape (B, P)."""

    @abstractmethod
    def contributions(self, cells: PackedCells, pathway: int | None = None) -> Contributions:
        """Exact contribution of every gene of every cell, to one pathway or to all."""

    def reads(self, pathway: int) -> Tensor:
        """Vocabulary indices of all genes that can contribute to a pathway, sorted."""
        return self.edges.gene[self.edges.pathway == pathway]

    def tokens_of(self, cells: PackedCells) -> PackedCells:
        """The cells with the tokens that the config asks for."""
        return measured(cells) if self.config.tokens == "all" else cells


def expression(config: PathwayConfig) -> Expression:
    """The functions of expression that ``value_mode`` names."""
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
        None: no encoder.
    given
        Vectors of the config's files; without them their place is kept, for weights to be loaded into.
    """
    return STRATEGIES[config.masking](config, edges, encoder, given)
