"""What a sweep found, in one sentence: the best settings, and whether chance may have put them first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune.config import SweepConfig
from tune.records import TrialRecord, best_of
from tune.shown import short, short_name
from tune.views import GROUPED_BY

SEED = "seed"
"""The setting that is no choice: trials that differ by it alone show what chance does."""
NAMED = 3
"""Settings that are named, where none of :data:`tune.views.GROUPED_BY` varies."""


@dataclass(frozen=True)
class Setting:
    """Trials that differ by their seed alone.

    Attributes
    ----------
    settings
        By dotted key, without the seed.
    values, trials
        The metric of each trial at its last validation, and its number.
    """

    settings: dict[str, Any]
    values: list[float]
    trials: list[int]

    @property
    def mean(self) -> float:
        """Mean of the metric over seeds."""
        return float(np.mean(self.values))


def settings_of(records: Sequence[TrialRecord], config: SweepConfig) -> list[Setting]:
    """Settings by their mean over seeds, the best first; of finished trials, or of all without any."""
    scored = _scored(records, config)
    found: dict[str, Setting] = {}
    for record in [each for each in scored if each.status == "finished"] or scored:
        settings = {key: value for key, value in record.settings.items() if key != SEED}
        own = found.setdefault(repr(sorted(settings.items())), Setting(settings, [], []))
        own.values.append(_value(record, config))
        own.trials.append(record.number)
    sign = 1.0 if config.mode == "max" else -1.0
    return sorted(found.values(), key=lambda setting: -sign * setting.mean)


def _value(record: TrialRecord, config: SweepConfig) -> float:
    value = record.value(config.metric)
    return math.nan if value is None else float(value)


def _scored(records: Sequence[TrialRecord], config: SweepConfig) -> list[TrialRecord]:
    """Trials that have not diverged, with a value."""
    return [record for record in records if math.isfinite(_value(record, config))]


def spread_of_seeds(found: Sequence[Setting]) -> float | None:
    """Standard deviation between seeds, pooled over settings; None where no setting has several."""
    several = [setting.values for setting in found if len(setting.values) > 1]
    if not several:
        return None
    squares = sum(float(np.var(values)) * len(values) for values in several)
    return math.sqrt(squares / sum(len(values) - 1 for values in several))


def answer(records: Sequence[TrialRecord], config: SweepConfig) -> str:
    """What the sweep found, in one sentence; the second best differs from the best by a named setting."""
    found = settings_of(records, config)
    if not found:
        return "No trial has a value yet."
    best = found[0]
    named = [key for key in GROUPED_BY if key in config.parameters]
    named = named or [key for key in config.parameters if key != SEED][:NAMED]

    def words(setting: Setting) -> str:
        known = [key for key in named if setting.settings.get(key) is not None]
        return ", ".join(f"{short_name(key)} {short(setting.settings[key])}" for key in known) or "all others"

    def value(setting: Setting) -> str:
        n = len(setting.values)
        return f"{setting.mean:.4f} ({f'mean of {n} seeds' if n > 1 else f'trial {setting.trials[0]:04d}'})"

    sentence = f"Best: {words(best)}, with {config.metric} {value(best)}"
    others = (s for s in found if any(s.settings.get(key) != best.settings.get(key) for key in named))
    second = next(others, None)
    if second is None:
        sentence += "; nothing else has a value to compare it with"
    else:
        difference, spread = abs(best.mean - second.mean), spread_of_seeds(found)
        sentence += (
            f"; the second, {words(second)}, has {value(second)}, and the difference of {difference:.2g} "
        )
        if spread is None:
            sentence += "may be chance, since no settings were trained with several seeds"
        else:
            larger = "is larger" if difference > spread else "is not larger"
            sentence += f"{larger} than the spread between seeds (standard deviation {spread:.2g})"
    trial = best_of(_scored(records, config), config)
    if trial is not None and {k: v for k, v in trial.settings.items() if k != SEED} != best.settings:
        sentence += f"; best.yaml has the settings of the best single trial, {trial.number:04d}"
    return sentence + "."
