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
from tadvae.data.amounts import Pair, amounts_of
from tadvae.data.batches import Batch
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.causal import Intervention
from tadvae.nn.one_copy import to_device
from tadvae.store.covariates import AMOUNTS


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

    def fill(self, tokens: PackedTokens, table: Tensor) -> Tensor:
        """The array (size,); ``table`` : (n_datasets · n_genes,) int64."""
        cell = tokens.cell
        column = table.index_select(0, self.column.index_select(0, cell) + tokens.gene_ids)
        place = self.row.index_select(0, cell) + column
        return tokens.values.new_zeros(self.size).scatter_(0, place, tokens.values)


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
    observed
        Range of the observed values in the :class:`Layout`.
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
    observed: slice
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
    values
        Range of their values in the :class:`Layout`.
    context : (N,) int64
        Index of each encoded cell's context in the model.
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
    values: slice
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


def pack(
    batch: Batch,
    vocabulary: Vocabulary,
    context_row: dict[tuple[int, int], int],
    interventions: list[list[Pair]],
    device: torch.device | str = "cpu",
    degree: np.ndarray | None = None,
    dtype: torch.dtype = torch.float32,
) -> ModelBatch:
    """Convert a batch of a store to tensors and to the indices of the model.

    Everything is made in host memory and copied to the device once.

    Parameters
    ----------
    context_row
        Index of the model's context by the store's (dataset, context).
    interventions
        For each perturbation of the store its pairs, as indices of the model, with amounts if it reads them.
    degree
        Number of edges of each gene in the network, (n_genes,); with it the network needs to ask no GPU for
        the number of pairs.
    dtype
        Of values and weights.
    """

    def weights(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(values)).to(dtype)

    encoded = batch.encoded
    number = {id(cells): i for i, cells in enumerate(encoded)}
    set_of_bag = [number[id(bag.cells if bag.controls is None else bag.controls)] for bag in batch.bags]
    sizes = np.array([len(cells) for cells in encoded])
    first = np.concatenate([[0], np.cumsum(sizes)])  # row of each set's first cell, among all sets

    datasets: list[DatasetBags] = []
    observed: list[Cells] = []
    starts: list[np.ndarray] = []
    start_bags: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    observed_rows: list[np.ndarray] = []
    of_cell: list[int] = []
    of_observed: list[int] = []
    size = 0  # of the layout so far
    for d in sorted({bag.dataset for bag in batch.bags}):
        bags = [i for i, bag in enumerate(batch.bags) if bag.dataset == d]
        sets = sorted({set_of_bag[i] for i in bags})
        cells = slice(int(first[sets[0]]), int(first[sets[-1] + 1]))
        n, n_genes = cells.stop - cells.start, len(vocabulary.datasets[d].genes)
        values = slice(size, size + n * n_genes)
        rows.append(size + np.arange(n) * n_genes)
        of_cell += [d] * n
        size = values.stop
        scale = SCALE.get(vocabulary.datasets[d].method, np.nan)
        counts = np.concatenate([encoded[s].total_counts for s in sets]) / scale
        context = {i: context_row[d, batch.bags[i].context] for i in bags}
        of_set = {set_of_bag[i]: context[i] for i in bags}
        uses = np.bincount([set_of_bag[i] for i in bags], minlength=len(encoded))[sets]
        bags = [i for i in bags if batch.bags[i].controls is not None]
        perturbed = None
        if bags:
            own = [batch.bags[i].cells for i in bags]
            n_start = np.array([sizes[set_of_bag[i]] for i in bags])
            n_observed = np.array([len(part) for part in own])
            column = np.arange(n_start.max())
            is_start = column < n_start[:, None]  # (b, n)
            is_observed = np.arange(n_observed.max()) < n_observed[:, None]  # (b, m)
            start = np.array([first[set_of_bag[i]] for i in bags])[:, None] + column * is_start  # (b, n)
            enough = (n_start > 1) & (n_observed > 1)
            perturbed = Perturbed(
                context=_tensor([context[i] for i in bags]),
                start=_tensor(start - cells.start),
                start_weight=weights(is_start / n_start[:, None]),
                observed=slice(size, size + is_observed.size * n_genes),
                observed_weight=weights(is_observed / n_observed[:, None]),
                mmd_weight=weights(enough),
                n_mmd=int(enough.sum()),
            )
            starts.append(start.ravel())
            start_bags.append(np.repeat(bags, start.shape[1]))
            observed_rows.append(size + np.flatnonzero(is_observed) * n_genes)
            of_observed += [d] * int(n_observed.sum())
            observed += own
            size = perturbed.observed.stop
        datasets.append(
            DatasetBags(
                dataset=d,
                cells=cells,
                values=values,
                context=_tensor(np.repeat([of_set[s] for s in sets], sizes[sets])),
                weight=weights(np.repeat(uses / sizes[sets] / len(batch.bags), sizes[sets])),
                per_unit=weights(counts),
                perturbed=perturbed,
            )
        )
    every = [
        (pair, bag.dataset, i) for i, bag in enumerate(batch.bags) for pair in interventions[bag.perturbation]
    ]
    pairs = [(*pair[:2], d, i) for pair, d, i in every]
    amounts = None
    if vocabulary.amounts is not None:
        amounts = weights(np.array([amounts_of(pair) for pair, _, _ in every]).reshape(-1, len(AMOUNTS)))
    target, modality, of_dataset, of_bag = map(_tensor, np.array(pairs, np.int64).reshape(-1, 4).T.copy())
    used, panel = np.unique(of_cell, return_inverse=True)
    none = [np.empty(0, np.int64)]
    packed = ModelBatch(
        tokens=PackedTokens.of([*encoded, *observed], dtype),
        layout=Layout(
            row=_tensor(np.concatenate([*rows, *observed_rows])),
            column=_tensor(np.array([*of_cell, *of_observed]) * vocabulary.n_genes),
            size=size,
        ),
        dataset=_tensor(of_cell),
        panels=tuple(_tensor(vocabulary.datasets[d].genes) for d in used),
        panel=_tensor(panel),
        datasets=datasets,
        n_bags=len(batch.bags),
        start=_tensor(np.concatenate(none + starts)),
        start_bag=_tensor(np.concatenate(none + start_bags)),
        intervention=Intervention(target, modality, of_dataset, of_bag, len(batch.bags), amounts),
        n_pairs=None if degree is None else sum(int(degree[cells.gene_ids].sum()) for cells in encoded),
    )
    return to_device(packed, torch.device(device))


def _tensor(values: np.ndarray | Sequence[int]) -> Tensor:
    return torch.from_numpy(np.asarray(values))
