"""Tokens from genes and their expression: the three value modes, and the choice of genes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tadvae.nn.packed import PackedCells


@dataclass(frozen=True)
class Basis:
    """Values of basis functions of expression: for each token the few that are not zero.

    Attributes
    ----------
    first : (T,) int64
        Index of the function in the first column of ``phi``.
    phi : (T, J)
        Values of the functions ``first`` to ``first + J - 1``.
    """

    first: Tensor
    phi: Tensor

    def dense(self, n_basis: int) -> Tensor:
        """Values of all functions, (T, n_basis)."""
        column = self.first[:, None] + torch.arange(self.phi.shape[1], device=self.first.device)  # (T, J)
        return self.phi.new_zeros(len(self.first), n_basis).scatter(1, column, self.phi)


class Expression(ABC):
    """Fixed basis functions φ of expression x; tokens and loadings are linear combinations of them.

    Attributes
    ----------
    identity
        Coefficients c with ``Σ_b φ_b(x) c_b = x``, so that every mode can start as ``scale``.
    constant
        Coefficients c with ``Σ_b φ_b(x) c_b = 1``; empty if there are none.
    """

    identity: tuple[float, ...]
    constant: tuple[float, ...]

    @property
    def n_basis(self) -> int:
        """Number of basis functions."""
        return len(self.identity)

    @abstractmethod
    def of(self, x: Tensor) -> Basis:
        """Values of the functions at expressions (T,)."""


class Linear(Expression):
    """``scale``: φ(x) = x."""

    identity = (1.0,)
    constant = ()

    def of(self, x: Tensor) -> Basis:
        """The value x, one function."""
        return Basis(torch.zeros_like(x, dtype=torch.int64), x[:, None])


class Affine(Expression):
    """``film``: φ(x) = (1, x)."""

    identity = (0.0, 1.0)
    constant = (1.0, 0.0)

    def of(self, x: Tensor) -> Basis:
        """The values 1 and x, two functions."""
        return Basis(torch.zeros_like(x, dtype=torch.int64), torch.stack([torch.ones_like(x), x], dim=1))


class Hats(Expression):
    """``bins``: hat functions on evenly spaced knots from 0; they sum to one, and are constant outside."""

    def __init__(self, n_bins: int, largest: float) -> None:
        self.step = largest / (n_bins - 1)
        self.identity = tuple(i * self.step for i in range(n_bins))
        self.constant = (1.0,) * n_bins

    def of(self, x: Tensor) -> Basis:
        """The two hat functions around x: 1 − f and f, where f is the position of x between their knots."""
        place = (x / self.step).clamp(0, self.n_basis - 1)  # (T,)
        first = place.detach().floor().clamp(max=self.n_basis - 2)
        rest = place - first
        return Basis(first.long(), torch.stack([1 - rest, rest], dim=1))


class TokenValues(nn.Module):
    """Tokens of genes with embedding E at expression x.

    ``scale`` is ``E ⊙ x`` (T-AD-VAE, tokenization, step 3). Any other mode is
    ``γ(x) ⊙ E + δ(x)`` with ``γ(x) = Σ_b φ_b(x) γ_b`` and ``δ(x) = Σ_b φ_b(x) δ_b``: feature-wise
    modulation (Perez et al. 2018, equation 2) that is affine or piecewise linear in x. It starts as
    ``E·(1 + x) + r·x`` with one random direction r: a part that identifies the gene, and parts that grow with
    expression. With ``E ⊙ x`` alone, the layer norm of an encoder would remove the expression.
    """

    def __init__(self, expression: Expression, d: int) -> None:
        super().__init__()
        self.expression = expression
        self.plain = isinstance(expression, Linear)
        if not self.plain:
            identity, one = (torch.tensor(c)[:, None] for c in (expression.identity, expression.constant))
            self.gamma = nn.Parameter((one + identity).repeat(1, d))  # (n_basis, d)
            self.delta = nn.Parameter(identity * torch.randn(1, d) / d**0.5)  # (n_basis, d)

    def modulate(self, rows: Tensor) -> Tensor:
        """Coefficients of the basis functions, (n, n_basis, d), from embeddings (n, d)."""
        return rows[:, None] if self.plain else rows[:, None] * self.gamma + self.delta

    def forward(self, rows: Tensor, x: Tensor) -> Tensor:
        """Tokens (T, d) of embeddings (T, d) at expressions (T,)."""
        if self.plain:
            return rows * x[:, None]
        phi = self.expression.of(x).dense(self.expression.n_basis)  # (T, n_basis)
        return rows * (phi @ self.gamma) + phi @ self.delta


def measured(cells: PackedCells) -> PackedCells:
    """Add every measured gene as a token, with the value zero if it is not expressed.

    Raises
    ------
    ValueError
        If the cells came without panels, or express a gene outside theirs.
    """
    if cells.panel is None:
        raise ValueError("tokens='all' needs the measured genes: pack the cells with their panels")
    sizes = torch.tensor([len(panel) for panel in cells.panels]).to(cells.cell.device)
    length = sizes[cells.panel]  # (B,)
    start = torch.cumsum(length, 0) - length
    cell = torch.repeat_interleave(torch.arange(cells.n_cells, device=length.device), length)  # (T',)
    within = torch.arange(len(cell), device=length.device) - start[cell]  # (T',)
    gene_ids = torch.zeros_like(cell)
    place = torch.zeros_like(cells.gene_ids)  # (T,) where each given token goes
    for i, panel in enumerate(cells.panels):
        new, given = cells.panel[cell] == i, cells.panel[cells.cell] == i
        gene_ids[new] = panel[within[new]]
        genes = cells.gene_ids[given]
        at = torch.searchsorted(panel, genes)
        if not torch.equal(panel[at.clamp(max=len(panel) - 1)], genes):
            raise ValueError("cells express a gene that is not in their panel")
        place[given] = start[cells.cell[given]] + at
    values = cells.values.new_zeros(len(cell)).index_copy(0, place, cells.values)
    return replace(cells, gene_ids=gene_ids, values=values, cell=cell, n_pairs=None)
