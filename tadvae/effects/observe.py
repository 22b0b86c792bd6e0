"""Compute mean effects from the training cells of a store, and fit the regression to them."""

import logging
from collections.abc import Mapping

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells
from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.data.group_means import group_means
from tadvae.data.reader import CellReader, Mapper, loop
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.conditions import Conditions
from tadvae.effects.known_targets import target_similarity
from tadvae.effects.memory import require_memory
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.effects.stage import Observed
from tadvae.store.manifest import GROUP_KEYS

log = logging.getLogger("tadvae")

OTHER_UNIT = 3.0
"""Ratio of the sizes of effects of two datasets above which they are taken to have other units."""


def fit_effects(
    reader: CellReader,
    bags: pd.DataFrame,
    vocabulary: Vocabulary,
    controls: Mapping[int, Cells],
    config: EffectsConfig,
    mapper: Mapper = loop,
    former: Observed | None = None,
) -> EffectModel:
    """Fit the regression of mean effects to the training cells of a store.

    Parameters
    ----------
    reader
        Reader of the training cells.
    bags
        Training bags, including those of control cells.
    controls
        Control cells by index of the context in the vocabulary; they give the variance of genes.
    former
        Observed effects of the model that is fine-tuned, whose datasets, contexts and targets come first in
        the vocabulary; the regression learns from them too.
    """
    store, rows = reader.store, context_rows(reader.store, vocabulary)
    pairs = interventions(store, vocabulary)
    sizes = np.array([len({pair[0] for pair in item}) for item in pairs])
    asked = sizes[bags[GROUP_KEYS].drop_duplicates()["perturbation"]]
    before = np.zeros(0, np.int64) if former is None else former.conditions.size
    require_memory(int((asked == 1).sum() + (before == 1).sum()), int((asked > 1).sum() + (before > 1).sum()))
    means = group_means(reader, bags, mapper)
    known = {
        row: (means.mean[d, c, store.control], means.n_cells[d, c, store.control])
        for (d, c), row in rows.items()
        if (d, c, store.control) in means.mean
    }
    # conditions without targets, or in contexts without controls, have no effect to learn
    keys = [
        key for key in means.mean if key[2] != store.control and pairs[key[2]] and rows.get(key[:2]) in known
    ]
    n_controls = {row: count for row, (_, count) in known.items()}
    conditions = Conditions.of(
        [(d, rows[d, c]) for d, c, _ in keys],
        [pairs[p] for *_, p in keys],
        len(vocabulary.targets),
        vocabulary.signs,
        n_controls,
    )
    observed = Observed(
        conditions,
        [means.mean[key] - known[rows[key[:2]]][0] for key in keys],
        np.array([means.n_cells[key] for key in keys]),
        {i: dataset.genes for i, dataset in enumerate(vocabulary.datasets)},
        {i: _variance(i, vocabulary, controls) for i in range(len(vocabulary.datasets))},
        {row: mean for row, (mean, _) in known.items()},
    )
    if former is not None:
        observed = former.followed_by(observed)
        n_former = dict(
            zip(former.conditions.context.tolist(), former.conditions.n_controls.tolist(), strict=True)
        )
        n_controls = {**n_former, **n_controls}
    _say_units(observed, vocabulary)
    similar = target_similarity(vocabulary.membership, [target.gene for target in vocabulary.targets])
    return EffectModel.fit(observed, vocabulary.signs, n_controls, config, similar)


def _say_units(observed: Observed, vocabulary: Vocabulary) -> None:
    """Warn where effects of signatures are much larger or smaller than those of another dataset.

    A target's effects in several datasets are expected to be of one size, so other units make predictions
    worse: docs/experiments.md, section 5.
    """
    squares: dict[int, list[float]] = {}
    for dataset, effect in zip(observed.conditions.dataset.tolist(), observed.effects, strict=True):
        squares.setdefault(dataset, []).append(float(np.mean(effect**2)))
    sizes = {dataset: float(np.sqrt(np.mean(each))) for dataset, each in squares.items() if any(each)}
    entries = vocabulary.datasets
    if not any(entries[dataset].has_effects for dataset in sizes):
        return
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[most] > OTHER_UNIT * sizes[least]:
        log.warning(
            "the effects of dataset '%s' are %.1f times as large as those of dataset '%s' (root mean squares "
            "%.2g and %.2g): where they share targets, bring signatures to the unit of the others (natural "
            "logarithm of fold changes for screens), or train them apart.",
            entries[most].name,
            sizes[most] / sizes[least],
            entries[least].name,
            sizes[most],
            sizes[least],
        )


def _variance(dataset: int, vocabulary: Vocabulary, controls: Mapping[int, Cells]) -> np.ndarray | None:
    """Variance of each gene over control cells within contexts, (G,); None if it cannot be computed."""
    entry = vocabulary.datasets[dataset]
    if entry.kind != "cells":
        return None
    G, freedom = len(entry.genes), 0
    squares = np.zeros(G)
    for row, cells in controls.items():
        if vocabulary.contexts[row].dataset != dataset or len(cells) < 2:
            continue
        at, x = np.searchsorted(entry.genes, cells.gene_ids), cells.values.astype(np.float64)
        total = np.bincount(at, weights=x, minlength=G)
        squares += np.bincount(at, weights=x**2, minlength=G) - total**2 / len(cells)
        freedom += len(cells) - 1
    return np.maximum(squares / freedom, 0.0) if freedom else None
