"""What every masking strategy is: per-gene contributions that add up to a pathway's activity."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from tadvae.batch import PackedCells
from tadvae.errors import UserError
from tadvae.nn.attention import kernels
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.tokens import Affine, Expression, Hats, Linear, measured

if TYPE_CHECKING:
    from tadvae.nn.masking import PathwayConfig

STRATEGIES: dict[str, type["PathwayLayer"]] = {}
"""Every strategy by its name; a subclass enters itself."""


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
    """Settings of :class:`~tadvae.nn.masking.PathwayConfig` that not every strategy reads, but this one."""
    has_tokens: ClassVar[bool] = True
    """Whether there are embedded tokens, which an encoder can work on."""

    def __init_subclass__(cls, name: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if name is not None:
            STRATEGIES[name] = cls

    def __init__(
        self,
        config: "PathwayConfig",
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


def expression(config: "PathwayConfig") -> Expression:
    """The functions of expression that ``value_mode`` names."""
    if config.value_mode == "scale":
        return Linear()
    return Affine() if config.value_mode == "film" else Hats(config.n_bins, config.bins_max)
