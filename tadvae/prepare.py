"""From a store and a split to what training needs: views, vocabulary, control cells.

The passes over cells are independent calls on parts of the store, run by a ``Mapper``: a plain loop here,
Ray tasks in ``pipelines``. Their results are merged in a fixed order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from tadvae.batch import Cells, runs
from tadvae.errors import UserError
from tadvae.evaluation.splits import TEST, VALIDATION, SplitConfig, held_out_rows
from tadvae.gene_selection import selected_genes
from tadvae.genes import canonical_targets
from tadvae.pathways.membership import MIN_MEASURED, Membership
from tadvae.preprocess import Moments, PreprocessConfig, choose_genes
from tadvae.store.decode import COLUMNS, DatasetView, decode
from tadvae.store.reader import Store
from tadvae.vocabulary import ContextEntry, DatasetEntry, TargetEntry, Vocabulary

Read = tuple[int, int, np.ndarray]
"""(shard, row group, bag ids)"""
Group = tuple[int, int, int]
"""(dataset, context, perturbation), store indices"""
Mapper = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], list[Any]]
"""Calls a function on many argument tuples; results in their order."""


def loop(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The plain :data:`Mapper`."""
    return [function(*each) for each in arguments]


@dataclass(frozen=True)
class CellReader:
    """Reads normalised cells of some bags, of the training or of the held-out side.

    Attributes
    ----------
    store
    views
        By dataset.
    split
        Decides single cells where its kind is ``cells``.
    held_out
        Read the held-out cells instead of the training cells.
    """

    store: Store
    views: list[DatasetView]
    split: SplitConfig
    held_out: bool = False

    def read(self, shard: int, row_group: int, bag_ids: np.ndarray) -> tuple[np.ndarray, Cells]:
        """Bag id of every cell that is left, and the cells."""
        table, bag_of_row = self.store.read_bags(shard, row_group, bag_ids, COLUMNS)
        entry = self.store.manifest.shards[shard]
        try:
            cells = decode(table, self.views[entry.dataset])
        except UserError as error:
            raise UserError(
                f"{self.store.folder}: shard {entry.path}, row group {row_group}: {error}"
            ) from None
        keep = self.kept(shard, row_group, bag_of_row)
        return (bag_of_row, cells) if keep is None else (bag_of_row[keep], cells.take(np.flatnonzero(keep)))

    def bags_with_cells(self, shard: int, row_group: int, bag_ids: np.ndarray) -> list[int]:
        """Which of the bags have any cell on this side of the split; reads nothing."""
        bag_of_row = np.repeat(bag_ids, self.store.bags["n_cells"].to_numpy()[bag_ids])
        keep = self.kept(shard, row_group, bag_of_row)
        result: list[int] = np.unique(bag_of_row if keep is None else bag_of_row[keep]).tolist()
        return result

    def kept(self, shard: int, row_group: int, bag_of_row: np.ndarray) -> np.ndarray | None:
        """Which rows are on this side of the split, bool, shape (n,); None: all."""
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


def training_bags(
    store: Store, groups: pd.DataFrame, split: SplitConfig, control_bags: bool = True
) -> pd.DataFrame:
    """Bags with training cells; the index is the bag's id.

    Parameters
    ----------
    groups
        From :func:`tadvae.evaluation.splits.split_groups`.
    control_bags
        Keep the bags of control cells too.
    """
    keys = ["dataset", "context", "perturbation"]
    held = groups[groups["part"].isin([VALIDATION, TEST])][keys]
    merged = store.bags.reset_index(names="bag").merge(held, on=keys, how="left", indicator=True)
    bags = store.bags.loc[merged.loc[merged["_merge"] == "left_only", "bag"]]
    if not control_bags:
        bags = bags[bags["perturbation"] != store.control]
    if split.kind == "cells":
        reader = CellReader(store, [], split)
        left = [bag for read in store.row_groups(bags) for bag in reader.bags_with_cells(*read)]
        bags = bags.loc[bags.index.isin(left)]
    return bags


def views_of(store: Store, vocabulary: Vocabulary) -> list[DatasetView]:
    """The views that a vocabulary was made with."""
    views = []
    for i, dataset in enumerate(vocabulary.datasets):
        lengths = None
        if dataset.method == "tpm":
            panel = store.panel(i)
            lengths = np.full(store.manifest.n_genes, np.nan)
            lengths[panel["gene_index"]] = panel["length"]
        views.append(DatasetView(dataset.genes, dataset.method, lengths))
    return views


def resolver(store: Store) -> Callable[[list[str]], list[str | None]]:
    """How identifiers of pathway files become gene keys of this store."""
    reference = store.gene_reference
    return lambda names: canonical_targets(names, reference)


def make_views(
    store: Store, bags: pd.DataFrame, split: SplitConfig, config: PreprocessConfig, mapper: Mapper = loop
) -> list[DatasetView]:
    """Choose each dataset's genes on its training cells alone, and say how it is normalised."""
    targets = np.unique(np.concatenate([np.asarray(t) for t in store.perturbations["target_genes"]]))
    panels = [store.panel(i) for i in range(len(store.manifest.datasets))]
    wanted = selected_genes(store, config.genes)
    wanted[targets[targets >= 0].astype(np.int64)] = True
    moments: list[Moments] = []
    if config.n_top_genes != "all":
        moments = _training_moments(store, bags, split, mapper)
    views = []
    for i, (entry, panel) in enumerate(zip(store.manifest.datasets, panels, strict=True)):
        measured = panel["gene_index"].to_numpy(np.int64)
        measured = measured[wanted[measured]]
        if not len(measured):
            raise UserError(
                f"preprocess.genes: dataset '{entry.name}' measures none of them; give a list that fits its "
                "panel."
            )
        lengths = None
        if config.normalize == "tpm" and entry.values == "counts":
            if panel["length"].isna().any():
                raise UserError(
                    f"normalize: tpm needs gene lengths, but dataset '{entry.name}' has none; name their var "
                    "column as 'genes: {length: …}' in the spec and convert again, or use cp10k."
                )
            lengths = np.full(store.manifest.n_genes, np.nan)
            lengths[panel["gene_index"]] = panel["length"].to_numpy()
        genes = choose_genes(moments[i], measured, targets, config) if moments else measured
        method = "none" if entry.values == "log1p" else config.normalize
        views.append(DatasetView(genes.astype(np.int64), method, lengths))
    return views


def _training_moments(store: Store, bags: pd.DataFrame, split: SplitConfig, mapper: Mapper) -> list[Moments]:
    every = DatasetView(np.arange(store.manifest.n_genes), "none")
    reader = CellReader(store, [every] * len(store.manifest.datasets), split)
    parts = mapper(_moments_of, [(reader, *read) for read in store.row_groups(bags)])
    result = []
    for i in range(len(store.manifest.datasets)):
        result.append(Moments.sum([m for d, m in parts if d == i], store.manifest.n_genes))
    return result


def _moments_of(reader: CellReader, shard: int, row_group: int, bag_ids: np.ndarray) -> tuple[int, Moments]:
    store = reader.store
    dataset = store.manifest.shards[shard].dataset
    _, cells = reader.read(shard, row_group, bag_ids)
    values = sparse.csr_matrix(
        (cells.values, cells.gene_ids, cells.offsets), shape=(len(cells), store.manifest.n_genes)
    )
    log1p = store.manifest.datasets[dataset].values == "log1p"
    return dataset, Moments.of(values, cells.total_counts, log1p=log1p)


def load_groups(
    reader: CellReader, bags: pd.DataFrame, max_cells: int, mapper: Mapper = loop
) -> dict[Group, Cells]:
    """Cells of every group among some bags, at most ``max_cells`` of each.

    The bags of a store are shuffled, so the first bags of a group are a random sample.
    """
    keys = ["dataset", "context", "perturbation"]
    before = bags.groupby(keys)["n_cells"].cumsum() - bags["n_cells"]
    chosen = bags[before < max_cells]
    group_of = dict(zip(chosen.index, chosen[keys].itertuples(index=False, name=None), strict=True))
    found: dict[Group, list[Cells]] = {}
    reads = [(reader, *read) for read in reader.store.row_groups(chosen)]
    for bag_of_row, cells in mapper(CellReader.read, reads):
        for a, b in runs(bag_of_row):
            found.setdefault(group_of[bag_of_row[a]], []).append(cells[a:b])
    return {key: Cells.concat(parts)[:max_cells] for key, parts in sorted(found.items())}


def load_controls(
    reader: CellReader, bags: pd.DataFrame, max_cells: int, mapper: Mapper = loop
) -> dict[tuple[int, int], Cells]:
    """Control cells of every (dataset, context) among some bags, at most ``max_cells`` of each."""
    controls = bags[bags["perturbation"] == reader.store.control]
    found = load_groups(reader, controls, max_cells, mapper)
    return {(dataset, context): cells for (dataset, context, _), cells in found.items()}


def build_vocabulary(
    store: Store,
    groups: pd.DataFrame,
    views: list[DatasetView],
    controls: dict[tuple[int, int], Cells],
    membership: Membership,
    min_measured: int = MIN_MEASURED,
) -> Vocabulary:
    """Name every index of the model."""
    perturbations = store.perturbations
    train = set(groups.loc[~groups["part"].isin([VALIDATION, TEST]), "perturbation"])
    gene_of: dict[str, int] = {}
    seen: set[str] = set()
    modalities: dict[str, int] = {}
    for row in perturbations.itertuples():
        for target, gene, modality, sign in zip(
            row.targets, row.target_genes, row.modalities, row.signs, strict=True
        ):
            gene_of[target] = int(gene)
            modalities[modality] = int(sign)
            if row.perturbation_index in train:
                seen.add(target)
    targets = [TargetEntry(name, gene_of[name], name in seen) for name in sorted(gene_of)]
    names = sorted(modalities) or ["unspecified"]
    datasets = []
    for i, (entry, view) in enumerate(zip(store.manifest.datasets, views, strict=True)):
        used = _modalities_of(store, groups, i)
        common = max(sorted(set(used.values())), key=list(used.values()).count) if used else names[0]
        datasets.append(
            DatasetEntry(
                name=entry.name,
                genes=view.genes,
                method=view.method,
                kind=entry.kind,
                modality=names.index(common),
                target_modality={
                    j: names.index(used[t.name]) for j, t in enumerate(targets) if t.name in used
                },
            )
        )
    contexts = [
        ContextEntry(d, store.manifest.contexts[c], mean_profile(cells, views[d].genes), len(cells))
        for (d, c), cells in controls.items()
    ]
    return Vocabulary(
        genes=store.genes[["gene", "ensembl_id", "symbol"]],
        membership=membership,
        min_measured=min_measured,
        datasets=datasets,
        contexts=contexts,
        targets=targets,
        modalities=names,
        signs=[modalities.get(name, 0) for name in names],
        reference=store.reference,
    )


def mean_profile(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Mean log-normalised expression over cells on a sorted gene list, float32, shape (G,)."""
    total = np.bincount(
        np.searchsorted(genes, cells.gene_ids), weights=cells.values.astype(np.float64), minlength=len(genes)
    )
    return (total / max(len(cells), 1)).astype(np.float32)


def interventions(store: Store, vocabulary: Vocabulary) -> list[list[tuple[int, int]]]:
    """(target, modality) model indices of every perturbation of the store."""
    return [
        [
            (vocabulary.target_index[t], vocabulary.modalities.index(m))
            for t, m in zip(row.targets, row.modalities, strict=True)
        ]
        for row in store.perturbations.itertuples()
    ]


def context_rows(store: Store, vocabulary: Vocabulary) -> dict[tuple[int, int], int]:
    """Row of the vocabulary's contexts by the store's (dataset, context)."""
    number = {name: c for c, name in enumerate(store.manifest.contexts)}
    return {(entry.dataset, number[entry.name]): i for i, entry in enumerate(vocabulary.contexts)}


def _modalities_of(store: Store, groups: pd.DataFrame, dataset: int) -> dict[str, str]:
    used = set(groups.loc[groups["dataset"] == dataset, "perturbation"])
    return {
        target: modality
        for row in store.perturbations.itertuples()
        if row.perturbation_index in used
        for target, modality in zip(row.targets, row.modalities, strict=True)
    }
