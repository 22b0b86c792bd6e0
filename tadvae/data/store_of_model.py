"""A store in the terms of a model that knows more than the store: for fine-tuning."""

from collections.abc import Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from tadvae.base.errors import UserError
from tadvae.data.vocabulary import Vocabulary
from tadvae.store.manifest import StoredDataset, vocabulary_hash
from tadvae.store.reader import Store

T = TypeVar("T")
"""What is known of a dataset."""


class StoreOfModel(Store):
    """A store whose genes and datasets have the indices of a model.

    The genes are those of the model and of the store, sorted by key as in every store; the datasets are those
    of the model, which have no cells unless the store has them, and after them the others of the store.
    Contexts and perturbations keep the store's indices; contexts of the model alone come after them.

    Parameters
    ----------
    store
        The store as it lies on the disk.
    vocabulary
        The vocabulary of the model.
    """

    def __init__(self, store: Store, vocabulary: Vocabulary) -> None:
        self._store, self._vocabulary = store, vocabulary
        known = [_stored(vocabulary, i) for i in range(len(vocabulary.datasets))]
        names = [entry.name for entry in known]
        own = {entry.name: entry for entry in store.manifest.datasets}
        datasets = [own.get(entry.name, entry) for entry in known]
        datasets += [entry for name, entry in own.items() if name not in names]
        index = {entry.name: i for i, entry in enumerate(datasets)}
        self._dataset = np.array([index[entry.name] for entry in store.manifest.datasets], np.int64)
        contexts = [*store.manifest.contexts, *(entry.name for entry in vocabulary.contexts)]
        genes = self.genes["gene"]
        self.gene_of_file = places_among(self.genes, store.genes)
        manifest = store.manifest.model_copy(
            update={
                "vocabulary_hash": vocabulary_hash(genes),
                "n_genes": len(genes),
                "contexts": list(dict.fromkeys(contexts)),
                "datasets": datasets,
                "shards": [
                    shard.model_copy(update={"dataset": int(self._dataset[shard.dataset])})
                    for shard in store.manifest.shards
                ],
            }
        )
        super().__init__(store.folder, manifest)

    @cached_property
    def genes(self) -> pd.DataFrame:
        """Genes of the model and of the store, sorted by key."""
        mine = self._vocabulary.genes[["gene", "ensembl_id", "symbol"]]
        theirs = self._store.genes[["gene", "ensembl_id", "symbol"]]
        other = theirs[~theirs["gene"].isin(mine["gene"])]
        both = mine if other.empty else pd.concat([mine, other]).sort_values("gene")
        return both.reset_index(drop=True).assign(gene_index=np.arange(len(both)))

    @cached_property
    def perturbations(self) -> pd.DataFrame:
        """All perturbations of the store, with target genes in the model's indices."""
        table = self._store.perturbations.copy()
        table["target_genes"] = [self._genes_of(np.asarray(each)) for each in table["target_genes"]]
        return table

    @cached_property
    def bags(self) -> pd.DataFrame:
        """All bags of the store, with the model's datasets."""
        bags = self._store.bags.copy()
        bags["dataset"] = self._dataset[bags["dataset"]]
        return bags

    @cached_property
    def labels(self) -> list[dict[str, tuple[str, ...]]]:
        """Targets by label for each dataset; for those of the model alone, its own."""
        former = [
            {
                label: tuple(self._vocabulary.targets[i].name for i in item)
                for label, item in entry.labels.items()
            }
            for entry in self._vocabulary.datasets
        ]
        return self._for_each(former, self._store.labels)

    @cached_property
    def separators(self) -> list[str | None]:
        """For each dataset, the text between the targets of a combination."""
        former = [entry.separator for entry in self._vocabulary.datasets]
        return self._for_each(former, self._store.separators)

    @cached_property
    def library_columns(self) -> list[str | None]:
        """For each dataset, the column of ``obs`` with library sizes; None: the sums of the counts."""
        former = [entry.total_counts for entry in self._vocabulary.datasets]
        return self._for_each(former, self._store.library_columns)

    def _for_each(self, former: list[T], own: Sequence[T]) -> list[T]:
        """What the model knows of its datasets, and the store of those that it holds itself."""
        known = dict(enumerate(former)) | dict(zip(self._dataset.tolist(), own, strict=True))
        return [known[dataset] for dataset in range(len(self.manifest.datasets))]

    def panel(self, dataset: int) -> pd.DataFrame:
        """Measured genes of a dataset; of one that the model alone has, those that the model saw."""
        found = np.flatnonzero(self._dataset == dataset)
        if len(found):
            panel = self._store.panel(int(found[0]))
            return panel.assign(gene_index=self._genes_of(panel["gene_index"].to_numpy()))
        entry = self._vocabulary.datasets[dataset]
        mine = self._vocabulary.genes.iloc[entry.genes]
        names = mine["gene"].tolist() if entry.names is None else entry.names
        place = places_among(self.genes, mine)
        spelt = {"gene_index": place, "source": names, "var_name": names, "gene": mine["gene"].to_numpy()}
        return pd.DataFrame(spelt).assign(length=np.nan)

    def read_bags(
        self, shard: int, row_group: int, bag_ids: np.ndarray, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray]:
        """Read some bags of one row group, with the gene indices of the files."""
        return self._store.read_bags(shard, row_group, bag_ids, columns)

    def _genes_of(self, genes: np.ndarray) -> np.ndarray:
        """The model's indices of the files' genes; -1 stays."""
        assert self.gene_of_file is not None
        genes = genes.astype(np.int64)
        result: np.ndarray = np.where(genes >= 0, self.gene_of_file[genes], -1)
        return result


def places_among(genes: pd.DataFrame, some: pd.DataFrame) -> np.ndarray:
    """Index of each of some genes among all genes, (n,) int64, which grows with both.

    Raises
    ------
    UserError
        If a table is not sorted by key: indices of genes within a cell would not be, either.
    """
    keys, asked = genes["gene"].to_numpy(str), some["gene"].to_numpy(str)
    result: np.ndarray = np.searchsorted(keys, asked).astype(np.int64)
    if (keys[1:] <= keys[:-1]).any() or (asked[1:] <= asked[:-1]).any():
        raise UserError(
            "the genes of the store or of the model are not sorted by key; convert the store again."
        )
    return result


def open_store(place: str, vocabulary: Vocabulary) -> Store:
    """Open the store of a model: in the model's terms where the model was fine-tuned.

    Raises
    ------
    UserError
        If a fine-tuned model does not know a dataset of the store; see also :meth:`Store.open`.
    """
    store = Store.open(place)
    if vocabulary.origin is None:
        return store
    known = {entry.name for entry in vocabulary.datasets}
    unknown = [entry.name for entry in store.manifest.datasets if entry.name not in known]
    if unknown:
        raise UserError(
            f"{store.folder}: dataset '{unknown[0]}' was not in training (known: "
            f"{', '.join(sorted(known))}); give the store of the run."
        )
    return StoreOfModel(store, vocabulary)


def _stored(vocabulary: Vocabulary, dataset: int) -> StoredDataset:
    """How a manifest would describe a dataset of the model, without its cells."""
    entry = vocabulary.datasets[dataset]
    values = "effects" if entry.has_effects else "log1p" if entry.method == "none" else "counts"
    return StoredDataset(
        name=entry.name,
        kind=entry.kind,
        values=values,
        n_cells=0,
        n_genes=len(entry.genes),
        n_unknown_genes=0,
        contexts=[each.name for each in vocabulary.contexts if each.dataset == dataset],
        n_perturbations=0,
        has_total_counts=False,
        source="",
    )
