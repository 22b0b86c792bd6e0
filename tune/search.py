"""The search by Optuna and successive halving, both started from records.

A resumed sweep gets the records of its earlier trials, so it continues as if it had not been interrupted.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from tune.config import HalvingConfig, SweepConfig
from tune.records import CELLS_SEEN, TrialRecord
from tune.space import Parameter

STUDY = "sweep"
RUNG_SLACK = 0.1
"""Distance of a rung before the end of its epoch, in epochs, so that the report at the end has passed it."""


def study_of(
    config: SweepConfig,
    records: Sequence[TrialRecord],
    storage: optuna.storages.BaseStorage | None = None,
) -> optuna.Study:
    """The trials as an Optuna study, without those that are still running."""
    study = optuna.create_study(
        storage=storage, study_name=STUDY, direction="maximize" if config.mode == "max" else "minimize"
    )
    for record in records:
        value = record.value(config.metric)
        if record.status == "running":
            continue
        good = value is not None and math.isfinite(value) and record.status != "failed"
        study.add_trial(
            optuna.trial.create_trial(
                params=record.values,
                distributions={key: distribution(config.parameters[key]) for key in record.values},
                value=value if good else None,
                state=TrialState.COMPLETE if good else TrialState.FAIL,
            )
        )
    return study


def distribution(parameter: Parameter) -> BaseDistribution:
    """Optuna's distribution for the range of a parameter."""
    if parameter.choice is not None:
        return CategoricalDistribution(parameter.choice)
    if parameter.integer is not None:
        return IntDistribution(*parameter.integer)
    low, high = parameter.uniform or parameter.loguniform or (0.0, 0.0)
    return FloatDistribution(low, high, log=parameter.loguniform is not None)


class Define:
    """The define-by-run space that Optuna calls for each trial: values, number and config of the trial.

    Parameters
    ----------
    config
        Settings of the sweep.
    number
        Number of the first new trial; continued trials keep their number.
    """

    def __init__(self, config: SweepConfig, number: int) -> None:
        self._config, self._next = config, number
        self._given: dict[int, int] = {}

    def __call__(self, trial: Any) -> dict[str, Any]:
        """Values by key, and ``number``, ``experiment`` (YAML) and ``values``."""
        values = self._config.pick(lambda key, parameter: parameter.suggest(trial, key))
        if trial.number not in self._given:
            known = trial.user_attrs.get("number")
            self._given[trial.number] = self._next if known is None else known
            self._next += known is None
        experiment = self._config.trial_experiment(self._config.experiment, values)
        return {"number": self._given[trial.number], "experiment": experiment.to_yaml(), "values": values}


def optuna_search(config: SweepConfig, records: Sequence[TrialRecord]) -> OptunaSearch:
    """The search by a tree-structured Parzen estimator; a parameter is sampled only if its condition holds.

    Trials that were running when the sweep ended come first, with the same values and number; then those
    whose values are known before the search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    study = study_of(config, records, storage)
    for record in records:
        if record.status == "running":
            study.enqueue_trial(record.values, user_attrs={"number": record.number})
    points, begun = config.points(), {record.number for record in records}
    for number, values in enumerate(points):
        if number not in begun:
            study.enqueue_trial(values, user_attrs={"number": number})
    define = Define(config, max([len(points), *(number + 1 for number in begun)]))
    seed = int(np.random.SeedSequence([config.seed, len(records)]).generate_state(1)[0])
    return OptunaSearch(
        space=define,
        metric=config.metric,
        mode=config.mode,
        sampler=optuna.samplers.TPESampler(seed=seed),
        storage=storage,
        study_name=STUDY,
    )


class TrainAll(FIFOScheduler):
    """No trial stops early.

    Attributes
    ----------
    reasons
        As of :class:`Halving`; empty.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reasons: dict[str, str] = {}


class Halving(ASHAScheduler):
    """Asynchronous successive halving that records why it stopped a trial.

    Progress is measured in training cells seen, which continues to count after a restart.

    Attributes
    ----------
    reasons
        Reason for stopping, by Ray Tune's trial id.
    """

    def __init__(self, config: SweepConfig, cells_per_epoch: float) -> None:
        epochs, halving = config.experiment.train.epochs, config.scheduler or HalvingConfig()
        super().__init__(
            time_attr=CELLS_SEEN,
            metric=config.metric,
            mode=config.mode,
            grace_period=max(cells_per_epoch * (halving.grace_epochs - RUNG_SLACK), 1),
            max_t=max(
                cells_per_epoch * (epochs - 1), 1
            ),  # a trial that reaches the last epoch is not stopped
            reduction_factor=halving.reduction_factor,
            stop_last_trials=False,
        )
        self._sign = 1.0 if config.mode == "max" else -1.0
        self.reasons: dict[str, str] = {}

    def replay(self, record: TrialRecord) -> None:
        """Add the results of an earlier trial to the rungs."""
        trial = SimpleNamespace(trial_id=f"earlier-{record.number}")
        for point in record.curve:
            if self.metric in point:
                self._brackets[0].on_result(trial, point[CELLS_SEEN], self._sign * point[self.metric])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Decide whether the trial continues."""
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self.reasons[trial.trial_id] = self._reason(result[CELLS_SEEN], result[self.metric])
        return action

    def _reason(self, cells: float, value: float) -> str:
        bracket = self._brackets[0]
        rung, recorded = next((m, values) for m, values in bracket._rungs if cells >= m)
        cutoff = self._sign * float(bracket.cutoff(recorded))
        side = "below" if self._sign > 0 else "above"
        return (
            f"{self.metric} {value:.4f} at {cells:,.0f} cells is {side} {cutoff:.4f}, the threshold of "
            f"{len(recorded)} trials at {rung:,.0f} cells"
        )
