"""Packing a batch of a store into the tensors that the network reads (:mod:`tadvae.nn.packed`)."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tadvae.cells.normalize import SCALE
from tadvae.cells.ragged import Cells, runs
from tadvae.data.amounts import Pair, amounts_of
from tadvae.data.batches import Batch
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.causal import Intervention
from tadvae.nn.one_copy import to_device
from tadvae.nn.packed import DatasetBags, Layout, ModelBatch, PackedTokens, Perturbed, Rows
from tadvae.store.covariates import AMOUNTS


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
    set_of_bag = np.array(
        [number[id(bag.cells if bag.controls is None else bag.controls)] for bag in batch.bags], np.int64
    )
    sizes = np.array([len(cells) for cells in encoded], np.int64)
    first = np.concatenate([[0], np.cumsum(sizes)])  # row of each set's first cell, among all sets
    dataset_of_bag = np.array([bag.dataset for bag in batch.bags], np.int64)
    present = np.unique(dataset_of_bag).tolist()

    rows = _LaidOut(vocabulary)
    of_dataset = {d: np.unique(set_of_bag[dataset_of_bag == d]) for d in present}
    encoded_rows = {d: rows.add(d, [encoded[s] for s in sets]) for d, sets in of_dataset.items()}
    n_encoded = len(rows.dataset)
    starts, start_bags = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    datasets: list[DatasetBags] = []
    for d, sets in of_dataset.items():
        bags = np.flatnonzero(dataset_of_bag == d)
        context = np.array([context_row[d, batch.bags[i].context] for i in bags], np.int64)
        context_of_set = dict(zip(set_of_bag[bags].tolist(), context.tolist(), strict=True))
        uses = np.bincount(set_of_bag[bags], minlength=len(encoded))[sets]
        scale = SCALE.get(vocabulary.datasets[d].method, np.nan)
        contexts, each = np.unique([context_of_set[s] for s in sets.tolist()], return_inverse=True)
        cells = slice(int(first[sets[0]]), int(first[sets[-1] + 1]))
        perturbed = None
        own = [i for i in bags if batch.bags[i].controls is not None]
        if own:
            perturbed, start = _perturbed(
                context[np.isin(bags, own)],
                set_of_bag[own],
                first - cells.start,
                sizes,
                [batch.bags[i].cells for i in own],
                partial(rows.add, d),
                weights,
            )
            starts.append(cells.start + start.ravel())
            start_bags.append(np.repeat(own, start.shape[1]))
        datasets.append(
            DatasetBags(
                dataset=d,
                cells=cells,
                encoded=encoded_rows[d],
                contexts=_tensor(contexts),
                context=_tensor(np.repeat(each, sizes[sets])),
                weight=weights(np.repeat(uses / sizes[sets] / len(batch.bags), sizes[sets])),
                per_unit=weights(np.concatenate([encoded[s].total_counts for s in sets]) / scale),
                perturbed=perturbed,
            )
        )
    of_cell = np.array(rows.dataset[:n_encoded], np.int64)
    panels, panel = np.unique(of_cell, return_inverse=True)
    packed = ModelBatch(
        tokens=PackedTokens.of(rows.cells, dtype),
        layout=rows.layout(),
        dataset=_tensor(of_cell),
        panels=tuple(_tensor(vocabulary.datasets[d].genes) for d in panels),
        panel=_tensor(panel),
        datasets=datasets,
        n_bags=len(batch.bags),
        start=_tensor(np.concatenate(starts)),
        start_bag=_tensor(np.concatenate(start_bags)),
        intervention=_intervention(batch, interventions, vocabulary.amounts is not None, weights),
        n_pairs=None if degree is None else sum(int(degree[cells.gene_ids].sum()) for cells in encoded),
    )
    return to_device(packed, torch.device(device))


class _LaidOut:
    """The cells of a batch, in the order of their tokens, and their rows, in the order of their values.

    Attributes
    ----------
    cells
        The parts so far.
    dataset
        Of each cell so far.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.cells: list[Cells] = []
        self.dataset: list[int] = []
        self._vocabulary = vocabulary
        self._row: list[np.ndarray] = []
        self._size = self._n_tokens = 0

    def add(self, dataset: int, cells: Sequence[Cells], real: np.ndarray | None = None) -> Rows:
        """Add parts of one dataset; ``real`` tells which rows are cells, not padding; None: all."""
        n_genes = len(self._vocabulary.datasets[dataset].genes)
        own = np.concatenate([np.diff(part.offsets) for part in cells])
        real = np.ones(len(own), bool) if real is None else real.ravel()
        tokens = np.zeros(len(real), np.int64)  # of each row
        tokens[real] = own
        starts = np.concatenate([[0], np.cumsum(tokens)])
        size, n_tokens = self._size, self._n_tokens
        self._row.append(size + np.flatnonzero(real) * n_genes)
        self._size, self._n_tokens = size + len(real) * n_genes, n_tokens + int(starts[-1])
        self.cells += cells
        self.dataset += [dataset] * len(own)
        return Rows(slice(size, self._size), slice(n_tokens, self._n_tokens), _tensor(starts))

    def layout(self) -> Layout:
        """Where the values of all cells are."""
        column = np.array(self.dataset, np.int64) * self._vocabulary.n_genes
        return Layout(_tensor(np.concatenate(self._row)), _tensor(column), self._size)


def _perturbed(
    context: np.ndarray,
    set_of_bag: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    cells: Sequence[Cells],
    add: Callable[[Sequence[Cells], np.ndarray], Rows],
    weights: Callable[[np.ndarray], Tensor],
) -> tuple[Perturbed, np.ndarray]:
    """The b bags of a dataset that have controls, each padded to the largest.

    Parameters
    ----------
    context, set_of_bag : (b,)
        Index of each bag's context in the model, and of its set of control cells.
    first, sizes
        Row of the first control cell of each set, and how many it has.
    add
        Lays the cells out.

    Returns
    -------
    The bags, and the rows of their control cells (b, n).
    """
    n_start, n_observed = sizes[set_of_bag], np.array([len(part) for part in cells])
    column = np.arange(n_start.max())
    is_start = column < n_start[:, None]  # (b, n)
    is_observed = np.arange(n_observed.max()) < n_observed[:, None]  # (b, m)
    start = first[set_of_bag][:, None] + column * is_start  # (b, n)
    enough = (n_start > 1) & (n_observed > 1)
    sets = []
    for a, z in runs(set_of_bag):
        own = int(first[set_of_bag[a]])
        sets.append((slice(own, own + int(n_start[a])), slice(a, z)))
    perturbed = Perturbed(
        context=_tensor(context),
        start=_tensor(start),
        start_weight=weights(is_start / n_start[:, None]),
        sets=tuple(sets),
        observed=add(cells, is_observed),
        observed_weight=weights(is_observed / n_observed[:, None]),
        mmd_weight=weights(enough),
        n_mmd=int(enough.sum()),
    )
    return perturbed, start


def _intervention(
    batch: Batch,
    interventions: list[list[Pair]],
    has_amounts: bool,
    weights: Callable[[np.ndarray], Tensor],
) -> Intervention:
    """The targets of all bags, with their amounts if the model reads them."""
    every = [
        (pair, bag.dataset, i) for i, bag in enumerate(batch.bags) for pair in interventions[bag.perturbation]
    ]
    amounts = None
    if has_amounts:
        amounts = weights(np.array([amounts_of(pair) for pair, _, _ in every]).reshape(-1, len(AMOUNTS)))
    pairs = np.array([(*pair[:2], dataset, i) for pair, dataset, i in every], np.int64).reshape(-1, 4)
    target, modality, of_dataset, of_bag = map(_tensor, pairs.T.copy())
    return Intervention(target, modality, of_dataset, of_bag, len(batch.bags), amounts)


def _tensor(values: np.ndarray | Sequence[int]) -> Tensor:
    return torch.from_numpy(np.asarray(values))
