"""How settings are written for people: values and names in few characters, and never ambiguous."""

from collections import Counter
from functools import cache
from typing import Any

from tadvae.settings.experiment import ExperimentConfig


def short(value: Any) -> str:
    """Format a value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def short_name(key: str) -> str:
    """The shortest end of a dotted name that names no other setting of a run.

    Examples
    --------
    >>> short_name("model.pathway.masking"), short_name("loss.alpha.high")
    ('masking', 'alpha.high')
    """
    parts = key.split(".")
    ends = (".".join(parts[i:]) for i in range(len(parts) - 1, 0, -1))
    return next((end for end in ends if _names_with_end()[end] == 1), key)


@cache
def _names_with_end() -> Counter[str]:
    """How many settings have each end of a dotted name."""
    names = [name.split(".") for name, _ in ExperimentConfig.every_setting()]
    return Counter(".".join(parts[i:]) for parts in names for i in range(len(parts)))


def assignments(values: dict[str, Any]) -> str:
    """Settings and their values in one line."""
    return " ".join(f"{short_name(key)}={short(value)}" for key, value in values.items())
