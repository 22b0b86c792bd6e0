"""Sparse cells as tensors without padding, and a batch of bags as input of the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from tadvae.cells.normalize import SCALE
from tadvae.cells.ragged import Cells
from tadvae.data.batches import Batch
from tadvae.data.vocabulary import Vocabulary
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
    """

    gene_ids: Tensor
    values: Tensor
    cell: Tensor
    n_cells: int
    panels: tuple[Tensor, ...] = ()
    panel: Tensor | None = None

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
    offsets
        Position of each cell's first token, int64, in host memory, shape (B + 1,).
    """

    gene_ids: Tensor
    values: Tensor
    offsets: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[Cells], device: torch.device | str = "cpu") -> Self:
        """Concatenate the cells of all parts; this is the only copy between decoding and the device."""
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
        """Index of each token's cell, (T,) int64."""
        n_tokens = torch.from_numpy(np.diff(self.offsets)).to(self.values.device)
        number = torch.arange(len(n_tokens), device=self.values.device)
        return number.repeat_interleave(n_tokens, output_size=len(self.values))

    def dense(self, rows: slice, column: Tensor, n_genes: int) -> Tensor:
        """Values of the cells ``rows`` on a gene list, shape (n, G).

        Parameters
        ----------
        column : (n_vocabulary,) int64
            Column of each gene in the list, which must contain all genes of the cells.
        n_genes
            Number G of genes in the list.
        """
        tokens = slice(*self.offsets[[rows.start, rows.stop]].tolist())
        place = (self.cell[tokens] - rows.start) * n_genes + column[self.gene_ids[tokens].long()]
        result = self.values.new_zeros((rows.stop - rows.start) * n_genes)
        return result.scatter_(0, place, self.values[tokens]).view(-1, n_genes)


@dataclass(frozen=True)
class ModelBag:
    """One bag of a training step, as input of the network.

    Attributes
    ----------
    dataset, context
        Indices in the model; ``context`` is also the row of the control profile.
    rows
        Range of the encoded cells: matched controls, or the cells of a control bag.
    observed
        Range of the perturbed cells; None for a bag of controls.
    per_unit : (n,)
        Counts of each encoded cell per normalised unit; NaN if there are no counts.
    """

    dataset: int
    context: int
    rows: slice
    observed: slice | None
    per_unit: Tensor


@dataclass(frozen=True)
class ModelBatch:
    """A :class:`~tadvae.data.batches.Batch` as tensors.

    Attributes
    ----------
    tokens
        Tokens of the B encoded cells, then of the observed cells.
    dataset : (B,) int64
        Index of each encoded cell's dataset.
    panels, panel
        As in :class:`PackedCells`, for the encoded cells.
    bags
        The bags; their ranges are ranges of cells in ``tokens``.
    intervention
        Targets of the bags.
    """

    tokens: PackedTokens
    dataset: Tensor
    panels: tuple[Tensor, ...]
    panel: Tensor
    bags: list[ModelBag]
    intervention: Intervention

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
        )


def pack(
    batch: Batch,
    vocabulary: Vocabulary,
    context_row: dict[tuple[int, int], int],
    interventions: list[list[tuple[int, int]]],
    device: torch.device | str = "cpu",
) -> ModelBatch:
    """Convert a batch of a store to tensors and to the indices of the model.

    Parameters
    ----------
    context_row
        Index of the model's context by the store's (dataset, context).
    interventions
        For each perturbation of the store its (target, modality) pairs, as indices of the model.
    """
    parts: list[Cells] = []
    bags, dataset = [], []
    target, modality, of_dataset, of_bag = [], [], [], []
    start, seen = 0, sum(len(bag.cells if bag.controls is None else bag.controls) for bag in batch.bags)
    for i, bag in enumerate(batch.bags):
        encoded = bag.cells if bag.controls is None else bag.controls
        rows = slice(start, start + len(encoded))
        start = rows.stop
        observed = None
        if bag.controls is not None:
            observed = slice(seen, seen + len(bag.cells))
            seen = observed.stop
        parts.append(encoded)
        dataset.append(np.full(len(encoded), bag.dataset))
        per_unit = encoded.total_counts / SCALE.get(vocabulary.datasets[bag.dataset].method, np.nan)
        counts = torch.from_numpy(np.asarray(per_unit, np.float32)).to(device)
        row = context_row[bag.dataset, bag.context]
        bags.append(ModelBag(bag.dataset, row, rows, observed, counts))
        for t, m in interventions[bag.perturbation]:
            target.append(t)
            modality.append(m)
            of_dataset.append(bag.dataset)
            of_bag.append(i)
    parts += [bag.cells for bag in batch.bags if bag.controls is not None]

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    of_cell = np.concatenate(dataset)  # (B,)
    used, panel = np.unique(of_cell, return_inverse=True)
    return ModelBatch(
        tokens=PackedTokens.of(parts, device),
        dataset=torch.from_numpy(of_cell).to(device),
        panels=tuple(torch.from_numpy(vocabulary.datasets[d].genes).to(device) for d in used),
        panel=torch.from_numpy(panel).to(device),
        bags=bags,
        intervention=Intervention(
            index(target), index(modality), index(of_dataset), index(of_bag), n_bags=len(bags)
        ),
    )
