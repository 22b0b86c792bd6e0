"""The table of a sweep: on the terminal, and as CSV, Parquet, Markdown and HTML; and the best settings."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table

from tadvae.base.filesystem import Location
from tadvae.model.card import escape_markdown
from tune.config import SweepConfig
from tune.page import page
from tune.records import CELLS_SEEN, TrialRecord, best_of
from tune.shown import short
from tune.sweep import best_yaml
from tune.views import views_of

WIDTH = 100
"""Characters of a line on the terminal."""
FILES = {
    "csv": "trials.csv",
    "parquet": "trials.parquet",
    "markdown": "trials.md",
    "html": "sweep.html",
    "yaml": "best.yaml",
}


def rows_of(records: Sequence[TrialRecord], config: SweepConfig) -> pd.DataFrame:
    """One row per trial, the best first.

    Returns
    -------
    Columns: ``rank`` (among trials with a value), ``trial``, ``status``, one per parameter and derived
    setting (missing if its condition did not hold), the metrics of the trial's last validation, ``epochs``,
    ``cells_seen``, ``loss`` (of the last step), ``seconds``, ``reason``. Finished trials come before stopped
    and running ones, which trained for a shorter time; failed trials are last.
    """
    order = {"finished": 0, "stopped": 1, "running": 1, "failed": 2}
    sign = -1.0 if config.mode == "max" else 1.0

    def key(record: TrialRecord) -> tuple[int, float, int]:
        value = record.value(config.metric)
        known = value is not None and math.isfinite(value)
        return order[record.status], sign * value if known and value is not None else math.inf, record.number

    metrics = sorted(
        {name for record in records for point in record.curve for name in point if name[:4] == "val_"}
    )
    metrics = [config.metric, *(name for name in metrics if name != config.metric)]
    varied = [*config.parameters, *config.derived]
    rows = []
    for record in sorted(records, key=key):
        last: dict[str, float] = record.curve[-1] if record.curve else {}
        row: dict[str, Any] = {"rank": None, "trial": record.number, "status": record.status}
        row |= {name: record.settings.get(name) for name in varied}
        row |= {name: last.get(name) for name in metrics}
        row["epochs"] = int(last["epoch"]) + 1 if last else 0
        row[CELLS_SEEN] = int(last.get(CELLS_SEEN, 0))
        row |= {"loss": last.get("loss"), "seconds": record.seconds, "reason": record.reason}
        rows.append(row)
    frame = pd.DataFrame(rows)
    for name in varied:  # one type per column; the values of a choice may have several
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(str, na_action="ignore").astype("string")
        elif all(isinstance(record.settings.get(name, 0), int) for record in records):
            frame[name] = frame[name].astype("Int64")
    for name in [*metrics, "loss"]:
        frame[name] = frame[name].astype("float64")
    ranked = frame[config.metric].notna() & (frame["status"] != "failed")
    frame["rank"] = ranked.cumsum().where(ranked).astype("Int64")
    return frame


def for_terminal(rows: pd.DataFrame, config: SweepConfig, name: str, width: int = WIDTH) -> list[Table | str]:
    """Tables and lines for the terminal; a wide table goes on below, so that nothing is cut.

    Parameters
    ----------
    width
        Of the terminal, in characters; more than :data:`WIDTH` are not used.
    """
    sign = "↑" if config.mode == "max" else "↓"
    views, width = views_of(rows, config), min(width, WIDTH)
    parts: list[Table | str] = []
    if views.groups is not None:
        names = list(views.groups.columns[: list(views.groups.columns).index("trials")])
        title = f"best of {', '.join(names)} by {config.metric} {sign}"
        parts += _tables(views.groups, title, width, repeated=len(names))
    parts += _tables(views.trials, f"{name}: {len(rows)} trials by {config.metric} {sign}", width)
    parts += _tables(views.details, "the same trials, other settings and scores", width)
    for reason, trials in rows[rows["reason"].ne("")].groupby("reason", sort=False)["trial"]:
        parts.append(f"{', '.join(f'{number:04d}' for number in trials)}: {reason}")
    return parts


def _tables(frame: pd.DataFrame, title: str, width: int, repeated: int = 2) -> list[Table | str]:
    """A table in as many parts as the width asks for; its first columns are repeated in each part."""
    columns = list(frame.columns)
    found: list[Table | str] = []
    shown = columns[: repeated + 1]
    for column in [*columns[repeated + 1 :], None]:
        wider = _table(frame, [*shown, column]) if column is not None else None
        if wider is not None and Console(width=10_000).measure(wider).maximum <= width:
            shown.append(column)
            continue
        # not the title of the table, which would be as narrow as the table
        found += [title if not found else f"{title}, continued", _table(frame, shown)]
        shown = [*columns[:repeated], column]
    return found


def _table(frame: pd.DataFrame, columns: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        side: JustifyMethod = "right" if pd.api.types.is_numeric_dtype(frame[column]) else "left"
        table.add_column(column, justify=side, overflow="fold", min_width=len(column), max_width=60)
    for row in frame.to_dict("records"):
        best = row.get("rank") == 1
        table.add_row(*(text(row[column]) for column in columns), style="bold" if best else None)
    return table


def text(value: Any) -> str:
    """Format a table cell; a missing value is the empty string."""
    return "" if value is None or pd.isna(value) else short(value)


def as_markdown(rows: pd.DataFrame) -> str:
    """The table in Markdown."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(escape_markdown(cell) for cell in cells) + " |\n"

    body = "".join(line([text(value) for value in row]) for row in rows.itertuples(index=False, name=None))
    return line(list(rows.columns)) + line(["---"] * len(rows.columns)) + body


def write_report(
    folder: Location, sweep: str, config: SweepConfig, records: Sequence[TrialRecord], formats: Sequence[str]
) -> list[Location]:
    """Write files of the given formats into a folder, and return their locations."""
    rows = rows_of(records, config)
    best = best_of(list(records), config)

    def parquet() -> bytes:
        buffer = io.BytesIO()
        rows.to_parquet(buffer, index=False)
        return buffer.getvalue()

    makers: dict[str, Callable[[], bytes]] = {
        "csv": lambda: rows.to_csv(index=False).encode(),
        "parquet": parquet,
        "markdown": lambda: as_markdown(rows).encode(),
        "html": lambda: page(sweep, config, records, rows, best_yaml(config, best) if best else "").encode(),
        "yaml": lambda: best_yaml(config, best).encode() if best else b"",
    }
    written = []
    folder.make_folder()
    for name in formats:
        content = makers[name]()
        if content:
            (folder / FILES[name]).write_bytes(content)
            written.append(folder / FILES[name])
    return written
