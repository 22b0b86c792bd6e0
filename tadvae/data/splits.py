"""Splits: which groups of cells are used for training, validation and testing.

A split is computed once, before training, saved with the run and read by every later step. Except for the
kind ``cells`` it holds out whole groups (dataset, context, perturbation), never single cells of a
perturbation that is also in the training data.
"""

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field, field_validator, model_validator

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.base.labels import as_text
from tadvae.data.lookup import Lookup
from tadvae.store.reader import Store

TRAIN, VALIDATION, TEST = "train", "validation", "test"


class SplitConfig(Config):
    """The part of a store that is held out for testing."""

    kind: Literal["combo", "single", "dose", "context", "dataset", "cells", "explicit", "none"] = "combo"
    """What is held out.

    - ``combo``: combinations of targets; use it to predict unseen combinations.
    - ``single``: targets, with every perturbation that contains them; use it to predict unseen targets.
    - ``dose``: doses, with every perturbation at them; use it to predict doses that were not tested.
    - ``context``: whole contexts; use it to predict effects in another cell line or cell type.
    - ``dataset``: whole datasets; use it to test the transfer between screens.
    - ``cells``: a share of the cells of every group; use it to test reconstruction, not prediction.
    - ``explicit``: what ``test`` names; use it to reproduce the split of a publication.
    - ``none``: nothing; use it for a final model that is not evaluated.
    """
    folds: int = Field(5, ge=2)
    """Number of parts, of which one is held out: 5 holds out 20%."""
    fold: int = Field(0, ge=0)
    """Index of the part that is held out, from 0 to ``folds - 1``."""
    seed: int = 0
    """Seed of the random parts."""
    datasets: list[str] | None = None
    """Datasets in which groups are held out, by name; None: all."""
    test: list[str] = []
    """Perturbations (``A+B``, at one dose ``A@0.1uM``), contexts and datasets to hold out, by any name that
    ``predict`` accepts; only for ``explicit``."""

    @field_validator("datasets", "test", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return None if value is None else as_text(value)

    @model_validator(mode="after")
    def _consistent(self) -> "SplitConfig":
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not below folds {self.folds}")
        if (self.kind == "explicit") != bool(self.test):
            raise ValueError("'test' belongs to kind 'explicit', which needs it")
        return self


class ValidationConfig(Config):
    """Perturbations held out of training to choose settings; they are never in the test set."""

    every: int | None = Field(None, ge=1)
    """Epochs between validations (the last epoch always has one); None: no validation."""
    kind: Literal["combo", "single"] = "combo"
    """What is held out for validation.

    - ``combo``: combinations of targets; use it with ``split.kind=combo``.
    - ``single``: targets, with every perturbation that contains them; use it with ``split.kind=single``, or
      where there are no combinations.
    """
    folds: int = Field(5, ge=2)
    """Number of parts of what is not in the test set; one of them is held out for validation."""
    fold: int = Field(0, ge=0)
    """Index of the part that is held out, from 0 to ``folds - 1``."""
    seed: int = 0
    """Seed of the random parts."""
    max_cells: int = Field(64, ge=1)
    """Largest number of control cells of each (dataset, context) that predictions start from."""
    metric: Literal["pearson_delta", "l2", "rmse", "cosine_logfc"] = "pearson_delta"
    """Metric that decides which validation is better; used with ``patience``.

    - ``pearson_delta``: correlation of predicted and observed effects; use it if the direction matters.
    - ``l2``: Euclidean distance of mean profiles; use it if the size of effects matters too.
    - ``rmse``: ``l2`` per gene; use it to compare panels of different sizes.
    - ``cosine_logfc``: cosine similarity of log fold changes; use it to compare with publications that do.
    """
    patience: int | None = Field(None, ge=1)
    """Stop after this number of validations without an improvement, and keep the weights of the best one;
    None: train all epochs and keep the last weights."""

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
    ``store.groups`` with the columns ``part`` (``train``, ``validation``, ``test``, or ``both`` if cells are
    split) and ``category``, which says for held-out groups what is in the training data: ``combo_seen2``,
    ``combo_seen1``, ``combo_seen0`` (number of targets that were perturbed alone), ``unseen_single``,
    ``seen_single``, ``unseen_dose``, ``unseen_context``, ``unseen_dataset``, ``cells``.

    Raises
    ------
    UserError
        If nothing is left to train on, or nothing can be held out for validation.
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
    named = _named(store, groups, config)

    held = pd.Series(False, index=groups.index)
    if config.kind == "combo":
        for _, rows in groups[(size > 1) & allowed].groupby("dataset"):
            held |= groups.index.isin(rows.index[rows["targets"].isin(_fold(rows["targets"], config))])
    elif config.kind == "single":
        pool = groups["targets"][(size > 0) & allowed]
        chosen = _fold(pd.Series([t for item in pool for t in item]), config)
        held = allowed & groups["targets"].map(lambda item: any(t in chosen for t in item))
    elif config.kind == "dose":
        if "dose" not in store.perturbations:
            raise UserError("split.kind=dose: the store has no doses; convert it with a covariate 'dose'.")
        doses = store.perturbations["dose"].to_numpy()[groups["perturbation"]]
        chosen = _fold(pd.Series(doses[allowed & ~np.isnan(doses)]), config)
        held = allowed & pd.Series(np.isin(doses, list(chosen)), index=groups.index)
    elif config.kind in ("context", "dataset"):
        column = f"{config.kind}_name"
        held = groups[column].isin(_fold(groups[column][allowed], config)) & allowed
    elif config.kind == "explicit":
        keys = zip(groups["dataset"], groups["targets"], strict=True)
        held = allowed & (
            pd.Series([key in named for key in keys], index=groups.index)
            | groups["perturbation_name"].isin(_at_amounts(store) & set(config.test))
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
    groups["category"] = _categories(groups, held, np.isfinite(store.log_amounts).any(axis=1))
    _check(groups, config)
    return groups.drop(columns=["targets"])


def validation_groups(groups: pd.DataFrame, control: int) -> pd.DataFrame:
    """Perturbed groups that are held out for validation.

    Parameters
    ----------
    groups
        The split, as :func:`split_groups` returns it.
    control
        Index of the perturbation that is none.
    """
    return groups[(groups["part"] == VALIDATION) & (groups["perturbation"] != control)]


def nothing_to_evaluate(groups: pd.DataFrame) -> str | None:
    """Why no prediction of a run can be compared with cells, and what to do; None if some can.

    Parameters
    ----------
    groups
        The split, as :func:`split_groups` returns it.
    """
    perturbed = groups["perturbation_name"] != "control"
    if not perturbed.any():
        return (
            "the cells have no perturbations, so there is nothing to evaluate; ask the model what the cells "
            "do: `TADVAE.from_pretrained(RUN).activities(adata)` and `.latent(adata)`"
        )
    if (groups.loc[perturbed, "part"].isin([TRAIN, VALIDATION])).all():
        return (
            "nothing was held out in this run, so there is nothing to evaluate; train with another split, "
            "for example --set split.kind=single"
        )
    return None


def held_out_rows(n_rows: int, shard: int, row_group: int, config: SplitConfig) -> np.ndarray:
    """For ``kind="cells"``: whether each row of a row group is held out, bool, shape (n_rows,)."""
    draw = np.random.default_rng([config.seed, shard, row_group]).integers(0, config.folds, n_rows)
    result: np.ndarray = draw == config.fold
    return result


def _validated(left: pd.DataFrame, config: ValidationConfig) -> pd.Index:
    """Rows of the groups that are held out for validation, among those not in the test set."""
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
        fix = "set validation.kind=single or lower validation.folds"
        raise UserError(f"validation: there is no {config.kind} left to hold out for it; {fix}.")
    return held


def _fold(items: pd.Series, config: SplitConfig | ValidationConfig) -> set[Any]:
    """One of ``folds`` random parts of the distinct items."""
    distinct = sorted(set(items))
    order = np.random.default_rng([config.seed, len(distinct)]).permutation(len(distinct))
    return {distinct[i] for i in order[config.fold :: config.folds]}


def _categories(groups: pd.DataFrame, held: pd.Series, has_amounts: np.ndarray) -> list[str]:
    """What the training data holds of each held-out group, as a category.

    Parameters
    ----------
    has_amounts
        Whether each perturbation of the store has a dose or a time, bool, (n_perturbations,).
    """
    train = groups[~held]
    datasets, contexts = set(train["dataset"]), set(zip(train["dataset"], train["context"], strict=True))
    seen = {(row.dataset, t) for row in train.itertuples() for t in row.targets}
    alone = {(row.dataset, row.targets[0]) for row in train.itertuples() if len(row.targets) == 1}
    sets = {(row.dataset, row.targets) for row in train.itertuples()}
    result = []
    for row, out in zip(groups.itertuples(), held, strict=True):
        if not out:
            result.append("cells")
        elif row.dataset not in datasets:
            result.append("unseen_dataset")
        elif (row.dataset, row.context) not in contexts:
            result.append("unseen_context")
        elif has_amounts[row.perturbation] and (row.dataset, row.targets) in sets:
            result.append("unseen_dose")
        elif len(row.targets) > 1:
            result.append(f"combo_seen{sum((row.dataset, t) in alone for t in row.targets)}")
        elif len(row.targets) == 1:
            known = (row.dataset, row.targets[0]) in seen
            result.append("seen_single" if known else "unseen_single")
        else:
            result.append("control")
    return result


def _at_amounts(store: Store) -> set[str]:
    """Names of the perturbations that have a dose or a time."""
    return set(store.perturbations["name"].to_numpy()[np.isfinite(store.log_amounts).any(axis=1)])


def _named(store: Store, groups: pd.DataFrame, config: SplitConfig) -> set[tuple[int, tuple[str, ...]]]:
    """(dataset, targets) of the perturbations that ``test`` names, in any way that ``predict`` accepts."""
    places = [dataset.name for dataset in store.manifest.datasets]
    unknown = sorted(set(config.datasets or []) - set(places))
    if unknown:
        raise UserError(
            f"split.datasets: the store has no dataset {', '.join(unknown)} (it has "
            f"{', '.join(sorted(places))}); correct the config."
        )
    existing = set(zip(groups["dataset"], groups["targets"], strict=True))
    if not config.test:
        return set()
    lookup = Lookup.of_store(store)
    named, unknown = set(), []
    for name in sorted(set(config.test) - _at_amounts(store)):
        found = set()
        for i in range(len(places)):
            parts = lookup.find(name, i).parts
            if all(part.target is not None for part in parts):
                found.add((i, tuple(sorted(str(part.target) for part in parts))))
        found &= existing
        if found and name not in [*places, *store.manifest.contexts] and not any(key[1] for key in found):
            raise UserError(
                f"split.test: '{name}' is the control, which every prediction starts from; hold out "
                "perturbations, contexts or datasets."
            )
        named |= {key for key in found if key[1]}
        if not found and name not in places and name not in store.manifest.contexts:
            unknown.append(name)
    if unknown:
        raise UserError(
            f"split.test: the store has no perturbation, context or dataset called {', '.join(unknown)}; "
            "see `tadvae inspect STORE` for its names."
        )
    return named


def _check(groups: pd.DataFrame, config: SplitConfig) -> None:
    if config.kind in ("none", "cells"):
        return
    held = groups["part"] == TEST
    if not held.any() and config.kind == "explicit":
        raise UserError("split: 'test' holds out nothing in the chosen datasets; correct the config.")
    if held.all() or not (groups["part"] == TRAIN).any():
        raise UserError("split: nothing is left to learn from; raise split.folds or hold out less.")
