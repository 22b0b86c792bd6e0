"""Order of the stored cells: shuffled within groups, cut into bags, bags shuffled over the dataset.

A *group* is the cells of one (context, perturbation) of a dataset. The MMD compares sets of cells of one
group, so a *bag*, a part of a group, is stored contiguously and read at once. Because cells and bags are
shuffled here, reading a shard from start to end gives a random sample of the dataset.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.store.cell_labels import CellLabels
from tadvae.store.spec import LayoutSpec


@dataclass(frozen=True)
class DatasetLayout:
    """Order of a dataset's n kept cells, and its bags."""

    position: np.ndarray  # (n,) int64: place of each kept cell in the dataset's stored order
    bags: pd.DataFrame
    """One row per bag in stored order: context, perturbation, n_cells, shard, row_group, first_row (in its
    row group)."""
    shard_rows: list[int]
    """Number of rows of each shard."""


def plan_layout(
    labels: CellLabels, spec: LayoutSpec, *, bag_size: int, key: tuple[int, ...]
) -> DatasetLayout:
    """Compute the stored order of a dataset from its labels and a seed.

    Parameters
    ----------
    labels
        Labels of the n kept cells.
    spec
        Sizes and seed.
    bag_size
        Largest number of cells in a bag; 1 for profiles.
    key
        Numbers added to the seed, so that datasets are shuffled differently.
    """
    rng = np.random.default_rng([spec.seed, *key])
    n = len(labels.source_row)
    shuffled = rng.permutation(n)
    group = labels.context * max(len(labels.perturbations), 1) + labels.perturbation
    shuffled = shuffled[np.argsort(group[shuffled], kind="stable")]  # grouped, random inside a group
    _, starts, sizes = np.unique(group[shuffled], return_index=True, return_counts=True)
    pieces = []
    for start, size in zip(starts, sizes, strict=True):
        n_bags = -(-size // bag_size)
        edges = start + np.linspace(0, size, n_bags + 1).round().astype(np.int64)  # near-equal bags
        pieces.append(np.stack([edges[:-1], edges[1:]], axis=1))
    spans = np.concatenate(pieces) if pieces else np.empty((0, 2), np.int64)  # (n_bags, 2)
    spans = spans[rng.permutation(len(spans))]
    order = np.concatenate([shuffled[a:b] for a, b in spans]) if len(spans) else shuffled
    position = np.empty(n, dtype=np.int64)
    position[order] = np.arange(n)

    n_cells = spans[:, 1] - spans[:, 0]
    first_cell = shuffled[spans[:, 0]] if len(spans) else shuffled
    shard, row_group, first_row = _cut(n_cells, spec.row_group_rows, spec.shard_rows)
    bags = pd.DataFrame(
        {
            "context": labels.context[first_cell],
            "perturbation": labels.perturbation[first_cell],
            "n_cells": n_cells,
            "shard": shard,
            "row_group": row_group,
            "first_row": first_row,
        }
    )
    rows = bags.groupby("shard")["n_cells"].sum()
    return DatasetLayout(position, bags, [int(size) for size in rows])


def _cut(n_cells: np.ndarray, group_rows: int, shard_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign bags in order to row groups and shards of about the given sizes, never cutting a bag."""
    shard = np.empty(len(n_cells), np.int64)
    row_group = np.empty(len(n_cells), np.int64)
    first_row = np.empty(len(n_cells), np.int64)
    s = g = in_shard = in_group = 0
    for i, size in enumerate(n_cells.tolist()):
        if in_shard and in_shard + size > shard_rows:
            s, g, in_shard, in_group = s + 1, 0, 0, 0
        elif in_group and in_group + size > group_rows:
            g, in_group = g + 1, 0
        shard[i], row_group[i], first_row[i] = s, g, in_group
        in_shard += size
        in_group += size
    return shard, row_group, first_row
