"""The search space: which settings of a run vary, in which range, and under which condition.

Keys are dotted settings of :class:`~tadvae.settings.experiment.ExperimentConfig`, such as
``model.pathway.d_embed``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from pydantic import BaseModel, Field, model_validator

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.settings.experiment import ExperimentConfig

Scalar = bool | int | float | str | None
Values = dict[str, Any]
"""Value of each setting, by dotted key."""
KINDS = ("choice", "uniform", "loguniform", "integer")


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

    @model_validator(mode="after")
    def _consistent(self) -> "Space":
        for key in [*self.parameters, *self.derived]:
            if not _is_setting(key):
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
            parameter = self.parameters[key]
            if all(k in found and found[k] in values for k, values in parameter.when.items()):
                found[key] = value_of(key, parameter)
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
        for key, parameter in self.parameters.items():
            for value in parameter.corners:
                wanted = self._wanted(key, value)

                def value_of(k: str, p: Parameter, wanted: Values = wanted) -> Any:
                    return wanted.get(k, p.corners[0])

                self.trial_experiment(base, self.pick(value_of))

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


def _is_setting(key: str) -> bool:
    model: Any = ExperimentConfig
    for name in key.split("."):
        fields: Mapping[str, Any] = getattr(model, "model_fields", {})
        if name not in fields:
            return False
        model = fields[name].annotation
    return not (isinstance(model, type) and issubclass(model, BaseModel))
