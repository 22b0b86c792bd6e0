"""Questions of an evaluation: the held-out groups of a run, the data for predicting them, and the truth.

The data that methods may use come from training rows; the truth comes only from held-out rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.group_means import GroupMeans, group_means
from tadvae.data.reader import CellReader, Group, Mapper, load_controls, load_groups, loop, training_bags
from tadvae.data.splits import TRAIN, VALIDATION, SplitConfig, nothing_to_evaluate
from tadvae.data.views import views_of
from tadvae.data.vocabulary import Vocabulary
from tadvae.evaluation.baselines import Profiles
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store

CELLS = 256
"""Largest number of cells of a group that predictions start from and that the MMD compares."""
MOST_CELLS = 20_000
"""About the largest number of training cells that a baseline across contexts is fitted to."""


@dataclass(frozen=True)
class Question:
    """The M held-out groups of one (dataset, context).

    Attributes
    ----------
    place
        (dataset, context), indices in the store.
    groups
        Rows of the split, one per group.
    targets
        Targets of each group.
    genes
        Sorted vocabulary indices of the dataset's genes, shape (G,).
    control
        Mean control profile, shape (G,).
    controls
        Control cells, at most ``CELLS``.
    profiles
        Training profiles that the baselines are fitted to.
    observed
        The truth: mean profiles of the held-out cells, shape (M, G).
    cells
        Held-out cells of each group, at most ``CELLS``.
    has_cells
        False if the dataset holds mean profiles or signatures.
    has_effects
        Whether the values are signed effects; the control is then zero.
    elsewhere
        For a context without any perturbation in training, the training cells of the dataset's other contexts
        by (context, perturbation); otherwise empty.
    amounts
        Logarithms of dose and time of each group, shape (M, 2), NaN where it has none; None: no group has.
    """

    place: tuple[int, int]
    groups: pd.DataFrame
    targets: list[tuple[str, ...]]
    genes: np.ndarray
    control: np.ndarray
    controls: Cells
    profiles: Profiles
    observed: np.ndarray
    cells: list[Cells]
    has_cells: bool
    has_effects: bool = False
    elsewhere: dict[tuple[int, int], Cells] = field(default_factory=dict)
    amounts: np.ndarray | None = None

    @property
    def perturbations(self) -> list[int]:
        """Indices of the M perturbations in the store."""
        return [int(p) for p in self.groups["perturbation"]]

    def target_genes(self, i: int) -> list[str]:
        """Identifiers of the genes that the i-th group perturbs; a target that is no gene has none."""
        found = [self.profiles.target_gene.get(target) for target in self.targets[i]]
        return [gene for gene in found if gene is not None]

    @property
    def where(self) -> str:
        """Dataset and context as text, for messages."""
        row = self.groups.iloc[0]
        return f"dataset '{row['dataset_name']}', context '{row['context_name']}'"


def held_out_groups(groups: pd.DataFrame, control: int, category: str | None = None) -> pd.DataFrame:
    """Held-out groups of a split, of one category or of all.

    Raises
    ------
    UserError
        If nothing is held out, or no group has the category.
    """
    if (reason := nothing_to_evaluate(groups)) is not None:
        raise UserError(f"{reason}.")
    held = groups[~groups["part"].isin([TRAIN, VALIDATION]) & (groups["perturbation"] != control)]
    chosen = held if category is None else held[held["category"] == category]
    if chosen.empty:
        found = ", ".join(sorted(set(held["category"])))
        raise UserError(f"--split {category}: this run held out no such groups; it held out {found}.")
    return chosen


def ask(
    store: Store,
    groups: pd.DataFrame,
    tested: pd.DataFrame,
    vocabulary: Vocabulary,
    split: SplitConfig,
    mapper: Mapper = loop,
) -> Iterator[Question]:
    """One question for every (dataset, context) of the tested groups.

    Parameters
    ----------
    groups
        The whole split.
    tested
        The rows of the split to evaluate.

    Raises
    ------
    UserError
        If a context has no control cells to start from.
    """
    views = views_of(store, vocabulary)
    train_reader = CellReader(store, views, split)
    test_reader = CellReader(store, views, split, held_out=True)
    bags = store.bags.reset_index(names="bag")
    test_bags = store.bags.loc[bags.merge(tested[GROUP_KEYS], on=GROUP_KEYS)["bag"].sort_values()]
    places = tested[GROUP_KEYS[:2]].drop_duplicates()
    # Control cells of a held-out context are the input of its predictions; they are not used for training.
    control_bags = bags[bags["perturbation"] == store.control].merge(places, on=GROUP_KEYS[:2])["bag"]
    control_bags = store.bags.loc[control_bags.sort_values()]
    train_bags = training_bags(store, groups, split)
    known = group_means(train_reader, store.bags.loc[train_bags.index.union(control_bags.index)], mapper)
    truth = group_means(test_reader, test_bags, mapper)
    controls = load_controls(train_reader, control_bags, CELLS, mapper)
    cells = load_groups(test_reader, test_bags, CELLS, mapper)
    if split.kind != "cells":
        _require_apart(known, tested)
    targets = {row.perturbation_index: tuple(row.targets) for row in store.perturbations.itertuples()}
    for (dataset, context), part in tested.groupby(GROUP_KEYS[:2]):
        place = (int(dataset), int(context))
        if place not in controls:
            names = f"dataset '{part['dataset_name'].iloc[0]}', context '{part['context_name'].iloc[0]}'"
            raise UserError(
                f"{names}: no control cells to predict from; hold out another context or dataset."
            )
        part = part[[(*place, int(p)) in truth.mean for p in part["perturbation"]]]
        if part.empty:
            continue
        keys: list[Group] = [(*place, int(p)) for p in part["perturbation"]]
        entry = vocabulary.datasets[place[0]]
        has_cells = entry.kind == "cells" and len(controls[place]) > 1
        elsewhere: dict[tuple[int, int], Cells] = {}
        if has_cells and not any(key[:2] == place and key[2] != store.control for key in known.mean):
            ours = train_bags[train_bags["dataset"] == place[0]]
            each = max(1, min(CELLS, MOST_CELLS // max(len(ours.groupby(GROUP_KEYS)), 1)))
            found = load_groups(train_reader, ours, each, mapper)
            elsewhere = {(c, p): cells for (_, c, p), cells in found.items() if c != place[1]}
        yield Question(
            place=place,
            groups=part,
            targets=[targets[p] for *_, p in keys],
            genes=entry.genes,
            control=known.mean[(*place, store.control)],
            controls=controls[place],
            profiles=training_profiles(store, place, known, vocabulary),
            observed=np.stack([truth.mean[key] for key in keys]),
            cells=[cells[key] for key in keys],
            has_cells=has_cells,
            has_effects=entry.has_effects,
            elsewhere=elsewhere,
            amounts=store.log_amounts[[p for *_, p in keys]],
        )


def training_profiles(
    store: Store, place: tuple[int, int], train: GroupMeans, vocabulary: Vocabulary
) -> Profiles:
    """Training profiles of a (dataset, context) that baselines are fitted to.

    For a context without any perturbation in training, the changes in the other contexts of the dataset are
    used: the mean change of each perturbation over them, added to the control of this context.
    """
    names = {row.perturbation_index: tuple(row.targets) for row in store.perturbations.itertuples()}
    keys = vocabulary.genes["gene"].to_numpy()
    groups: dict[tuple[int, int], dict[int, np.ndarray]] = {}
    for (d, c, p), mean in train.mean.items():
        if p != store.control:
            groups.setdefault((d, c), {})[p] = mean

    def profiles(of: tuple[int, int], means: dict[int, np.ndarray], **more: Any) -> Profiles:
        control = train.mean[*of, store.control]
        return Profiles(
            control=control,
            targets=[names[p] for p in means],
            means=np.stack(list(means.values())) if means else np.empty((0, len(control))),
            genes=keys[vocabulary.datasets[of[0]].genes].tolist(),
            amounts=store.log_amounts[list(means)],
            **more,
        )

    here = groups.pop(place, {})
    new_context = not here
    if new_context:
        changes: dict[int, list[np.ndarray]] = {}
        for (d, c), found in groups.items():
            for p, mean in found.items() if d == place[0] else ():
                changes.setdefault(p, []).append(mean - train.mean[d, c, store.control])
        here = {p: train.mean[*place, store.control] + np.mean(each, axis=0) for p, each in changes.items()}
    return profiles(
        place,
        here,
        target_gene={t.name: keys[t.gene] if t.gene >= 0 else None for t in vocabulary.targets},
        elsewhere=[
            profiles(other, found)
            for other, found in sorted(groups.items())
            if (*other, store.control) in train.mean
        ],
        new_context=new_context,
    )


def _require_apart(known: GroupMeans, tested: pd.DataFrame) -> None:
    asked = set(tested[GROUP_KEYS].itertuples(index=False, name=None))
    both = asked & set(known.mean)
    if both:
        row = tested[[key in both for key in tested[GROUP_KEYS].itertuples(index=False, name=None)]].iloc[0]
        raise AssertionError(
            f"leak: held-out group {row['perturbation_name']} of dataset '{row['dataset_name']}', context "
            f"'{row['context_name']}' is among the training groups."
        )
