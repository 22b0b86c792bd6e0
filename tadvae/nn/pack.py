"""Packing a batch of a store into the tensors that the network reads (:mod:`tadvae.nn.packed`)."""

from collections.abc import Callable, Sequence

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
from tadvae.nn.packed import DatasetBags, Layout, ModelBatch, PackedTokens, Perturbed
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
            perturbed, start, is_observed = _perturbed(
                [context[i] for i in bags],
                np.array([first[set_of_bag[i]] for i in bags]),
                np.array([sizes[set_of_bag[i]] for i in bags]),
                np.array([len(part) for part in own]),
                cells.start,
                size,
                n_genes,
                weights,
            )
            starts.append(start.ravel())
            start_bags.append(np.repeat(bags, start.shape[1]))
            observed_rows.append(size + np.flatnonzero(is_observed) * n_genes)
            of_observed += [d] * int(is_observed.sum())
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
        intervention=_intervention(batch, interventions, vocabulary.amounts is not None, weights),
        n_pairs=None if degree is None else sum(int(degree[cells.gene_ids].sum()) for cells in encoded),
    )
    return to_device(packed, torch.device(device))


def _perturbed(
    context: list[int],
    first: np.ndarray,
    n_start: np.ndarray,
    n_observed: np.ndarray,
    first_of_dataset: int,
    size: int,
    n_genes: int,
    weights: Callable[[np.ndarray], Tensor],
) -> tuple[Perturbed, np.ndarray, np.ndarray]:
    """The b bags of a dataset that have controls, each padded to the largest.

    Parameters
    ----------
    first : (b,)
        Row of the first control cell of each, among all sets.
    n_start, n_observed : (b,)
        Number of control cells and of perturbed cells of each.
    size
        Size of the layout before them.

    Returns
    -------
    The bags, the rows of their control cells (b, n), and which places of perturbed cells are taken (b, m).
    """
    column = np.arange(n_start.max())
    is_start = column < n_start[:, None]  # (b, n)
    is_observed = np.arange(n_observed.max()) < n_observed[:, None]  # (b, m)
    start = first[:, None] + column * is_start  # (b, n)
    enough = (n_start > 1) & (n_observed > 1)
    perturbed = Perturbed(
        context=_tensor(context),
        start=_tensor(start - first_of_dataset),
        start_weight=weights(is_start / n_start[:, None]),
        observed=slice(size, size + is_observed.size * n_genes),
        observed_weight=weights(is_observed / n_observed[:, None]),
        mmd_weight=weights(enough),
        n_mmd=int(enough.sum()),
    )
    return perturbed, start, is_observed


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
