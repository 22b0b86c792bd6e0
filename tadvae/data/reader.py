"""Reading the cells of a store on one side of its split.

A pass over the cells is a number of independent calls on parts of the store, run by a ``Mapper``: a loop
here, Ray tasks in ``pipelines``. Their results are merged in a fixed order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells, runs
from tadvae.data.decode import COLUMNS, DatasetView, decode
from tadvae.data.splits import TEST, VALIDATION, SplitConfig, held_out_rows
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store

Read = tuple[int, int, np.ndarray]
"""(shard, row group, bag ids)"""
Group = tuple[int, int, int]
"""(dataset, context, perturbation), indices in the store"""
Mapper = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a function with each of many argument tuples; returns the results in the same order."""


def loop(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """A :data:`Mapper` that calls the function in a loop, in this process."""
    return [function(*each) for each in arguments]


@dataclass(frozen=True)
class CellReader:
    """Reads normalised cells of some bags, either the training cells or the held-out cells.

    Attributes
    ----------
    store
        The store that is read.
    views
        Genes and normalisation of each dataset.
    split
        The split; it divides the cells of a bag if its kind is ``cells``.
    held_out
        Whether to read the held-out cells instead of the training cells.
    """

    store: Store
    views: list[DatasetView]
    split: SplitConfig
    held_out: bool = False

    def read(self, shard: int, row_group: int, bag_ids: np.ndarray) -> tuple[np.ndarray, Cells]:
        """Read some bags of a row group: bag ids of the cells on this side of the split, and the cells.

        Ids of parts (:func:`tadvae.data.plan.divided_bags`) stand for their bags.
        """
        bag_ids = np.unique(bag_ids % len(self.store.bags))
        table, bag_of_row = self.store.read_bags(shard, row_group, bag_ids, COLUMNS)
        entry = self.store.manifest.shards[shard]
        try:
            cells = self._decoded(table, self.views[entry.dataset])
        except UserError as error:
            raise UserError(
                f"{self.store.folder}: shard {entry.path}, row group {row_group}: {error}"
            ) from None
        keep = self.kept(shard, row_group, bag_of_row)
        return (bag_of_row, cells) if keep is None else (bag_of_row[keep], cells.take(np.flatnonzero(keep)))

    def _decoded(self, table: pa.Table, view: DatasetView) -> Cells:
        """Cells in the gene indices of the views, which may be those of a model with more genes."""
        index = self.store.gene_of_file
        if index is None:
            return decode(table, view, self.store.manifest.n_genes)
        lengths = None if view.lengths is None else view.lengths[index]
        stored = DatasetView(np.flatnonzero(np.isin(index, view.genes)), view.method, lengths)
        cells = decode(table, stored, len(index))
        return replace(cells, gene_ids=index[cells.gene_ids].astype(cells.gene_ids.dtype))

    def bags_with_cells(self, shard: int, row_group: int, bag_ids: np.ndarray) -> list[int]:
        """Return the bags that have a cell on this side of the split; no cells are read."""
        bag_of_row = np.repeat(bag_ids, self.store.bags["n_cells"].to_numpy()[bag_ids])
        keep = self.kept(shard, row_group, bag_of_row)
        result: list[int] = np.unique(bag_of_row if keep is None else bag_of_row[keep]).tolist()
        return result

    def kept(self, shard: int, row_group: int, bag_of_row: np.ndarray) -> np.ndarray | None:
        """Whether each row is on this side of the split, bool, shape (n,); None: all rows are."""
        if self.split.kind != "cells":
            return None
        name = self.store.manifest.datasets[self.store.manifest.shards[shard].dataset].name
        if self.split.datasets is not None and name not in self.split.datasets:
            return None
        first = self.store.bags["first_row"].to_numpy()[bag_of_row]
        within = np.concatenate([np.arange(b - a) for a, b in runs(bag_of_row)] or [np.empty(0, int)])
        row = first + within
        held = held_out_rows(int(row.max(initial=-1)) + 1, shard, row_group, self.split)[row]
        result: np.ndarray | None = held if self.held_out else ~held
        return result


def verify_shards(store: Store, bags: pd.DataFrame, mapper: Mapper = loop) -> None:
    """Compare the shards of some bags with their checksums and labels; call it once before training.

    Raises
    ------
    UserError
        If a shard is damaged, or holds other cells than ``bags.parquet`` says.
    """
    _ = store.bags, store.perturbations  # read once, before the store goes to other processes
    mapper(Store.verify, [(store, shard) for shard in np.unique(bags["shard"]).tolist()])


def training_bags(
    store: Store, groups: pd.DataFrame, split: SplitConfig, control_bags: bool = True
) -> pd.DataFrame:
    """Bags that have training cells, one row each; the index is the id of the bag.

    Parameters
    ----------
    groups
        Groups with their part of the split, from :func:`tadvae.data.splits.split_groups`.
    control_bags
        Whether to keep the bags of control cells.
    """
    held = groups[groups["part"].isin([VALIDATION, TEST])][GROUP_KEYS]
    merged = store.bags.reset_index(names="bag").merge(held, on=GROUP_KEYS, how="left", indicator=True)
    bags = store.bags.loc[merged.loc[merged["_merge"] == "left_only", "bag"]]
    if not control_bags:
        bags = bags[bags["perturbation"] != store.control]
    if split.kind == "cells":
        reader = CellReader(store, [], split)
        left = [bag for read in store.row_groups(bags) for bag in reader.bags_with_cells(*read)]
        bags = bags.loc[bags.index.isin(left)]
    return bags


def load_groups(
    reader: CellReader, bags: pd.DataFrame, max_cells: int, mapper: Mapper = loop
) -> dict[Group, Cells]:
    """Cells of every group in some bags, at most ``max_cells`` of each.

    The bags of a store are shuffled, so the first bags of a group are a random sample.
    """
    before = bags.groupby(GROUP_KEYS)["n_cells"].cumsum() - bags["n_cells"]
    chosen = bags[before < max_cells]
    group_of = dict(zip(chosen.index, chosen[GROUP_KEYS].itertuples(index=False, name=None), strict=True))
    found: dict[Group, list[Cells]] = {}
    reads = [(reader, *read) for read in reader.store.row_groups(chosen)]
    for bag_of_row, cells in mapper(CellReader.read, reads):
        for a, b in runs(bag_of_row):
            found.setdefault(group_of[bag_of_row[a]], []).append(cells[a:b])
    return {key: Cells.concat(parts)[:max_cells] for key, parts in sorted(found.items())}


def load_controls(
    reader: CellReader, bags: pd.DataFrame, max_cells: int, mapper: Mapper = loop
) -> dict[tuple[int, int], Cells]:
    """Control cells of every (dataset, context) in some bags, at most ``max_cells`` of each."""
    controls = bags[bags["perturbation"] == reader.store.control]
    found = load_groups(reader, controls, max_cells, mapper)
    return {(dataset, context): cells for (dataset, context, _), cells in found.items()}
