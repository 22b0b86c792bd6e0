"""The table of a sweep: on the terminal, and as CSV, Parquet, Markdown and HTML; and the best settings."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from tadvae.base.filesystem import Location
from tadvae.model.card import escape_markdown
from tune.config import SweepConfig
from tune.journal import short
from tune.page import page
from tune.records import CELLS_SEEN, TrialRecord, best_of
from tune.sweep import best_yaml

FIXED = ("rank", "trial", "status")
ENDS = ("epochs", CELLS_SEEN, "loss", "seconds", "reason")
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


def as_rich(rows: pd.DataFrame, config: SweepConfig, name: str) -> Table:
    """The table for the terminal, with complete reasons."""
    sign = "↑" if config.mode == "max" else "↓"
    table = Table(title=f"{name}: {len(rows)} trials by {config.metric} {sign}", title_justify="left")
    varied = [key for key in config.parameters if rows[key].notna().any()]
    columns = [*FIXED, *varied, config.metric, "epochs", "seconds", "reason"]
    for column in columns:
        number = pd.api.types.is_numeric_dtype(rows[column])
        heading = (
            column.rsplit(".", 1)[-1] if column.rsplit(".", 1)[-1] != "high" else column.rsplit(".", 2)[-2]
        )
        table.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in rows.to_dict("records"):
        table.add_row(*(text(row[column]) for column in columns), style="bold" if row["rank"] == 1 else None)
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
