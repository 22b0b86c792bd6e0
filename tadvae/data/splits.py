"""Splits: which groups of cells a model may learn from.

A split is made once, before training, saved with the run and read by every later step. Except for
``cells`` it holds out whole groups (dataset, context, perturbation), never single cells of a perturbation
that the model saw.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.store.reader import Store

TRAIN, VALIDATION, TEST = "train", "validation", "test"


class SplitConfig(Config):
    """How to hold out a part of a store."""

    kind: Literal["combo", "single", "context", "dataset", "cells", "explicit", "none"] = "combo"
    """``combo``: combinations; ``single``: targets, with all that contains them; ``context``, ``dataset``:
    whole ones; ``cells``: a share of the cells of every group; ``explicit``: the perturbations in
    ``test``; ``none``: learn from everything."""
    folds: int = Field(5, ge=2)
    """One part in ``folds`` is held out."""
    fold: int = Field(0, ge=0)
    """Which."""
    seed: int = 0
    datasets: list[str] | None = None
    """Hold out in these datasets only; None: in all."""
    test: list[str] = []
    """``explicit`` only: perturbations (``A+B``), contexts and datasets by name."""

    @model_validator(mode="after")
    def _consistent(self) -> "SplitConfig":
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not below folds {self.folds}")
        if (self.kind == "explicit") != bool(self.test):
            raise ValueError("'test' belongs to kind 'explicit', which needs it")
        return self


class ValidationConfig(Config):
    """Perturbations held out of training to choose settings by; never any of the test's."""

    every: int | None = Field(None, ge=1)
    """Epochs between validations (the last epoch always has one); None: nothing is held out for it."""
    kind: Literal["combo", "single"] = "combo"
    """``combo``: combinations; ``single``: targets, with all that contains them."""
    folds: int = Field(5, ge=2)
    """One part in ``folds`` of what the test leaves is held out."""
    fold: int = Field(0, ge=0)
    """Which."""
    seed: int = 0
    max_cells: int = Field(64, ge=1)
    """Control cells of each (dataset, context) that predictions start from."""
    metric: Literal["pearson_delta", "l2", "rmse", "cosine_logfc"] = "pearson_delta"
    """By which ``patience`` judges."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many validations without a better one, and end with the weights of the best; None: train
    all epochs and end with the last."""

    @model_validator(mode="after")
    def _consistent(self) -> "ValidationConfig":
        if self.patience is not None and self.every is None:
            raise ValueError("'patience' counts validations; set 'every' too, for example to 1")
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not below folds {self.folds}")
        return self


def split_groups(
    store: Store, config: SplitConfig, validation: ValidationConfig | None = None
) -> pd.DataFrame:
    """Assign every group of the store to training, validation or test.

    Returns
    -------
    ``store.groups`` with the columns ``part`` (``train``, ``validation``, ``test``, or ``both`` where cells
    are split) and ``category``: for held-out groups what training has seen of them: ``combo_seen2``,
    ``combo_seen1``, ``combo_seen0``, ``unseen_single``, ``seen_single``, ``unseen_context``,
    ``unseen_dataset``, ``cells``.

    Raises
    ------
    UserError
        Where nothing would be held out, also for validation, or nothing be left to learn from.
    """
    groups = store.groups.copy()
    targets = {
        int(row.perturbation_index): tuple(row.targets)
        for row in store.perturbations[["perturbation_index", "targets"]].itertuples()
    }
    names = [dataset.name for dataset in store.manifest.datasets]
    groups["dataset_name"] = [names[i] for i in groups["dataset"]]
    groups["context_name"] = [store.manifest.contexts[i] for i in groups["context"]]
    groups["perturbation_name"] = store.perturbations["name"].to_numpy()[groups["perturbation"]]
    groups["targets"] = [targets[i] for i in groups["perturbation"]]
    size = groups["targets"].str.len()
    allowed = groups["dataset_name"].isin(config.datasets or names)
    _check_names(store, config)

    held = pd.Series(False, index=groups.index)
    if config.kind == "combo":
        for _, rows in groups[(size > 1) & allowed].groupby("dataset"):
            held |= groups.index.isin(rows.index[rows["targets"].isin(_fold(rows["targets"], config))])
    elif config.kind == "single":
        pool = groups["targets"][(size > 0) & allowed]
        chosen = _fold(pd.Series([t for item in pool for t in item]), config)
        held = allowed & groups["targets"].map(lambda item: any(t in chosen for t in item))
    elif config.kind in ("context", "dataset"):
        column = f"{config.kind}_name"
        held = groups[column].isin(_fold(groups[column][allowed], config)) & allowed
    elif config.kind == "explicit":
        wanted = {_canonical(name) for name in config.test}
        held = allowed & (
            groups["perturbation_name"].isin(wanted)
            | groups["context_name"].isin(config.test)
            | groups["dataset_name"].isin(config.test)
        )
    groups["part"] = np.where(held, TEST, TRAIN)
    if config.kind == "cells":
        groups["part"] = np.where(allowed, "both", TRAIN)
    if validation is not None and validation.every is not None:
        validated = _validated(groups[~held], validation)
        groups.loc[validated, "part"] = VALIDATION
        held |= groups.index.isin(validated)
    groups["category"] = _categories(groups, held)
    _check(groups, config)
    return groups.drop(columns=["targets"])


def held_out_rows(n_rows: int, shard: int, row_group: int, config: SplitConfig) -> np.ndarray:
    """For ``kind="cells"``: which rows of a row group are held out, bool, shape (n_rows,)."""
    draw = np.random.default_rng([config.seed, shard, row_group]).integers(0, config.folds, n_rows)
    result: np.ndarray = draw == config.fold
    return result


def _validated(left: pd.DataFrame, config: ValidationConfig) -> pd.Index:
    """Rows of the groups that validation takes from what the test has left."""
    size = left["targets"].str.len()
    if config.kind == "combo":
        pool = left[size > 1]
        chosen = _fold(pool["targets"], config)
        held = pool.index[pool["targets"].isin(chosen)]
    else:
        targets = pd.Series([t for item in left["targets"] for t in item], dtype=object)
        chosen = _fold(targets, config)
        held = left.index[left["targets"].map(lambda item: any(t in chosen for t in item))]
    if held.empty:
        mend = "set validation.kind=single or lower validation.folds"
        raise UserError(f"validation: there is no {config.kind} left to hold out for it; {mend}.")
    return held


def _fold(items: pd.Series, config: SplitConfig | ValidationConfig) -> set[Any]:
    """One of ``folds`` random parts of the distinct items."""
    distinct = sorted(set(items))
    order = np.random.default_rng([config.seed, len(distinct)]).permutation(len(distinct))
    return {distinct[i] for i in order[config.fold :: config.folds]}


def _categories(groups: pd.DataFrame, held: pd.Series) -> list[str]:
    """What training has seen of each held-out group."""
    train = groups[~held]
    datasets, contexts = set(train["dataset"]), set(zip(train["dataset"], train["context"], strict=True))
    seen = {(row.dataset, t) for row in train.itertuples() for t in row.targets}
    alone = {(row.dataset, row.targets[0]) for row in train.itertuples() if len(row.targets) == 1}
    result = []
    for row, out in zip(groups.itertuples(), held, strict=True):
        if not out:
            result.append("cells")
        elif row.dataset not in datasets:
            result.append("unseen_dataset")
        elif (row.dataset, row.context) not in contexts:
            result.append("unseen_context")
        elif len(row.targets) > 1:
            result.append(f"combo_seen{sum((row.dataset, t) in alone for t in row.targets)}")
        elif len(row.targets) == 1:
            known = (row.dataset, row.targets[0]) in seen
            result.append("seen_single" if known else "unseen_single")
        else:
            result.append("control")
    return result


def _check_names(store: Store, config: SplitConfig) -> None:
    known = {dataset.name for dataset in store.manifest.datasets}
    unknown = sorted(set(config.datasets or []) - known)
    if unknown:
        raise UserError(
            f"split.datasets: the store has no dataset {', '.join(unknown)} (it has "
            f"{', '.join(sorted(known))}); mend the config."
        )
    named = known | set(store.manifest.contexts) | set(store.perturbations["name"])
    unknown = [name for name in config.test if name not in named and _canonical(name) not in named]
    if unknown:
        raise UserError(
            f"split.test: the store has no perturbation, context or dataset called {', '.join(unknown)}; "
            "see `tadvae inspect STORE` for its names."
        )


def _check(groups: pd.DataFrame, config: SplitConfig) -> None:
    if config.kind in ("none", "cells"):
        return
    held = groups["part"] == TEST
    if not held.any() and config.kind == "explicit":
        raise UserError("split: 'test' holds out nothing in the chosen datasets; mend the config.")
    if held.all() or not (groups["part"] == TRAIN).any():
        raise UserError("split: nothing is left to learn from; raise split.folds or hold out less.")


def _canonical(name: str) -> str:
    """``B + A`` as ``A+B``."""
    return "+".join(sorted(part.strip() for part in name.split("+")))
