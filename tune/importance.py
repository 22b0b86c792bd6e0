"""Importance of the parameters of a sweep, as computed by Optuna."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from tune.config import SweepConfig
from tune.records import TrialRecord
from tune.search import study_of


def importances(records: Sequence[TrialRecord], config: SweepConfig) -> dict[str, float]:
    """Share of each parameter, from 0 to 1, largest first; empty if trials are too few or have equal values.

    It is Optuna's default (PED-ANOVA, Watanabe et al. 2023) on the last validation of every trial that has
    one, also of stopped trials. The shares of parameters without a condition sum to 1; the share of a
    parameter with a condition is computed together with these, on the trials in which it was set.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = study_of(config, records)
    good = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    always = [key for key, parameter in config.parameters.items() if not parameter.when]
    found = _shares(study, good, always)
    for key, parameter in config.parameters.items():
        if parameter.when and (share := _shares(study, good, [*always, key]).get(key)) is not None:
            found[key] = share
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _shares(study: optuna.Study, trials: list[optuna.trial.FrozenTrial], keys: list[str]) -> dict[str, float]:
    having = [trial for trial in trials if all(key in trial.params for key in keys)]
    if len(having) < 2 or len({trial.value for trial in having}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Some regimes for parameter", UserWarning
        )  # few trials: the page says
        return optuna.importance.get_param_importances(study, params=keys)
