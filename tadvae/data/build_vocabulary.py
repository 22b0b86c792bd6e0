"""Build the vocabulary of a model from a store and its split."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells
from tadvae.data.decode import DatasetView
from tadvae.data.origin import Origin
from tadvae.data.splits import TEST, VALIDATION
from tadvae.data.vocabulary import ContextEntry, DatasetEntry, TargetEntry, Vocabulary
from tadvae.pathways.membership import MIN_MEASURED, Membership
from tadvae.store.reader import Store


def build_vocabulary(
    store: Store,
    groups: pd.DataFrame,
    views: list[DatasetView],
    controls: dict[tuple[int, int], Cells],
    membership: Membership,
    min_measured: int = MIN_MEASURED,
    known: Vocabulary | None = None,
    origin: Origin | None = None,
) -> Vocabulary:
    """Build the vocabulary: the meaning of every index of the model.

    Parameters
    ----------
    known, origin
        Vocabulary of the model that is fine-tuned, on the genes of the store, and what is recorded of it. Its
        datasets, contexts, targets and modalities come first, in their order.
    """
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
    targets = [replace(t, seen=t.seen or t.name in seen) for t in known.targets] if known else []
    former = {target.name for target in targets}
    targets += [TargetEntry(name, gene_of[name], name in seen) for name in sorted(gene_of.keys() - former)]
    names = list(known.modalities) if known else []
    signs = list(known.signs) if known else []
    names += sorted(modalities.keys() - set(names))
    names = names or ["unspecified"]
    index = {target.name: i for i, target in enumerate(targets)}
    datasets = list(known.datasets) if known else []
    for i, (entry, view) in enumerate(zip(store.manifest.datasets, views, strict=True)):
        if known and i < len(known.datasets):
            continue
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
                names=store.panel(i).set_index("gene_index")["var_name"].loc[view.genes].tolist(),
                separator=store.separators[i],
                labels={
                    label: tuple(index[target] for target in item)
                    for label, item in store.labels[i].items()
                    if all(target in index for target in item)
                },
            )
        )
    contexts = list(known.contexts) if known else []
    contexts += [
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
        signs=signs + [modalities.get(name, 0) for name in names[len(signs) :]],
        reference=store.reference,
        origin=origin,
    )


def mean_profile(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Mean log-normalised expression over cells on a sorted gene list, float32, shape (G,)."""
    total = np.bincount(
        np.searchsorted(genes, cells.gene_ids), weights=cells.values.astype(np.float64), minlength=len(genes)
    )
    return (total / max(len(cells), 1)).astype(np.float32)


def interventions(store: Store, vocabulary: Vocabulary) -> list[list[tuple[int, int]]]:
    """For every perturbation of the store, its (target, modality) pairs as model indices."""
    return [
        [
            (vocabulary.target_index[t], vocabulary.modalities.index(m))
            for t, m in zip(row.targets, row.modalities, strict=True)
        ]
        for row in store.perturbations.itertuples()
    ]


def context_rows(store: Store, vocabulary: Vocabulary) -> dict[tuple[int, int], int]:
    """Index of each (dataset, context) of the store among the contexts of the vocabulary."""
    number = {name: c for c, name in enumerate(store.manifest.contexts)}
    return {(entry.dataset, number[entry.name]): i for i, entry in enumerate(vocabulary.contexts)}


def resolver(store: Store) -> Callable[[list[str]], list[str | None]]:
    """A function that maps identifiers of pathway files to gene keys of this store."""
    return store.gene_names.keys


def _modalities_of(store: Store, groups: pd.DataFrame, dataset: int) -> dict[str, str]:
    used = set(groups.loc[groups["dataset"] == dataset, "perturbation"])
    return {
        target: modality
        for row in store.perturbations.itertuples()
        if row.perturbation_index in used
        for target, modality in zip(row.targets, row.modalities, strict=True)
    }
