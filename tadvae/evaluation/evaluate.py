"""The honest table: a model beside arithmetic, on groups that training has not seen.

Every method predicts the mean profile of a held-out group from training data alone. Cells are compared by
MMD where there are cells: arithmetic predicts control cells plus its predicted change.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.baselines import Profiles, fit_all
from tadvae.batch import Cells
from tadvae.errors import UserError
from tadvae.evaluation.bootstrap import bootstrap_mean
from tadvae.evaluation.metrics import (
    centroid_accuracy,
    median_bandwidths,
    mmd_unbiased,
    rank_score,
    score_profiles,
)
from tadvae.evaluation.profiles import GroupMeans, group_means
from tadvae.evaluation.splits import TRAIN, VALIDATION
from tadvae.model import TADVAE
from tadvae.prepare import (
    CellReader,
    Group,
    Mapper,
    context_rows,
    interventions,
    load_controls,
    load_groups,
    loop,
    training_bags,
    views_of,
)
from tadvae.store.reader import Store

METHOD = "tadvae"
CELLS = 256
"""Most cells of a group that predictions start from and that the MMD compares."""


@dataclass(frozen=True)
class Scores:
    """Result of :func:`evaluate`.

    Attributes
    ----------
    table
        One row a (group, method, metric): dataset, context, perturbation, category, method, metric, value.
    abstained
        Held-out groups for which the model has no answer of its own, with the reason. It is scored there
        as if the unknown targets did nothing.
    """

    table: pd.DataFrame
    abstained: dict[str, str]

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean over groups and its bootstrap interval, by category (``all`` too), method and metric."""
        both = pd.concat([self.table.assign(category="all"), self.table])
        rows = []
        for (category, method, metric), part in both.groupby(["category", "method", "metric"], sort=False):
            interval = bootstrap_mean(part["value"], seed=seed)
            rows.append((category, method, metric, len(part), *interval))
        columns = ["category", "method", "metric", "n", "mean", "low", "high"]
        return pd.DataFrame(rows, columns=columns).drop_duplicates()


@dataclass(frozen=True)
class _Evidence:
    """All that scoring looks at."""

    train: GroupMeans
    """Training groups, and the controls of every tested context."""
    test: GroupMeans
    controls: dict[tuple[int, int], Cells]
    cells: dict[Group, Cells]
    """Held-out cells."""


def evaluate(
    store: Store, groups: pd.DataFrame, model: TADVAE, *, category: str | None = None, mapper: Mapper = loop
) -> Scores:
    """Score the model and every baseline on the held-out groups of its run.

    Parameters
    ----------
    groups
        The run's split, from :func:`tadvae.evaluation.splits.split_groups`.
    category
        Only groups of this category (``combo_seen2``, ``unseen_single``, …); None: all.

    Raises
    ------
    UserError
        Where nothing is held out, no group is of the category, or a context has no control cells.
    """
    tested = _tested(groups, store.control, category)
    evidence = _gather(store, groups, tested, model, mapper)
    rows: list[dict] = []
    abstained: dict[str, str] = {}
    for (dataset, context), part in tested.groupby(["dataset", "context"]):
        place = (int(dataset), int(context))
        if place not in evidence.controls:
            names = f"dataset '{part['dataset_name'].iloc[0]}', context '{part['context_name'].iloc[0]}'"
            raise UserError(
                f"{names}: no control cells to predict from; hold out another context or dataset."
            )
        part = part[[(*place, int(p)) in evidence.test.mean for p in part["perturbation"]]]
        if len(part):
            rows += _score(store, model, place, part, evidence, abstained)
    return Scores(pd.DataFrame(rows), abstained)


def _tested(groups: pd.DataFrame, control: int, category: str | None) -> pd.DataFrame:
    held = groups[~groups["part"].isin([TRAIN, VALIDATION]) & (groups["perturbation"] != control)]
    if held.empty:
        raise UserError(
            "nothing was held out in this run, so there is nothing to evaluate; train with another split, "
            "for example --set split.kind=single."
        )
    chosen = held if category is None else held[held["category"] == category]
    if chosen.empty:
        found = ", ".join(sorted(set(held["category"])))
        raise UserError(f"--split {category}: this run held out no such groups; it held out {found}.")
    return chosen


def _gather(
    store: Store, groups: pd.DataFrame, tested: pd.DataFrame, model: TADVAE, mapper: Mapper
) -> _Evidence:
    split, views = model.config.split, views_of(store, model.vocabulary)
    train = CellReader(store, views, split)
    test = CellReader(store, views, split, held_out=True)
    keys = ["dataset", "context", "perturbation"]
    bags = store.bags.reset_index(names="bag")
    test_bags = store.bags.loc[bags.merge(tested[keys], on=keys)["bag"].sort_values()]
    places = tested[keys[:2]].drop_duplicates()
    controls = bags[bags["perturbation"] == store.control].merge(places, on=keys[:2])["bag"]
    control_bags = store.bags.loc[controls.sort_values()]
    train_bags = training_bags(store, groups, split)
    known = store.bags.loc[train_bags.index.union(control_bags.index)]
    return _Evidence(
        train=group_means(train, known, mapper),
        test=group_means(test, test_bags, mapper),
        controls=load_controls(train, control_bags, CELLS, mapper),
        cells=load_groups(test, test_bags, CELLS, mapper),
    )


def _score(
    store: Store,
    model: TADVAE,
    place: tuple[int, int],
    part: pd.DataFrame,
    evidence: _Evidence,
    abstained: dict[str, str],
) -> list[dict]:
    """Scores of all methods on the tested groups of one (dataset, context)."""
    dataset, _ = place
    perturbations = [int(p) for p in part["perturbation"]]
    observed = np.stack([evidence.test.mean[(*place, p)] for p in perturbations])  # (M, G)
    profiles = training_profiles(store, place, evidence.train, model)
    control, cells = profiles.control, evidence.controls[place]
    genes = model.vocabulary.datasets[dataset].genes
    dense = cells.dense(genes)  # (n, G)

    targets = {row.perturbation_index: tuple(row.targets) for row in store.perturbations.itertuples()}
    predicted = {
        name: baseline.predict([targets[p] for p in perturbations])
        for name, baseline in fit_all(profiles).items()
    }
    pairs = interventions(store, model.vocabulary)
    for p in perturbations:
        reasons = {store_target: model.unknown(store_target) for store_target, _ in pairs[p]}
        for t, reason in reasons.items():
            if reason is not None:
                label = f"{part['dataset_name'].iloc[0]}: {'+'.join(targets[p])}"
                abstained[label] = f"{model.vocabulary.targets[t].name}: {reason}"
    asked = [pairs[p] for p in perturbations]
    row = context_rows(store, model.vocabulary).get(place, -1)
    own = model.counterfactual(cells, genes, control.astype(np.float32), dataset, asked, row)  # (M, n, G)
    # the control cells are a sample; the change they undergo is added to the mean of all of them
    predicted[METHOD] = control + own.mean(axis=1, dtype=np.float64) - dense.mean(axis=0, dtype=np.float64)

    scores: dict[tuple[str, str], np.ndarray] = {}
    for name, mean in predicted.items():
        for metric, values in score_profiles(mean, observed, control).items():
            scores[name, metric] = values
        if len(perturbations) > 1:
            scores[name, "rank_cosine"] = rank_score(mean, observed, control)
            scores[name, "centroid_accuracy"] = centroid_accuracy(mean, observed)
    if len(cells) > 1 and model.vocabulary.datasets[dataset].kind == "cells":
        for name, values in _mmd(
            place, perturbations, predicted, own, dense, control, evidence, genes
        ).items():
            scores[name, "mmd"] = values
    fields = part[["dataset_name", "context_name", "perturbation_name", "category"]].itertuples(index=False)
    rows = []
    for i, (dataset_name, context_name, perturbation, category) in enumerate(fields):
        for (method, metric), values in scores.items():
            rows.append(
                {
                    "dataset": dataset_name,
                    "context": context_name,
                    "perturbation": perturbation,
                    "category": category,
                    "method": method,
                    "metric": metric,
                    "value": float(values[i]),
                }
            )
    return rows


def training_profiles(store: Store, place: tuple[int, int], train: GroupMeans, model: TADVAE) -> Profiles:
    """What arithmetic may know of a (dataset, context).

    In a context without any perturbation in training, the changes seen in the dataset's other contexts
    stand in: the mean change of each perturbation over them, added to this context's control.
    """
    dataset, context = place
    control = train.mean[dataset, context, store.control]
    names = {row.perturbation_index: tuple(row.targets) for row in store.perturbations.itertuples()}
    here = {p: mean for (d, c, p), mean in train.mean.items() if (d, c) == place and p != store.control}
    if not here:
        changes: dict[int, list[np.ndarray]] = {}
        for (d, c, p), mean in train.mean.items():
            if d == dataset and c != context and p != store.control:
                changes.setdefault(p, []).append(mean - train.mean[d, c, store.control])
        here = {p: control + np.mean(found, axis=0) for p, found in changes.items()}
    keys = model.vocabulary.genes["gene"].to_numpy()
    return Profiles(
        control=control,
        targets=[names[p] for p in here],
        means=np.stack(list(here.values())) if here else np.empty((0, len(control))),
        genes=keys[model.vocabulary.datasets[dataset].genes].tolist(),
        target_gene={t.name: keys[t.gene] if t.gene >= 0 else None for t in model.vocabulary.targets},
    )


def _mmd(
    place: tuple[int, int],
    perturbations: list[int],
    predicted: dict[str, np.ndarray],
    own: np.ndarray,
    dense: np.ndarray,
    control: np.ndarray,
    evidence: _Evidence,
    genes: np.ndarray,
) -> dict[str, np.ndarray]:
    """Unbiased MMD between predicted and observed cells, by method; NaN for a group of one cell."""
    result = {name: np.full(len(perturbations), np.nan) for name in predicted}
    for i, p in enumerate(perturbations):
        observed = evidence.cells[(*place, p)].dense(genes)  # (m, G)
        if len(observed) < 2:
            continue
        bandwidths = median_bandwidths(observed)  # one ladder for every method
        for name, means in predicted.items():
            cells = own[i] if name == METHOD else dense + (means[i] - control).astype(np.float32)
            result[name][i] = mmd_unbiased(cells, observed, bandwidths)
    return result
