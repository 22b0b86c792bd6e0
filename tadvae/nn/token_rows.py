"""The tokens that a layer of the encoder reads: one row for each, or rows of genes times a factor."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tadvae.nn.attention import scaled_rows
from tadvae.nn.cell_attention import Read


class Tokens(ABC):
    """T tokens of width d."""

    @property
    @abstractmethod
    def rows(self) -> Tensor:
        """The tokens, (T, d)."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of tokens T."""

    @abstractmethod
    def of(self, read: Read) -> "Tokens":
        """The tokens that are computed."""

    @abstractmethod
    def normalised(self, norm: nn.LayerNorm) -> "Tokens":
        """The tokens after a layer norm (Ba et al. 2016)."""

    @abstractmethod
    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """``W·token + b`` of every token, (T, d'), for W (d', d) and b (d',)."""


@dataclass(frozen=True)
class DenseTokens(Tokens):
    """Any rows, (T, d)."""

    given: Tensor

    @property
    def rows(self) -> Tensor:
        """The tokens, (T, d)."""
        return self.given

    def __len__(self) -> int:
        return len(self.given)

    def of(self, read: Read) -> "DenseTokens":
        """The tokens that are computed."""
        return DenseTokens(read.of(self.rows))

    def normalised(self, norm: nn.LayerNorm) -> "DenseTokens":
        """The tokens after a layer norm."""
        return DenseTokens(norm(self.rows))

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """``W·token + b`` of every token, (T, d')."""
        return linear(self.rows, weight, bias)


@dataclass(frozen=True)
class ScaledTokens(Tokens):
    """``f_t·u_g + a``: a factor of the token times a row of its gene, plus the same for all.

    Tokens ``x·E_g`` of ``value_mode: scale`` stay of this form through a layer norm, because with
    ``e = E_g − mean(E_g)`` it gives ``x / √(x² mean(e²) + ε) · (γ ⊙ e) + β``, and through a linear map. The
    map is then applied to the genes of a batch in place of its tokens, of which there are many times more.

    Attributes
    ----------
    table : (G, d)
        Rows u of the genes.
    gene : (T,) int64
        Row of each token's gene.
    factor : (T,)
        Factor f of each token.
    constant : (d,) or None
        The summand a; None: zero, before a layer norm.
    numba
        Whether compiled kernels may be used.
    """

    table: Tensor
    gene: Tensor
    factor: Tensor
    constant: Tensor | None = None
    numba: bool = True

    @classmethod
    def from_genes(cls, genes: Tensor, gene_ids: Tensor, x: Tensor, numba: bool = True) -> "ScaledTokens":
        """Tokens ``x·E_g`` from embeddings E (n_genes, d), genes (T,) and expressions (T,)."""
        if genes.device.type != "cpu":  # the host would have to wait for the number of genes
            return cls(genes, gene_ids, x, numba=numba)
        present = torch.zeros(len(genes), dtype=torch.bool)
        present[gene_ids] = True
        place = present.cumsum(0) - 1
        return cls(genes[present], place[gene_ids], x, numba=numba)

    @property
    def rows(self) -> Tensor:
        """The tokens, (T, d)."""
        constant = self.table.new_zeros(self.table.shape[1]) if self.constant is None else self.constant
        return scaled_rows(self.table, self.gene, self.factor, constant, self.numba)

    def __len__(self) -> int:
        return len(self.gene)

    def of(self, read: Read) -> "ScaledTokens":
        """The tokens that are computed."""
        return replace(self, gene=read.of(self.gene), factor=read.of(self.factor))

    def normalised(self, norm: nn.LayerNorm) -> "ScaledTokens":
        """The tokens after a layer norm.

        Raises
        ------
        ValueError
            If the tokens have a summand, so that they would not keep their form.
        """
        if self.constant is not None:
            raise ValueError("tokens can be normalised once")
        centred = self.table - self.table.mean(1, keepdim=True)  # (G, d)
        variance = (centred**2).mean(1)  # (G,)
        x = self.factor
        factor = x * torch.rsqrt(x**2 * variance[self.gene] + norm.eps)
        return replace(self, table=centred * norm.weight, factor=factor, constant=norm.bias)

    def linear(self, weight: Tensor, bias: Tensor) -> Tensor:
        """``W·token + b`` of every token, (T, d')."""
        constant = bias if self.constant is None else linear(self.constant, weight, bias)
        return replace(self, table=linear(self.table, weight), constant=constant).rows
