"""Which parameters mattered, by Optuna's own measure."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from tune.config import SweepConfig
from tune.records import TrialRecord
from tune.search import study_of


def importances(records: Sequence[TrialRecord], config: SweepConfig) -> dict[str, float]:
    """Share of each parameter, the largest first; empty where the trials are too few or too alike.

    Optuna's default (PED-ANOVA, Watanabe et al. 2023) on the last validation of every trial that has one,
    stopped ones too. Parameters without a condition share 1 among them; one with a condition has the share
    it would have beside those, among the trials where it was set.
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
