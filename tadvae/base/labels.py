"""Labels as people and files write them: numbers, missing values, words for controls, combinations."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

BLANK = frozenset(
    [
        *("", "nan", "NaN", "NAN", "NaT", "None", "none", "NONE", "null", "Null", "NULL"),
        *("<NA>", "NA", "na", "N/A", "n/a", "#N/A", "#NA"),
    ]
)
"""Texts that stand for a missing value after a cast to text, or in a file of R or a spreadsheet."""
CONTROL_WORDS = frozenset({"control", "ctrl"})
"""Labels that mean the control wherever no target has this name."""
_LIKE_CONTROL = frozenset({"control", "controls", "ctrl", "ctrls"})
_OPEN, _CLOSE = "([{", ")]}"


def label_text(value: Any) -> str:
    """A label as text: 1 and 1.0 are ``1``, a boolean is ``True`` or ``False``."""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def as_text(value: Any) -> Any:
    """Labels of a setting as text, also inside lists and mappings; for validators of config classes.

    Raises
    ------
    ValueError
        For what YAML reads neither as text nor as a number or boolean, such as a date.
    """
    if isinstance(value, Mapping):
        return {as_text(key): as_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_text(item) for item in value]
    if isinstance(value, str | bool | int | float):
        return label_text(value)
    raise ValueError("expected text; write a label that YAML reads otherwise in quotes")


def is_blank(text: str) -> bool:
    """Whether a text stands for a missing value."""
    return text.strip() in BLANK


def like_control(name: str, controls: set[str]) -> bool:
    """Whether a name that is not declared as a control is spelt like one: another case, ``-`` or ``_``."""
    if name in controls or _is_number(name):
        return False
    return _folded(name) in _LIKE_CONTROL | {_folded(control) for control in controls}


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold()) or name


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True


def split_label(text: str, separator: str | None) -> list[str]:
    """Parts of a label between separators; one inside brackets, as in ``(+)-JQ1``, separates nothing."""
    if not separator:
        return [text]
    brackets = set(_OPEN + _CLOSE)
    if brackets & set(separator) or not brackets & set(text) or not _balanced(text):
        return text.split(separator)
    parts, start, at, depth = [], 0, 0, 0
    while at < len(text):
        if depth == 0 and text.startswith(separator, at):
            parts.append(text[start:at])
            at += len(separator)
            start = at
            continue
        depth += (text[at] in _OPEN) - (text[at] in _CLOSE)
        at += 1
    return [*parts, text[start:]]


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0
