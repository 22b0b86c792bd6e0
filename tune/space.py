"""The search space: which settings of a run vary, in which range, and under which condition.

Keys are dotted settings of :class:`~tadvae.settings.experiment.ExperimentConfig`, such as
``model.pathway.d_embed``.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import optuna
from pydantic import Field, model_validator

from tadvae.base.config import Config, IsFile
from tadvae.base.errors import UserError
from tadvae.settings.experiment import ExperimentConfig

Scalar = bool | int | float | str | None
Values = dict[str, Any]
"""Value of each setting, by dotted key."""
KINDS = ("choice", "uniform", "loguniform", "integer")
SETTINGS: dict[str, IsFile | None] = dict(ExperimentConfig.every_setting())
"""All settings of a run, with a marker if they name a file."""


class Parameter(Config):
    """Possible values of one setting: exactly one of the four kinds of range."""

    choice: list[Scalar] | None = None
    """One value of a list."""
    uniform: tuple[float, float] | None = None
    """A number between two bounds."""
    loguniform: tuple[float, float] | None = None
    """A positive number between two bounds, with a uniform logarithm."""
    integer: tuple[int, int] | None = None
    """A whole number between two bounds, both included."""
    when: dict[str, list[Scalar]] = {}
    """The parameter varies only if other parameters have one of these values; otherwise the setting of
    ``experiment`` is used."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Parameter":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of {', '.join(KINDS)}, found {', '.join(given) or 'none'}"
            )
        if self.choice is not None and len({repr(value) for value in self.choice}) < max(len(self.choice), 1):
            raise ValueError("'choice' is empty or names a value twice")
        bounds = self.uniform or self.loguniform or self.integer
        if bounds is not None and not bounds[0] < bounds[1]:
            raise ValueError(f"'{given[0]}' is an empty range: {bounds[0]:g} is not below {bounds[1]:g}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"'loguniform' needs bounds above zero, found {self.loguniform[0]:g}")
        return self

    @property
    def corners(self) -> list[Any]:
        """All values of a choice, or the two bounds of a range."""
        return list(self.choice or self.uniform or self.loguniform or self.integer or ())

    def has(self, value: Any) -> bool:
        """Whether this is one of the possible values."""
        if self.choice is not None:
            return any(value == each and type(value) is type(each) for each in self.choice)
        if isinstance(value, bool) or not isinstance(value, int if self.integer else int | float):
            return False
        low, high = self.corners
        return bool(low <= value <= high)

    def suggest(self, trial: optuna.trial.BaseTrial, key: str) -> Any:
        """Let Optuna choose a value."""
        if self.choice is not None:
            return trial.suggest_categorical(key, self.choice)
        if self.integer is not None:
            return trial.suggest_int(key, *self.integer)
        low, high = self.uniform or self.loguniform or (0.0, 0.0)
        return trial.suggest_float(key, low, high, log=self.loguniform is not None)


class Derived(Config):
    """A setting that is computed from a parameter."""

    key: str
    """Dotted key of the parameter."""
    divide_by: int = Field(ge=1)
    """The setting is the value of the parameter divided by this number."""


class Space(Config):
    """Parameters, and settings that are derived from them."""

    parameters: dict[str, Parameter] = Field(min_length=1)
    """Settings that vary, by dotted key; at least one."""
    derived: dict[str, Derived] = {}
    """Settings that are computed from a parameter, by dotted key."""

    @classmethod
    def locate(cls, data: Mapping[str, Any], folder: str | Path = "") -> dict[str, Any]:
        """As for other configs; the values of a parameter may be files too, and those of conditions."""
        result = super().locate(data, folder)
        parameters = result.get("parameters")
        if isinstance(parameters, Mapping):
            result["parameters"] = {
                key: _located(key, parameter, folder) for key, parameter in parameters.items()
            }
        return result

    @model_validator(mode="after")
    def _consistent(self) -> "Space":
        for key in [*self.parameters, *self.derived]:
            if key not in SETTINGS:
                raise ValueError(f"unknown setting '{key}'; see `tadvae train` for those there are")
            if key.split(".")[0] in ("split", "validation"):
                raise ValueError(f"'{key}' decides what trials are compared on, so it cannot vary among them")
        for key, parameter in self.parameters.items():
            for other, values in parameter.when.items():
                self._check_condition(key, other, values)
        self.order()
        for key, derived in self.derived.items():
            if key in self.parameters:
                raise ValueError(f"'{key}' is both a parameter and derived")
            source = self.parameters.get(derived.key)
            if source is None:
                raise ValueError(f"derived '{key}': '{derived.key}' is not among the parameters")
            if source.choice is None or any(
                not isinstance(value, int) or value % derived.divide_by for value in source.choice
            ):
                raise ValueError(
                    f"derived '{key}': expected '{derived.key}' to be a choice of multiples of "
                    f"{derived.divide_by}"
                )
        return self

    def _check_condition(self, key: str, other: str, values: list[Scalar]) -> None:
        if other not in self.parameters:
            raise ValueError(f"'{key}': its condition names '{other}', which is not among the parameters")
        choice = self.parameters[other].choice
        if choice is None:
            raise ValueError(f"'{key}': its condition names '{other}', which is not a choice")
        strange = [value for value in values if value not in choice]
        if strange or not values:
            raise ValueError(f"'{key}': its condition asks for '{other}' to be {strange}, which it never is")

    def order(self) -> list[str]:
        """Keys, each after the keys in its condition; a cycle of conditions is a ValueError."""
        done: list[str] = []
        while len(done) < len(self.parameters):
            ready = [
                key
                for key, p in self.parameters.items()
                if key not in done and all(k in done for k in p.when)
            ]
            if not ready:
                circle = ", ".join(key for key in self.parameters if key not in done)
                raise ValueError(f"conditions form a cycle ({circle})")
            done += ready
        return done

    def pick(self, value_of: Callable[[str, Parameter], Any]) -> Values:
        """Values of the parameters whose conditions hold, each from a call of ``value_of``."""
        found: Values = {}
        for key in self.order():
            if self._varies(key, found):
                found[key] = value_of(key, self.parameters[key])
        return found

    def _varies(self, key: str, values: Values) -> bool:
        """Whether the condition of a parameter holds."""
        return all(k in values and values[k] in wanted for k, wanted in self.parameters[key].when.items())

    def grid(self, keys: Collection[str]) -> list[Values]:
        """Every combination of the values of some choices, the last choice varying fastest.

        A choice whose condition does not hold has no value, so that no combination comes twice.
        """
        points: list[Values] = [{}]
        for key in self.order():
            choice = self.parameters[key].choice
            if key not in keys or choice is None:
                continue
            points = [
                each
                for point in points
                for each in (
                    [{**point, key: value} for value in choice] if self._varies(key, point) else [point]
                )
            ]
        return points

    def completed(self, point: Values, base: ExperimentConfig) -> Values:
        """A point with the values that ``base`` has for the other parameters, where they are possible."""
        data = base.model_dump(mode="json")
        found: Values = {}
        for key in self.order():
            if not self._varies(key, found):
                continue
            value = point.get(key, setting_of(data, key))
            if self.parameters[key].has(value):
                found[key] = value
        return found

    def settings(self, values: Values) -> Values:
        """Values, and the settings derived from them."""
        found = {
            key: values[derived.key] // derived.divide_by
            for key, derived in self.derived.items()
            if derived.key in values
        }
        return {**values, **found}

    def trial_experiment(self, base: ExperimentConfig, values: Values) -> ExperimentConfig:
        """The config of a trial: the base config with the settings of the trial."""
        data = base.model_dump(mode="json")
        for key, value in self.settings(values).items():
            node = data
            *parents, leaf = key.split(".")
            for name in parents:
                node = node[name]
            node[leaf] = value
        shown = ", ".join(f"{key}={value}" for key, value in values.items())
        return ExperimentConfig.parse(data, f"a trial with {shown}")

    def check(self, base: ExperimentConfig) -> None:
        """Check that every value, and both bounds of every range, give a valid config.

        Raises
        ------
        UserError
            If values do not fit together; the message names them.
        """
        for values in self.extremes():
            self.trial_experiment(base, values)

    def extremes(self) -> Iterator[Values]:
        """Values of trials that together have every value of a choice, and both bounds of every range."""
        for key, parameter in self.parameters.items():
            for value in parameter.corners:
                wanted = self._wanted(key, value)

                def value_of(k: str, p: Parameter, wanted: Values = wanted) -> Any:
                    return wanted.get(k, p.corners[0])

                yield self.pick(value_of)

    def _wanted(self, key: str, value: Any) -> Values:
        """A value of a parameter, with values of other parameters that satisfy its condition."""
        wanted: Values = {key: value}
        queue = [key]
        while queue:
            for other, values in self.parameters[queue.pop()].when.items():
                if wanted.setdefault(other, values[0]) not in values:
                    raise UserError(f"'{key}': its conditions can never hold together; fix them.")
                queue.append(other)
        return wanted


def setting_of(data: Any, key: str) -> Any:
    """The value of a dotted setting in nested ones."""
    for name in key.split("."):
        data = data[name]
    return data


def covering(points: list[Values]) -> list[Values]:
    """Few of the points that have every value, and every pair of values of two keys, that any point has.

    Greedy: each is the first one with most pairs that none before it has.
    """

    def parts(point: Values) -> set[Any]:
        return {*point.items(), *combinations(point.items(), 2)}

    chosen: list[Values] = []
    left = set().union(*map(parts, points)) if points else set()
    while left:
        chosen.append(max(points, key=lambda point: len(parts(point) & left)))
        left -= parts(chosen[-1])
    return chosen


def _located(key: Any, parameter: Any, folder: str | Path) -> Any:
    """A parameter that is not validated yet, with absolute paths of files."""
    if not isinstance(parameter, Mapping):
        return parameter

    def values(name: Any, given: Any) -> Any:
        marker = SETTINGS.get(name)
        if marker is None or not isinstance(given, list):
            return given
        return [marker.located(value, folder) for value in given]

    result = dict(parameter)
    if "choice" in result:
        result["choice"] = values(key, result["choice"])
    if isinstance(result.get("when"), Mapping):
        result["when"] = {name: values(name, given) for name, given in result["when"].items()}
    return result
