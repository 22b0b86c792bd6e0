"""What would fail in its trial is refused before the first one starts."""

import json
from collections.abc import Iterator
from typing import Any

import optuna

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.data.reader import Mapper
from tadvae.data.splits import validation_groups
from tadvae.model.predictor import Predictor
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.prepare import Preparation, prepare_training
from tune.config import SweepConfig
from tune.shown import assignments
from tune.space import SETTINGS, Values, setting_of

DRAWS = 8
"""Random trials of an adaptive search that are checked besides its first trials and its extremes."""
OF_DATA = ("preprocess", "pathways", "split", "validation", "stream", "effects")
"""Settings that decide what is read from the store."""
OF_NETWORK = ("model", "loss")


def trials_to_check(config: SweepConfig) -> Iterator[Values]:
    """Values of all trials of a grid; of an adaptive search, of its first, extreme and some random ones."""
    yield from config.points()
    if config.search == "grid":
        return
    yield from config.extremes()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed))
    for _ in range(DRAWS):
        trial = study.ask()
        yield config.pick(lambda key, parameter: parameter.suggest(trial, key))  # noqa: B023 - called at once


def check_settings(config: SweepConfig) -> list[tuple[Values, ExperimentConfig]]:
    """Check the settings of trials without the store; return their values and their experiments.

    Raises
    ------
    UserError
        If a value is out of its range, values do not fit together, or a file is missing.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    for values in trials_to_check(config):
        experiment = config.trial_experiment(config.experiment, values)
        for key, place in _files(experiment):
            if "://" not in place and not Location.of(place).exists():
                raise UserError(f"{key}: {place}: no such file; give the path of an existing one.")
        found.append((values, experiment))
    return found


def check_trials(store: Store, trials: list[tuple[Values, ExperimentConfig]], mapper: Mapper) -> Preparation:
    """Read the store as each trial would, and build its network; what several share is done once.

    Parameters
    ----------
    trials
        As :func:`check_settings` returns them.

    Returns
    -------
    The preparation of the first trial.

    Raises
    ------
    UserError
        If a trial cannot start, or its metric cannot be computed; the message names what varies.
    """
    prepared: dict[str, Preparation] = {}
    built: set[str] = set()
    for values, experiment in trials:
        data = _key(experiment, OF_DATA, experiment.loss.likelihood)
        if data not in prepared:
            try:
                prepared[data] = _prepare(store, experiment, mapper, first=not prepared)
            except UserError as error:
                raise _named(error, values, OF_DATA) from None
        network = _key(experiment, ("model",), data)
        if network not in built:
            try:
                module = TADVAEModule(experiment.model, experiment.loss, prepared[data].vocabulary)
            except UserError as error:
                raise _named(error, values, OF_NETWORK) from None
            if not built:
                _require_influence(store, experiment, prepared[data], module)
            built.add(network)
    return next(iter(prepared.values()))


def _prepare(store: Store, experiment: ExperimentConfig, mapper: Mapper, first: bool) -> Preparation:
    if not first:  # the regression takes longest, and depends on no setting that could make it fail
        effects = experiment.effects.model_copy(update={"weight": 0.0})
        experiment = experiment.model_copy(update={"effects": effects})
    prepared = prepare_training(store, experiment, mapper)
    groups = prepared.groups
    controlled = set(_places(groups[groups["perturbation"] == store.control]))
    held = validation_groups(groups, store.control)
    if held.empty:
        raise UserError(
            "validation: no perturbation is held out, so trials cannot be compared; set "
            "validation.kind=single."
        )
    for dataset, context in sorted(set(_places(held)) - controlled):
        name, where = store.manifest.datasets[dataset].name, store.manifest.contexts[context]
        raise UserError(
            f"dataset '{name}', context '{where}': perturbations are held out for validation, but there are "
            "no control cells to predict them from; convert with a coarser context, or without these cells."
        )
    return prepared


def _require_influence(
    store: Store, experiment: ExperimentConfig, prepared: Preparation, module: TADVAEModule
) -> None:
    """See that some held-out perturbation is predicted by the network too: only that can differ by trial."""
    if prepared.effects is None:
        return
    predictor = Predictor(module, prepared.vocabulary, experiment, prepared.effects)
    row, targets = context_rows(store, prepared.vocabulary), interventions(store, prepared.vocabulary)
    held = validation_groups(prepared.groups, store.control)
    for (dataset, context), rows in held.groupby(["dataset", "context"]):
        asked = [targets[p] for p in rows["perturbation"]]
        weight = predictor.regression_weight(dataset, row.get((dataset, context), -1), asked)
        if (weight < 1).any():
            return
    raise UserError(
        f"validation: the regression of mean effects alone predicts all {len(held)} held-out perturbations, "
        "as the network has not seen one of their targets, so no setting of the network changes a score; "
        "hold out others (experiment.validation.fold or .kind), give the network genes as targets "
        "(experiment.model.causal.targets=gene), or compare networks alone (experiment.effects.weight=0)."
    )


def _places(groups: Any) -> list[tuple[int, int]]:
    return list(zip(groups["dataset"], groups["context"], strict=True))


def _key(experiment: ExperimentConfig, parts: tuple[str, ...], *more: str) -> str:
    return json.dumps([experiment.model_dump(mode="json", include=set(parts)), *more])


def _named(error: UserError, values: Values, parts: tuple[str, ...]) -> UserError:
    """The error with the varied settings that it may come from."""
    varied = {key: value for key, value in values.items() if key.split(".")[0] in parts}
    return UserError(f"a trial with {assignments(varied)}: {error}") if varied else error


def _files(experiment: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Settings that name a file, and the file."""
    data = experiment.model_dump(mode="json")
    for key, marker in SETTINGS.items():
        if marker is None:
            continue
        value = setting_of(data, key)
        if value is not None and value not in marker.words:
            yield key, value
