"""Which genes of each dataset a model sees, and how they are normalised."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.cells.moments import Moments
from tadvae.cells.normalize import PreprocessConfig
from tadvae.cells.variable_genes import choose_genes
from tadvae.data.decode import DatasetView
from tadvae.data.gene_selection import selected_genes
from tadvae.data.reader import CellReader, Mapper, loop
from tadvae.data.splits import SplitConfig
from tadvae.data.vocabulary import Vocabulary
from tadvae.store.reader import Store


def views_of(store: Store, vocabulary: Vocabulary) -> list[DatasetView]:
    """The views that a vocabulary was built with."""
    views = []
    for i, dataset in enumerate(vocabulary.datasets):
        lengths = None
        if dataset.method == "tpm":
            panel = store.panel(i)
            lengths = np.full(store.manifest.n_genes, np.nan)
            lengths[panel["gene_index"]] = panel["length"]
        views.append(DatasetView(dataset.genes, dataset.method, lengths))
    return views


def make_views(
    store: Store,
    bags: pd.DataFrame,
    split: SplitConfig,
    config: PreprocessConfig,
    mapper: Mapper = loop,
    known: Sequence[DatasetView] = (),
) -> list[DatasetView]:
    """Choose the genes of each dataset on its training cells only, and its normalisation.

    The first datasets are ``known``: their views are those of the model that is fine-tuned.
    """
    targets = np.unique(np.concatenate([np.asarray(t) for t in store.perturbations["target_genes"]]))
    panels = [store.panel(i) for i in range(len(store.manifest.datasets))]
    wanted = selected_genes(store, config.genes)
    wanted[targets[targets >= 0].astype(np.int64)] = True
    moments: list[Moments] = []
    if config.n_top_genes != "all":
        moments = _training_moments(store, bags, split, mapper)
    views = list(known)
    for i, (entry, panel) in enumerate(zip(store.manifest.datasets, panels, strict=True)):
        if i < len(known):
            continue
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
        genes = measured
        if moments:
            effects = entry.values == "effects"
            genes = choose_genes(moments[i], measured, targets, config, effects)
        method = config.normalize if entry.values == "counts" else "none"
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
    return dataset, Moments.of(values, cells.total_counts, store.manifest.datasets[dataset].values)
