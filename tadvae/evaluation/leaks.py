"""The leak check: everything that a run derived from data must follow from its training rows only."""

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.data.build_vocabulary import mean_profile
from tadvae.data.reader import CellReader, Mapper, load_controls, loop, training_bags
from tadvae.data.splits import TEST, VALIDATION, split_groups
from tadvae.data.views import make_views, views_of
from tadvae.model.ensemble import Model
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store


def check_leaks(store: Store, groups: pd.DataFrame, model: Model, mapper: Mapper = loop) -> None:
    """Derive everything again from the training rows, and raise a UserError on any difference.

    The check covers the split (which groups are held out), the genes of every dataset, the control profile of
    every context, and which targets count as seen. The evaluation calls it first.

    Parameters
    ----------
    groups
        The split saved with the run.

    Raises
    ------
    UserError
        If something differs, naming what and where: the run used held-out rows, or it was changed later.
    """
    config = model.config
    _check_split(groups, split_groups(store, config.split, config.validation))
    held = groups["part"].isin([TEST, VALIDATION])
    bags = training_bags(store, groups, config.split)
    if not bags.merge(groups[held][GROUP_KEYS], on=GROUP_KEYS).empty:
        raise UserError(_sentence("training rows", "hold cells of held-out groups"))
    vocabulary = model.vocabulary
    views, origin = views_of(store, vocabulary), vocabulary.origin
    n_former, n_targets = (0, 0) if origin is None else (origin.n_datasets, origin.n_targets)
    expected = make_views(store, bags, config.split, config.preprocess, mapper, views[:n_former])
    for entry, view in zip(vocabulary.datasets, expected, strict=True):
        if not np.array_equal(entry.genes, view.genes):
            what = f"variable genes of dataset '{entry.name}'"
            raise UserError(_sentence(what, "are not those of its training cells"))
    reader = CellReader(store, views, config.split)
    controls = load_controls(reader, bags, config.stream.max_controls, mapper)
    found = {(entry.dataset, entry.name): entry.profile for entry in vocabulary.contexts}
    names = {(d, store.manifest.contexts[c]): cells for (d, c), cells in controls.items()}
    for (d, name), profile in found.items():
        if d < n_former:  # its cells were those of the model that was fine-tuned
            continue
        genes = vocabulary.datasets[d].genes
        if (d, name) not in names or not np.array_equal(mean_profile(names[d, name], genes), profile):
            where = f"control profile of context '{name}', dataset '{vocabulary.datasets[d].name}',"
            raise UserError(_sentence(where, "is not the mean of its training controls"))
    trained = set(groups.loc[~held, "perturbation"])
    seen = {t for p in trained for t in store.perturbations["targets"].iloc[p]}
    for i, target in enumerate(vocabulary.targets):
        known = target.name in seen or (i < n_targets and target.seen)
        if target.seen != known:
            raise UserError(_sentence(f"target '{target.name}'", "counts as seen where it was held out"))


def _check_split(saved: pd.DataFrame, expected: pd.DataFrame) -> None:
    both = saved.merge(expected, on=GROUP_KEYS, how="outer", suffixes=("", "_expected"), indicator=True)
    wrong = both[(both["_merge"] != "both") | (both["part"] != both["part_expected"])]
    if len(wrong):
        row = wrong.iloc[0]
        raise UserError(
            _sentence(
                f"the run's split says '{row['part']}' of {row['perturbation_name']} in dataset "
                f"'{row['dataset_name']}', context '{row['context_name']}',",
                f"but the run's config says '{row['part_expected']}'",
            )
        )


def _sentence(what: str, wrong: str) -> str:
    return f"leak check: the {what} {wrong}; the run cannot be trusted, train it again from its store."
