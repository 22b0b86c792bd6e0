"""``tadvae inspect --qc``: the quality control of a store as tables, a page, and files."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich.table import Table

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.report.screen_qc_page import answer, findings, screen_qc_page
from tadvae.screen_qc.check import ScreenQc, check_screens
from tadvae.screen_qc.thresholds import QcConfig
from tadvae.store.reader import Store

TABLES = ("perturbations", "targets", "contexts", "datasets")
"""Tables of :class:`tadvae.screen_qc.check.ScreenQc`, each a CSV file; ``cells.csv`` is one more."""
SHOWN = 20
"""Rows of a table on the terminal."""


def quality_control(
    place: str, config: QcConfig, page: str | None = None, tables: str | None = None
) -> ScreenQc:
    """Check a store; write a page, and a folder of CSV files, where they are named.

    Raises
    ------
    UserError
        If a file or folder exists, or the store cannot be read.
    """
    if page is not None and (Location.of(page).exists() or not page.endswith(".html")):
        raise UserError(f"{page}: expected the name of a new .html file; name another with --out.")
    if tables is not None and Location.of(tables).exists():
        raise UserError(f"{tables}: already exists; name another folder with --tables.")
    store = Store.open(place)
    found = check_screens(store, config)
    if page is not None:
        Location.of(page).write_text(screen_qc_page(found, config, Location.of(place).name))
    if tables is not None:
        folder = Location.of(tables)
        folder.make_folder()
        for name in TABLES:
            (folder / f"{name}.csv").write_text(getattr(found, name).to_csv(index=False))
        with (
            (folder / "cells.csv").replacing() as partial,
            partial.filesystem.open_output_stream(partial.path) as file,
        ):
            for i, part in enumerate(_cells(store, found)):
                file.write(part.to_csv(index=False, header=i == 0).encode())
    return found


def _cells(store: Store, found: ScreenQc) -> Iterator[pd.DataFrame]:
    """Every cell with its probability of being perturbed, some at a time, in stored order."""
    for dataset, probability in found.probability.items():
        at = 0
        for read in store.row_groups(store.bags[store.bags["dataset"] == dataset]):
            table, _ = store.read_bags(*read, ("cell_id", "context", "perturbation"))
            frame = table.to_pandas().astype(str)
            frame.insert(0, "dataset", store.manifest.datasets[dataset].name)
            frame["perturbed"] = probability[at : at + len(frame)]
            at += len(frame)
            yield frame


def as_json(found: ScreenQc, config: QcConfig) -> dict[str, Any]:
    """What was found as plain values; missing numbers are None."""
    tables = {name: json.loads(getattr(found, name).to_json(orient="records")) for name in TABLES}
    return {"answer": answer(found), "findings": findings(found, config), **tables}


def as_tables(found: ScreenQc) -> list[Table]:
    """The tables for the terminal, the rows that need a look first."""
    ordered = {
        "perturbations": found.perturbations.sort_values("escaped", ascending=False, kind="stable"),
        "targets": found.targets.sort_values("q", ascending=False, kind="stable"),
        "contexts": found.contexts.sort_values("control_cells", kind="stable"),
        "datasets": found.datasets,
    }
    return [_table(frame, name) for name, frame in ordered.items() if len(frame)]


def _table(frame: pd.DataFrame, name: str) -> Table:
    frame = frame.dropna(axis="columns", how="all")
    title = name if len(frame) <= SHOWN else f"{name}: {SHOWN} of {len(frame):,}"
    table = Table(title=title, title_justify="left")
    numbers = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame.columns]
    for column, number in zip(frame.columns, numbers, strict=True):
        table.add_column(str(column).replace("_", " "), justify="right" if number else "left")
    for row in frame.head(SHOWN).itertuples(index=False):
        table.add_row(*(_text(value) for value in row))
    return table


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
