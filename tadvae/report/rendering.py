"""The Jinja environment of the HTML pages, and the tables that their templates lay out.

The templates of this package have the frame that all pages share: ``page.html.j2``, ``page.css`` and the
macros of ``_tables.html.j2``. Texts are escaped by the environment; only values of type Markup, which the
chart module makes, are written as they are.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

FRAME = "tadvae.report"
"""The package whose templates all pages can extend and import."""


@cache  # compiled templates are kept in it
def environment(package: str = FRAME) -> Environment:
    """Return the environment of a package's templates, with escaping of all values.

    Parameters
    ----------
    package
        Its folder ``templates`` is searched first, then that of this package.
    """
    loader = ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, FRAME))])
    found = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Style sheets and scripts are written unchanged: their braces are no template.
    found.globals["file_name"] = lambda words: re.sub(r"\W+", "-", words).strip("-").lower()[:60] + ".csv"
    found.globals["packaged"] = lambda name: Markup(loader.get_source(found, name)[0])
    return found


@dataclass(frozen=True)
class Column:
    """A column of a table; one of numbers is aligned to the right."""

    name: str
    number: bool


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes
    ----------
    text
        What is shown.
    value
        The number with all its digits, by which the table is sorted; None for a text.
    """

    text: str
    value: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of a table, with the attributes of its element."""

    cells: list[Cell]
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """What the macro ``table`` lays out.

    Attributes
    ----------
    caption
    columns
    rows
    name
        The id of a long table, which can be sorted; None for a short one.
    csv
        The same as CSV, see :func:`csv_link`.
    """

    caption: str
    columns: list[Column]
    rows: list[Row]
    name: str | None
    csv: str

    @classmethod
    def of(
        cls,
        frame: pd.DataFrame,
        caption: str,
        name: str | None = None,
        *,
        attributes: Callable[[dict[str, Any]], Mapping[str, str]] = lambda row: {},
        number: Callable[[Any], str] | None = None,
    ) -> "Table":
        """Return the table of a data frame.

        Parameters
        ----------
        attributes
            From a row, by the names of its columns, to the attributes of its element; a missing value is
            None.
        number
            How to write a number; None: integers with separators, others with three decimals.
        """
        columns = [Column(str(key), _is_number(frame.iloc[:, i])) for i, key in enumerate(frame.columns)]
        rows = []
        for values in frame.itertuples(index=False, name=None):
            known = [None if value is None or pd.isna(value) else value for value in values]
            pairs = list(zip(columns, known, strict=True))
            cells = [_cell(value, column, number or _number) for column, value in pairs]
            rows.append(Row(cells, attributes({column.name: value for column, value in pairs})))
        return cls(caption, columns, rows, name, csv_link(frame))


def csv_link(frame: pd.DataFrame) -> str:
    """Return a table as CSV inside an address (``data:``), which needs neither a network nor a script."""
    return "data:text/csv;charset=utf-8," + quote(frame.to_csv(index=False), errors="replace")


def _is_number(column: pd.Series) -> bool:
    types = pd.api.types
    return bool(types.is_numeric_dtype(column) and not types.is_bool_dtype(column))


def _cell(value: Any, column: Column, number: Callable[[Any], str]) -> Cell:
    if value is None:
        return Cell("", "" if column.number else None)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Cell(number(value), repr(value))
    return Cell(str(value))


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
