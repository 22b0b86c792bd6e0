"""Errors and distances of decoded cells that are linear in the genes' embeddings, without decoding them.

The reconstruction of a cell is ``p + D h + b`` with the control profile ``p``, and a predicted cell is a
control cell plus ``D δ``. Their squared errors and inner products follow from products of the given cells
with each other, which have no gradient, and with ``D``. So no array of predicted cells × genes is made, nor
its gradient, and the products with ``D`` cost as much as the cells have tokens. With 20,000 genes a training
step on a CPU takes less than half of the time of one that decodes (``benchmarks/train_step.py``).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tadvae.nn.attention import kernels_for
from tadvae.nn.decoder import GeneRows
from tadvae.nn.losses import Products, weighted_sums
from tadvae.nn.packed import CellRows, Perturbed

SPARSE = 8
"""One token in a product by tokens takes as long as this many values in a product of whole rows."""


def times(rows: CellRows, table: Tensor, part: slice | None = None) -> Tensor:
    """``values @ table`` for a table (G, k), or for some of the n rows; the result is (n, k)."""
    part = part or slice(0, len(rows.values))
    fused = kernels_for(len(rows.tokens) * SPARSE < rows.values.numel(), rows.tokens, table)
    if fused is None:
        return rows.values[part] @ table
    starts = rows.starts[part.start : part.stop + 1]
    tokens = slice(int(starts[0]), int(starts[-1]))
    result: Tensor = fused.TokenProducts.apply(
        table.contiguous(), rows.column[tokens], rows.tokens[tokens], starts - starts[0]
    )
    return result


@dataclass(frozen=True)
class LinearCells:
    """The N encoded cells of a dataset, with their products with the embeddings of its G genes.

    Attributes
    ----------
    cells
        Their values, (N, G).
    table : (G, d + 1)
        Embeddings D of the genes; their biases b are the last column.
    on : (N, d + 1)
        The cells times the table.
    square : (d + 1, d + 1)
        The table times itself.
    """

    cells: CellRows
    table: Tensor
    on: Tensor
    square: Tensor

    @classmethod
    def of(cls, cells: CellRows, genes: GeneRows) -> Self:
        """The cells and what the decoder knows of the genes."""
        table = torch.cat([genes.embedding, genes.bias[:, None]], 1)
        return cls(cells, table, times(cells, table), table.T @ table)

    def squared_errors(self, hidden: Tensor, profiles: Tensor, context: Tensor) -> Tensor:
        """Mean over genes of the squared error of each reconstruction, (N,).

        ``‖p + D h + b − x‖² = h' (D'ᵀD') h' − 2 h'·D'ᵀ(x − p) + ‖x − p‖²`` with ``h' = (h, 1)`` and
        ``D' = (D, b)``.

        Parameters
        ----------
        hidden : (N, d)
            h(u) of the cells.
        profiles : (c, G)
            Control profile p of each context.
        context : (N,) int64
            Context of each cell.
        """
        extended = torch.nn.functional.pad(hidden, (0, 1), value=1.0)  # (N, d + 1)
        on = self.on - (profiles @ self.table).index_select(0, context)
        gap = self.cells.values - profiles.index_select(0, context)  # (N, G)
        linear = extended @ self.square - 2 * on
        squares: Tensor = torch.linalg.vecdot(gap, gap)
        return ((extended * linear).sum(1) + squares) / gap.shape[1]

    def predict(self, change: Tensor, bags: Perturbed, observed: CellRows) -> tuple[Tensor, Products | None]:
        """Compare the cells that bags start from, after a change of h(u), with the observed cells.

        Parameters
        ----------
        change : (b, n, d)
            Change δ of h(u) of each cell.
        observed
            The observed cells, b · m rows.

        Returns
        -------
        Mean of the predicted cells less that of the observed ones, (b, G), and the products of both; None
        if no bag has an MMD.
        """
        embedding = self.table[:, :-1]
        seen = observed.values.view(*bags.observed_weight.shape, -1)  # (b, m, G)
        moved = weighted_sums(change, bags.start_weight) @ embedding.T  # (b, G)
        gap = moved + (self._means(bags) - weighted_sums(seen, bags.observed_weight))
        if not bags.n_mmd:
            return gap, None
        # (c + D δ)·(c' + D δ') = c·c' + δ·Dᵀc' + δ'·Dᵀc + δ (DᵀD) δ'
        given = self._products(bags, observed, seen)
        own = self.on[:, :-1][bags.start]  # (b, n, d)
        others = times(observed, embedding).view(*bags.observed_weight.shape, -1)  # (b, m, d)
        cross = change @ own.transpose(1, 2)  # (b, n, n)
        both = cross + cross.transpose(1, 2) + change @ self.square[:-1, :-1] @ change.transpose(1, 2)
        return gap, Products(given.xx + both, given.xy + change @ others.transpose(1, 2), given.yy)

    def _means(self, bags: Perturbed) -> Tensor:
        """Mean of the cells that each bag starts from, (b, G)."""
        values = self.cells.values
        return torch.cat(
            [bags.start_weight[own, : cells.stop - cells.start] @ values[cells] for cells, own in bags.sets]
        )

    @torch.no_grad()
    def _products(self, bags: Perturbed, observed: CellRows, seen: Tensor) -> Products:
        """Products of the cells that each bag starts from and the observed ones, as they are given."""
        (b, n), m = bags.start.shape, seen.shape[1]
        xx, xy = seen.new_zeros(b, n, n), seen.new_zeros(b, n, m)
        for cells, own in bags.sets:
            start = self.cells.values[cells]
            size = len(start)
            xx[own, :size, :size] = start @ start.T
            on = times(observed, start.T, slice(own.start * m, own.stop * m))  # (bags · m, size)
            xy[own, :size] = on.view(-1, m, size).transpose(1, 2)
        return Products(xx, xy, seen @ seen.transpose(1, 2))
