"""Mean profiles of all groups of cells, in one pass over the store."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.cells.ragged import runs
from tadvae.data.reader import CellReader, Group, Mapper, loop
from tadvae.store.manifest import GROUP_KEYS


@dataclass(frozen=True)
class GroupMeans:
    """Mean log-normalised expression of groups.

    Attributes
    ----------
    mean
        Mean of each group on the genes of its dataset, float64, shape (G,).
    n_cells
        Number of cells of each group.
    """

    mean: dict[Group, np.ndarray]
    n_cells: dict[Group, int]


def group_means(reader: CellReader, bags: pd.DataFrame, mapper: Mapper = loop) -> GroupMeans:
    """Average the cells of each group in some bags."""
    keys = bags[GROUP_KEYS]
    parts = mapper(_sums, [(reader, keys, *read) for read in reader.store.row_groups(bags)])
    total: dict[Group, np.ndarray] = {}
    count: dict[Group, int] = {}
    for sums in parts:
        for key, (n, values) in sums.items():
            total[key] = total.get(key, 0.0) + values
            count[key] = count.get(key, 0) + n
    return GroupMeans({key: total[key] / count[key] for key in sorted(total)}, count)


def _sums(
    reader: CellReader, keys: pd.DataFrame, shard: int, row_group: int, bag_ids: np.ndarray
) -> dict[Group, tuple[int, np.ndarray]]:
    bag_of_row, cells = reader.read(shard, row_group, bag_ids)
    genes = reader.views[reader.store.manifest.shards[shard].dataset].genes
    result: dict[Group, tuple[int, np.ndarray]] = {}
    for a, b in runs(bag_of_row):
        part = cells[a:b]
        values = np.bincount(
            np.searchsorted(genes, part.gene_ids),
            weights=part.values.astype(np.float64),
            minlength=len(genes),
        )
        dataset, context, perturbation = (int(i) for i in keys.loc[bag_of_row[a]])
        n, total = result.get((dataset, context, perturbation), (0, np.zeros(len(genes))))
        result[dataset, context, perturbation] = (n + len(part), total + values)
    return result
