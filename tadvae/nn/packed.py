"""Sparse cells as tensors without padding, and a batch of bags as input of the network."""

from collections.abc import Callable, Sequence
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

    def dense(
        self, cells: slice, column: Tensor, n_genes: int, row: Tensor | None = None, n_rows: int | None = None
    ) -> Tensor:
        """Values of the cells ``cells`` on a gene list, shape (n, G).

        Parameters
        ----------
        column : (n_vocabulary,) int64
            Column of each gene in the list, which must contain all genes of the cells.
        n_genes
            Number G of genes in the list.
        row, n_rows
            Row of each cell in the result, and the number of rows; rows without a cell are zero. Without
            them there is one row per cell.
        """
        tokens = slice(*self.offsets[[cells.start, cells.stop]].tolist())
        at = self.cell[tokens] - cells.start
        n_rows = cells.stop - cells.start if n_rows is None else n_rows
        place = (at if row is None else row[at]) * n_genes + column[self.gene_ids[tokens].long()]
        return (
            self.values.new_zeros(n_rows * n_genes).scatter_(0, place, self.values[tokens]).view(-1, n_genes)
        )


@dataclass(frozen=True)
class Perturbed:
    """The b perturbed bags of one dataset in a batch, padded to the largest, so that one product serves all.

    Attributes
    ----------
    bag : (b,) int64
        Index of each bag among all bags of the batch, which is its row of shifts.
    context : (b,) int64
        Index of each bag's context in the model.
    start : (b, n) int64
        The encoded cells that each bag starts from, as rows of :attr:`DatasetBags.cells`; padding repeats
        the first.
    is_start : (b, n) bool
        Whether an entry of ``start`` is a cell, not padding.
    cells
        Range of the observed cells in the batch's tokens.
    row : (n_observed,) int64
        Row of each observed cell in a (b · m, G) array.
    is_observed : (b, m) bool
        Whether a row of that array is a cell, not padding.
    n_mmd
        Number of bags with at least two cells on both sides, which an MMD needs.
    """

    bag: Tensor
    context: Tensor
    start: Tensor
    is_start: Tensor
    cells: slice
    row: Tensor
    is_observed: Tensor
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
    context : (N,) int64
        Index of each encoded cell's context in the model.
    weight : (N,) float64
        Weight of each encoded cell in the reconstruction, which is the mean over the batch's bags of the
        mean over the cells that a bag encodes. Over all datasets the weights sum to one.
    per_unit : (N,)
        Counts of each encoded cell per normalised unit; NaN if there are no counts.
    perturbed
        The perturbed bags; None if there are none.
    """

    dataset: int
    cells: slice
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
    dataset : (B,) int64
        Index of each encoded cell's dataset.
    panels, panel
        As in :class:`PackedCells`, for the encoded cells.
    datasets
        The bags, by dataset; their ranges are ranges of cells in ``tokens``.
    n_bags
        Number of bags.
    intervention
        Targets of the bags.
    """

    tokens: PackedTokens
    dataset: Tensor
    panels: tuple[Tensor, ...]
    panel: Tensor
    datasets: list[DatasetBags]
    n_bags: int
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
    encoded = batch.encoded
    number = {id(cells): i for i, cells in enumerate(encoded)}
    set_of_bag = [number[id(bag.cells if bag.controls is None else bag.controls)] for bag in batch.bags]
    sizes = np.array([len(cells) for cells in encoded])
    first = np.concatenate([[0], np.cumsum(sizes)])  # row of each set's first cell, among all sets

    def move(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    datasets: list[DatasetBags] = []
    observed: list[Cells] = []
    at = int(first[-1])
    for d in sorted({bag.dataset for bag in batch.bags}):
        bags = [i for i, bag in enumerate(batch.bags) if bag.dataset == d]
        sets = sorted({set_of_bag[i] for i in bags})
        rows = slice(int(first[sets[0]]), int(first[sets[-1] + 1]))
        scale = SCALE.get(vocabulary.datasets[d].method, np.nan)
        counts = np.concatenate([encoded[s].total_counts for s in sets]) / scale
        context = {i: context_row[d, batch.bags[i].context] for i in bags}
        of_set = {set_of_bag[i]: context[i] for i in bags}
        uses = np.bincount([set_of_bag[i] for i in bags], minlength=len(encoded))[sets]
        perturbed = [i for i in bags if batch.bags[i].controls is not None]
        cells = [batch.bags[i].cells for i in perturbed]
        stop = at + sum(map(len, cells))
        datasets.append(
            DatasetBags(
                dataset=d,
                cells=rows,
                context=move(np.repeat([of_set[s] for s in sets], sizes[sets])),
                weight=move(np.repeat(uses / sizes[sets] / len(batch.bags), sizes[sets])),
                per_unit=move(np.asarray(counts, np.float32)),
                perturbed=None
                if not perturbed
                else _perturbed(
                    np.array(perturbed),
                    np.array([context[i] for i in perturbed]),
                    np.array([first[set_of_bag[i]] - rows.start for i in perturbed]),
                    np.array([sizes[set_of_bag[i]] for i in perturbed]),
                    np.array([len(part) for part in cells]),
                    slice(at, stop),
                    move,
                ),
            )
        )
        observed += cells
        at = stop
    pairs = [
        (*pair, bag.dataset, i)
        for i, bag in enumerate(batch.bags)
        for pair in interventions[bag.perturbation]
    ]
    target, modality, of_dataset, of_bag = map(move, np.array(pairs, np.int64).reshape(-1, 4).T.copy())
    of_cell = np.repeat(
        [part.dataset for part in datasets], [part.cells.stop - part.cells.start for part in datasets]
    )
    used, panel = np.unique(of_cell, return_inverse=True)
    return ModelBatch(
        tokens=PackedTokens.of([*encoded, *observed], device),
        dataset=move(of_cell),
        panels=tuple(move(vocabulary.datasets[d].genes) for d in used),
        panel=move(panel),
        datasets=datasets,
        n_bags=len(batch.bags),
        intervention=Intervention(target, modality, of_dataset, of_bag, n_bags=len(batch.bags)),
    )


def _perturbed(
    bag: np.ndarray,
    context: np.ndarray,
    first: np.ndarray,
    n_start: np.ndarray,
    n_observed: np.ndarray,
    cells: slice,
    move: Callable[[np.ndarray], Tensor],
) -> Perturbed:
    """Pad bags of ``n_start`` encoded cells, from row ``first`` on, and ``n_observed`` observed ones."""
    column = np.arange(n_start.max())
    is_start = column < n_start[:, None]  # (b, n)
    is_observed = np.arange(n_observed.max()) < n_observed[:, None]  # (b, m)
    return Perturbed(
        bag=move(bag),
        context=move(context),
        start=move(first[:, None] + column * is_start),
        is_start=move(is_start),
        cells=cells,
        row=move(np.flatnonzero(is_observed)),
        is_observed=move(is_observed),
        n_mmd=int(((n_start > 1) & (n_observed > 1)).sum()),
    )
