"""Build the vocabulary of a model from a store and its split."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells
from tadvae.data.amounts import Pair, SeenAmounts
from tadvae.data.decode import DatasetView
from tadvae.data.entries import ContextEntry, DatasetEntry, TargetEntry
from tadvae.data.origin import Origin
from tadvae.data.splits import TEST, VALIDATION
from tadvae.data.vocabulary import Vocabulary
from tadvae.pathways.membership import MIN_MEASURED, Membership
from tadvae.store.covariates import AMOUNTS
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
                total_counts=store.library_columns[i],
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
        amounts=_seen_amounts(store, groups, index, len(datasets), known),
    )


def _seen_amounts(
    store: Store, groups: pd.DataFrame, index: dict[str, int], n_datasets: int, known: Vocabulary | None
) -> SeenAmounts | None:
    """Doses and times of the training perturbations, after those that a fine-tuned model has seen."""
    former = known.amounts if known is not None else None
    if not store.has_amounts and former is None:
        return None
    train = groups[~groups["part"].isin([VALIDATION, TEST])]
    seen: list[dict[int, list[list[float | None]]]] = [{} for _ in range(n_datasets)]
    for d, each in enumerate(former.seen if former is not None else ()):
        seen[d] = {target: list(found) for target, found in each.items()}
    logs = store.log_amounts
    for d, p in sorted(set(zip(train["dataset"], train["perturbation"], strict=True))):
        amounts = [None if np.isnan(each) else each for each in logs[p].tolist()]
        if any(each is not None for each in amounts):
            for target in store.perturbations["targets"].iloc[p]:
                seen[d].setdefault(index[target], []).append(amounts)
    of_training = logs[np.unique(train["perturbation"])]
    centre, scale = [0.0] * len(AMOUNTS), [1.0] * len(AMOUNTS)
    for i, column in enumerate(of_training.T):
        column = column[np.isfinite(column)]
        if former is not None and AMOUNTS[i] in former.units:  # what its weights mean stays
            centre[i], scale[i] = former.centre[i], former.scale[i]
        elif len(column):
            centre[i], scale[i] = float(column.mean()), float(column.std()) or 1.0
    units = (former.units if former is not None else {}) | (store.spec.units if store.has_amounts else {})
    return SeenAmounts(units, centre, scale, seen)


def mean_profile(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Mean log-normalised expression over cells on a sorted gene list, float32, shape (G,)."""
    total = np.bincount(
        np.searchsorted(genes, cells.gene_ids), weights=cells.values.astype(np.float64), minlength=len(genes)
    )
    return (total / max(len(cells), 1)).astype(np.float32)


def interventions(store: Store, vocabulary: Vocabulary) -> list[list[Pair]]:
    """For every perturbation of the store, its pairs as model indices, with amounts if it reads them."""
    logs = store.log_amounts if vocabulary.amounts is not None else None
    return [
        [
            (
                vocabulary.target_index[t],
                vocabulary.modalities.index(m),
                *(() if logs is None else logs[row.perturbation_index].tolist()),
            )
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
