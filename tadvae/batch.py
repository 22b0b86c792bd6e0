"""Packed batches: ragged cells without padding, grouped in bags.

A batch is plain arrays. ``Cells`` holds any number of cells end to end; ``Batch`` pairs bags of perturbed
cells with control cells of the same dataset and context.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Cells:
    """B ragged cells of T tokens in all (numpy; the model sees :class:`PackedCells`).

    Attributes
    ----------
    gene_ids
        Vocabulary indices, sorted within a cell, shape (T,).
    values
        Log-normalised expression, float32, shape (T,).
    offsets
        Where each cell starts, int64, shape (B + 1,).
    total_counts
        Library size of each cell, shape (B,).
    """

    gene_ids: np.ndarray
    values: np.ndarray
    offsets: np.ndarray
    total_counts: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, span: slice) -> "Cells":
        start, stop, step = span.indices(len(self))
        if step != 1:
            raise ValueError(f"cells are sliced without gaps, step {step} is not possible; use take")
        stop = max(start, stop)
        a, b = self.offsets[start], self.offsets[stop]
        return Cells(
            self.gene_ids[a:b],
            self.values[a:b],
            self.offsets[start : stop + 1] - a,
            self.total_counts[start:stop],
        )

    def take(self, rows: np.ndarray) -> "Cells":
        """The cells ``rows``, in that order, repeats allowed."""
        from tadvae.store.kernels import take_cells  # the network itself runs without numba

        ids, values, offsets = take_cells(self.gene_ids, self.values, self.offsets, rows)
        return Cells(ids, values, offsets, self.total_counts[rows])

    @classmethod
    def concat(cls, parts: Sequence["Cells"]) -> "Cells":
        """Cells of all parts, end to end."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(1, np.int64), np.empty(0))
        n_tokens = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            np.concatenate([part.gene_ids for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([[0], np.cumsum(n_tokens)]),
            np.concatenate([part.total_counts for part in parts]),
        )

    def dense(self, genes: np.ndarray) -> np.ndarray:
        """Values on a sorted gene list that holds all of the cells' genes, float32, shape (B, G)."""
        result = np.zeros((len(self), len(genes)), np.float32)
        row = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        result[row, np.searchsorted(genes, self.gene_ids)] = self.values
        return result


def runs(bag_of_row: np.ndarray) -> list[tuple[int, int]]:
    """Start and stop of every run of equal bag ids."""
    starts = np.flatnonzero(np.diff(bag_of_row, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(bag_of_row)], strict=True)) if starts else []


@dataclass(frozen=True)
class PackedCells:
    """:class:`Cells` as tensors.

    Attributes
    ----------
    gene_ids : (T,) int64
    values : (T,) float32
    cell : (T,) int64
        The cell of each token, ascending.
    n_cells
        B.
    panels
        Sorted measured genes of the datasets that the cells come from; none where nobody asks for the
        genes that were measured but not expressed.
    panel : (B,) int64
        Which of the panels is each cell's; None without panels.
    """

    gene_ids: Tensor
    values: Tensor
    cell: Tensor
    n_cells: int
    panels: tuple[Tensor, ...] = ()
    panel: Tensor | None = None

    @cached_property
    def offsets(self) -> Tensor:
        """Where each cell's tokens start, (B + 1,) int64."""
        return torch.searchsorted(self.cell, torch.arange(self.n_cells + 1, device=self.cell.device))

    def part(self, start: int, stop: int) -> "PackedCells":
        """Cells ``start`` to ``stop``; fewer where there are no more."""
        stop = min(stop, self.n_cells)
        tokens = slice(int(self.offsets[start]), int(self.offsets[stop]))
        return PackedCells(
            self.gene_ids[tokens],
            self.values[tokens],
            self.cell[tokens] - start,
            stop - start,
            self.panels,
            None if self.panel is None else self.panel[start:stop],
        )

    @classmethod
    def of(
        cls,
        cells: Cells,
        device: torch.device | str = "cpu",
        panels: Sequence[np.ndarray] = (),
        panel: np.ndarray | None = None,
    ) -> Self:
        """Copy to a device; with one panel it is every cell's."""
        row = np.repeat(np.arange(len(cells)), np.diff(cells.offsets))
        if panel is None and panels:
            panel = np.zeros(len(cells), np.int64)
        return cls(
            torch.from_numpy(cells.gene_ids.astype(np.int64)).to(device),
            torch.from_numpy(cells.values.astype(np.float32)).to(device),
            torch.from_numpy(row).to(device),
            len(cells),
            tuple(torch.from_numpy(genes.astype(np.int64)).to(device) for genes in panels),
            None if panel is None else torch.from_numpy(panel).to(device),
        )


@dataclass(frozen=True)
class PackedTokens:
    """Tokens of ragged cells as they travel to the device: eight bytes each, no padding.

    Attributes
    ----------
    gene_ids : (T,) int32
    values : (T,) float32
    offsets
        Where each cell starts, int64 on the host, shape (B + 1,).
    """

    gene_ids: Tensor
    values: Tensor
    offsets: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Cells], device: torch.device | str = "cpu") -> Self:
        """Cells of all parts, end to end: the one copy between decoding and the device."""
        n_tokens = np.concatenate([np.zeros(1, np.int64), *(np.diff(part.offsets) for part in parts)])
        offsets = np.cumsum(n_tokens)
        ids, data = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        at = 0
        for part in parts:
            stop = at + len(part.values)
            ids[at:stop], data[at:stop] = part.gene_ids, part.values
            at = stop
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(data).to(device), offsets)

    @cached_property
    def cell(self) -> Tensor:
        """The cell of each token, (T,) int64."""
        n_tokens = torch.from_numpy(np.diff(self.offsets)).to(self.values.device)
        number = torch.arange(len(n_tokens), device=self.values.device)
        return number.repeat_interleave(n_tokens, output_size=len(self.values))

    def dense(self, rows: slice, column: Tensor, n_genes: int) -> Tensor:
        """Values of the cells ``rows`` on a gene list, shape (n, G).

        Parameters
        ----------
        column : (n_vocabulary,) int64
            Place of each gene in the list, which has all of the cells' genes.
        n_genes
            G.
        """
        tokens = slice(*self.offsets[[rows.start, rows.stop]].tolist())
        place = (self.cell[tokens] - rows.start) * n_genes + column[self.gene_ids[tokens].long()]
        result = self.values.new_zeros((rows.stop - rows.start) * n_genes)
        return result.scatter_(0, place, self.values[tokens]).view(-1, n_genes)


@dataclass(frozen=True)
class Bag:
    """Cells of one (dataset, context, perturbation), with as many matched controls.

    A bag of control cells has no controls of its own: it is only encoded and reconstructed.
    """

    bag: int
    dataset: int
    context: int
    perturbation: int
    cells: Cells
    controls: Cells | None


@dataclass(frozen=True)
class Batch:
    """Bags of one training step, sorted by dataset and context."""

    bags: list[Bag]

    @property
    def n_cells(self) -> int:
        """Cells in all bags, controls not counted."""
        return sum(len(bag.cells) for bag in self.bags)

    @property
    def n_tokens(self) -> int:
        """Tokens of all cells and controls."""
        parts = [part for bag in self.bags for part in (bag.cells, bag.controls) if part is not None]
        return sum(len(part.values) for part in parts)
