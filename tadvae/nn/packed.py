"""Sparse cells as tensors without padding, and a batch of bags as input of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tadvae.cells.ragged import Cells
from tadvae.nn.causal import Intervention


@dataclass(frozen=True)
class PackedCells:
    """B :class:`~tadvae.cells.ragged.Cells` as tensors.

    Attributes
    ----------
    gene_ids : (T,) int64
        Vocabulary index of each token's gene.
    values : (T,) float32
        Log-normalised expression of each token.
    cell : (T,) int64
        Index of each token's cell, ascending.
    n_cells
        Number B of cells.
    panels
        Sorted measured genes of the datasets that the cells come from; empty if genes that were measured but
        not expressed are not needed.
    panel : (B,) int64
        Index of each cell's panel in ``panels``; None without panels.
    n_pairs
        Number of (token, edge) pairs, with every edge of the network; None: not known in host memory.
    """

    gene_ids: Tensor
    values: Tensor
    cell: Tensor
    n_cells: int
    panels: tuple[Tensor, ...] = ()
    panel: Tensor | None = None
    n_pairs: int | None = None

    @cached_property
    def offsets(self) -> Tensor:
        """Position of each cell's first token, and T at the end, (B + 1,) int64."""
        return torch.searchsorted(self.cell, torch.arange(self.n_cells + 1, device=self.cell.device))

    def part(self, start: int, stop: int) -> "PackedCells":
        """Cells ``start`` to ``stop``, or to the last cell if there are fewer."""
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
        """Copy cells to a device; a single panel is used for every cell."""
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
    """Tokens of cells as they are copied to the device: eight bytes each, no padding.

    Attributes
    ----------
    gene_ids : (T,) int32
        Vocabulary index of each token's gene.
    values : (T,) float32
        Log-normalised expression of each token.
    n_tokens : (B,) int64
        Number of tokens of each cell.
    offsets
        Position of each cell's first token, int64, in host memory, shape (B + 1,).
    """

    gene_ids: Tensor
    values: Tensor
    n_tokens: Tensor
    offsets: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Cells], dtype: torch.dtype = torch.float32) -> Self:
        """Concatenate the cells of all parts; this is the only copy between decoding and the device's."""
        n_tokens = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.offsets) for part in parts)])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(n_tokens)])
        ids, data = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float32)
        at = 0
        for part in parts:
            stop = at + len(part.values)
            ids[at:stop], data[at:stop] = part.gene_ids, part.values
            at = stop
        return cls(
            torch.from_numpy(ids), torch.from_numpy(data).to(dtype), torch.from_numpy(n_tokens), offsets
        )

    @cached_property
    def cell(self) -> Tensor:
        """Index of each token's cell, (T,) int64."""
        number = torch.arange(len(self.n_tokens), device=self.values.device)
        return number.repeat_interleave(self.n_tokens, output_size=len(self.values))


@dataclass(frozen=True)
class Layout:
    """Where the values of all cells of a batch are in one array, with the genes of its dataset for each.

    Attributes
    ----------
    row : (n,) int64
        Position of each cell's first value.
    column : (n,) int64
        Where the columns of the cell's dataset begin in a table (n_datasets · n_genes,) of the column of each
        gene.
    size
        Length of the array; padding, which no cell has values in, is zero.
    """

    row: Tensor
    column: Tensor
    size: int

    def fill(self, tokens: PackedTokens, table: Tensor) -> "Filled":
        """All values; ``table`` : (n_datasets · n_genes,) int64."""
        cell = tokens.cell
        column = table.index_select(0, self.column.index_select(0, cell) + tokens.gene_ids)
        place = self.row.index_select(0, cell) + column
        values = tokens.values.new_zeros(self.size).scatter_(0, place, tokens.values)
        return Filled(values, column, tokens.values)


@dataclass(frozen=True)
class Rows:
    """Where some rows of values are, cells of one dataset or padding, in a :class:`Layout` and its tokens.

    Attributes
    ----------
    values
        Range of the values of the n rows.
    tokens
        Range of their tokens.
    starts : (n + 1,) int64
        Position of each row's first token in that range, and its length; rows of padding have no tokens.
    """

    values: slice
    tokens: slice
    starts: Tensor


@dataclass(frozen=True)
class CellRows:
    """Values of cells on the G genes of their dataset; they have no gradient.

    Attributes
    ----------
    values : (n, G)
        The values; zero where a cell has no token.
    column, tokens : (T,)
        Column of each token, and its value.
    starts : (n + 1,) int64
        Position of each row's first token, and T.
    """

    values: Tensor
    column: Tensor
    tokens: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Filled:
    """The values of a batch.

    Attributes
    ----------
    values
        The array of a :class:`Layout`, (size,).
    column, tokens : (T,)
        Column of each token among the genes of its dataset, and its value.
    """

    values: Tensor
    column: Tensor
    tokens: Tensor

    def rows(self, rows: Rows) -> CellRows:
        """Some rows."""
        return CellRows(
            self.values[rows.values].view(len(rows.starts) - 1, -1),
            self.column[rows.tokens],
            self.tokens[rows.tokens],
            rows.starts,
        )


@dataclass(frozen=True)
class Perturbed:
    """The b perturbed bags of one dataset in a batch, padded to the largest, so that one product serves all.

    Attributes
    ----------
    context : (b,) int64
        Index of each bag's context in the model.
    start : (b, n) int64
        The encoded cells that each bag starts from, as rows of :attr:`DatasetBags.cells`; padding repeats
        the first.
    start_weight : (b, n)
        1/n for each of the n cells that a bag starts from, zero for padding.
    sets
        Bags that start from the same cells: their range, and that of their cells as rows of
        :attr:`DatasetBags.cells`.
    observed
        The observed cells, b · m rows.
    observed_weight : (b, m)
        1/m for each of the m observed cells of a bag, zero for padding.
    mmd_weight : (b,)
        One for bags with at least two cells on both sides, which an MMD needs, else zero.
    n_mmd
        Number of such bags.
    """

    context: Tensor
    start: Tensor
    start_weight: Tensor
    sets: tuple[tuple[slice, slice], ...]
    observed: Rows
    observed_weight: Tensor
    mmd_weight: Tensor
    n_mmd: int


@dataclass(frozen=True)
class DatasetBags:
    """The bags of one dataset in a batch.

    Attributes
    ----------
    dataset
        Index in the model.
    cells
        Range of the N encoded cells: sets of matched controls, and bags of controls.
    encoded
        Their values.
    contexts : (c,) int64
        Indices of their contexts in the model.
    context : (N,) int64
        Index of each encoded cell's context in ``contexts``.
    weight : (N,)
        Weight of each encoded cell in the reconstruction, which is the mean over the batch's bags of the
        mean over the cells that a bag encodes. Over all datasets the weights sum to one.
    per_unit : (N,)
        Counts of each encoded cell per normalised unit; NaN if there are no counts.
    perturbed
        The perturbed bags; None if there are none.
    """

    dataset: int
    cells: slice
    encoded: Rows
    contexts: Tensor
    context: Tensor
    weight: Tensor
    per_unit: Tensor
    perturbed: Perturbed | None


@dataclass(frozen=True)
class ModelBatch:
    """A :class:`~tadvae.data.batches.Batch` as tensors.

    Attributes
    ----------
    tokens
        Tokens of the B encoded cells, then of the observed cells.
    layout
        Where their values are among those of all cells.
    dataset : (B,) int64
        Index of each encoded cell's dataset.
    panels, panel, n_pairs
        As in :class:`PackedCells`, for the encoded cells.
    datasets
        The bags, by dataset; their ranges are ranges of the encoded cells.
    n_bags
        Number of bags.
    start : (S,) int64
        Encoded cell of every entry of :attr:`Perturbed.start`, dataset by dataset.
    start_bag : (S,) int64
        Index of its bag among all bags of the batch, which is its row of shifts.
    intervention
        Targets of the bags.
    """

    tokens: PackedTokens
    layout: Layout
    dataset: Tensor
    panels: tuple[Tensor, ...]
    panel: Tensor
    datasets: list[DatasetBags]
    n_bags: int
    start: Tensor
    start_bag: Tensor
    intervention: Intervention
    n_pairs: int | None

    @cached_property
    def cells(self) -> PackedCells:
        """The encoded cells, without the observed ones."""
        n_cells = len(self.dataset)
        encoded = slice(0, int(self.tokens.offsets[n_cells]))
        return PackedCells(
            self.tokens.gene_ids[encoded].long(),
            self.tokens.values[encoded],
            self.tokens.cell[encoded],
            n_cells,
            self.panels,
            self.panel,
            self.n_pairs,
        )
