"""Calibration of intervals: which training perturbations are predicted out of fold, and their errors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.data.reader import Mapper, loop
from tadvae.data.splits import TEST, TRAIN, SplitConfig
from tadvae.data.vocabulary import Vocabulary
from tadvae.evaluation.answers import answer
from tadvae.evaluation.questions import ask
from tadvae.model.conformal import LEVEL, Calibration, Errors
from tadvae.model.ensemble import Ensemble
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store
from tadvae.training.fit import fit

LEAST_COMBINATIONS = 9
"""With fewer, intervals are calibrated on single targets."""


@dataclass(frozen=True)
class CalibrationPlan:
    """Folds of the training perturbations, and the split that trains without each.

    Attributes
    ----------
    kind
        ``combo`` or ``single``: what the perturbations are.
    names
        Perturbations of each fold.
    splits
        Hold out a fold, besides all that the run itself holds out.
    """

    kind: str
    names: list[list[str]]
    splits: list[SplitConfig]


def plan_calibration(store: Store, groups: pd.DataFrame, split: SplitConfig, folds: int) -> CalibrationPlan:
    """Deal the training perturbations into folds, of the kind that the run is asked about.

    Combinations, where training has :data:`LEAST_COMBINATIONS` of them and the run does not hold out single
    targets; else single targets, each with all combinations that contain it.

    Raises
    ------
    UserError
        Where the split holds out single cells, or there are too few perturbations.
    """
    if split.kind == "cells":
        raise UserError(
            "split.kind=cells: every perturbation is seen in training, so there is nothing to calibrate "
            "intervals on; use another split, or --calibration-folds 0."
        )
    train = groups[(groups["part"] == TRAIN) & (groups["perturbation"] != store.control)]
    if split.datasets is not None:
        train = train[train["dataset_name"].isin(split.datasets)]
    targets = {row.perturbation_index: tuple(row.targets) for row in store.perturbations.itertuples()}
    names = dict(zip(train["perturbation"], train["perturbation_name"], strict=True))
    combos = sorted({name for p, name in names.items() if len(targets[p]) > 1})
    kind = "combo" if len(combos) >= LEAST_COMBINATIONS and split.kind != "single" else "single"
    units = combos if kind == "combo" else sorted({t for p in names for t in targets[p]})
    if len(units) < folds:
        raise UserError(
            f"--calibration-folds {folds}: training has only {len(units)} perturbations; lower it."
        )
    order = np.random.default_rng([split.seed, len(units), 3]).permutation(len(units))
    dealt = [{units[i] for i in order[fold::folds]} for fold in range(folds)]
    if kind == "combo":
        members = [sorted(fold) for fold in dealt]
    else:
        members = [sorted(n for p, n in names.items() if fold & set(targets[p])) for fold in dealt]
    held = groups[groups["part"] == TEST]
    column = {"context": "context_name", "dataset": "dataset_name"}.get(split.kind, "perturbation_name")
    before = set(held[column])
    if split.kind == "explicit":
        before = set(split.test)
    splits = [
        SplitConfig(kind="explicit", test=sorted(before | set(fold)), datasets=split.datasets)
        for fold in members
    ]
    return CalibrationPlan(kind, members, splits)


def calibrate(
    store: Store,
    groups: pd.DataFrame,
    vocabulary: Vocabulary,
    plan: CalibrationPlan,
    models: Sequence[Sequence[tuple[TADVAE, pd.DataFrame]]],
    level: float = LEVEL,
    mapper: Mapper = loop,
) -> Calibration:
    """Calibrate intervals on the perturbations that each fold's models have not seen.

    Parameters
    ----------
    groups
        The split of the ensemble itself: its held-out groups are not looked at.
    vocabulary
        The ensemble's own; a fold may have chosen other variable genes.
    models
        For every fold, models of different seeds with their splits.
    """
    train = groups[(groups["part"] == TRAIN) & (groups["perturbation"] != store.control)]
    keys = set(train[GROUP_KEYS].itertuples(index=False, name=None))
    singles = {row.name for row in store.perturbations.itertuples(index=False) if len(row.targets) == 1}
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for names, fold in zip(plan.names, models, strict=True):
        ensemble, split_groups = Ensemble([model for model, _ in fold]), fold[0][1]
        wanted = [n for n in names if (n in singles) == (plan.kind == "single")]
        held = split_groups[(split_groups["part"] == TEST) & split_groups["perturbation_name"].isin(wanted)]
        tested = held[[key in keys for key in held[GROUP_KEYS].itertuples(index=False, name=None)]]
        if tested.empty:
            continue
        for question in ask(store, split_groups, tested, ensemble.vocabulary, ensemble.config.split, mapper):
            given = answer(store, ensemble, question)
            name = question.groups["dataset_name"].iloc[0]
            genes = vocabulary.datasets[question.place[0]].genes
            error = _on_genes(question.observed - given.mean, question.genes, genes, np.nan)
            found.setdefault(name, []).append((error, _on_genes(given.spread, question.genes, genes, 0.0)))
    errors = {
        name: Errors(np.concatenate([e for e, _ in parts]), np.concatenate([s for _, s in parts]))
        for name, parts in found.items()
    }
    return Calibration.fit(errors, plan.kind, level)


def _on_genes(values: np.ndarray, own: np.ndarray, wanted: np.ndarray, missing: float) -> np.ndarray:
    """Columns of sorted genes ``own`` as columns of sorted genes ``wanted``."""
    result = np.full((len(values), len(wanted)), missing)
    _, at_own, at_wanted = np.intersect1d(own, wanted, assume_unique=True, return_indices=True)
    result[:, at_wanted] = values[:, at_own]
    return result


def fold_configs(
    config: ExperimentConfig, plan: CalibrationPlan, seeds: Sequence[int]
) -> list[list[ExperimentConfig]]:
    """Configs of the models that calibrate, by fold and seed."""
    return [
        [config.model_copy(update={"split": split, "seed": seed}) for seed in seeds] for split in plan.splits
    ]


def fit_ensemble(
    store: Store, config: ExperimentConfig, seeds: Sequence[int], folds: int = 0, seeds_per_fold: int = 2
) -> tuple[Ensemble, pd.DataFrame]:
    """Train an ensemble in this process, one model after the other; see ``pipelines.train.ensemble`` for Ray.

    Parameters
    ----------
    seeds
        One member each.
    folds
        Calibrate intervals on the training perturbations in so many folds; 0: no intervals.
    seeds_per_fold
        Models of each fold: the first of ``seeds``.
    """
    members, groups = [], None
    for seed in seeds:
        model, groups = fit(store, config.model_copy(update={"seed": seed}))
        members.append(model)
    if groups is None:
        raise ValueError("seeds: an ensemble needs at least one.")
    if not folds:
        return Ensemble(members), groups
    plan = plan_calibration(store, groups, config.split, folds)
    models = [
        [fit(store, each) for each in fold] for fold in fold_configs(config, plan, seeds[:seeds_per_fold])
    ]
    return Ensemble(members, calibrate(store, groups, members[0].vocabulary, plan, models)), groups
