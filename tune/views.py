"""The table of a sweep in narrow parts, for people: what a group of trials reached, then trial by trial."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tune.config import SweepConfig
from tune.records import CELLS_SEEN
from tune.shown import short, short_name

GROUPED_BY = ("model.pathway.masking", "model.pathway.d_embed", "model.encoder.kind")
"""The paper's question: masking, embedding, encoder."""
NOTHING = "–"
"""What stands for a setting that a trial does not have, such as the embedding of masking linear."""


@dataclass(frozen=True)
class Views:
    """Parts of a table, whose headings are short names of settings.

    Attributes
    ----------
    groups
        One row per combination of masking, embedding and encoder, in the order of the space, with its best
        trial; None if at most one of them varies.
    trials
        One row per trial, the best first: what it was and what it reached.
    details
        The other columns of the same trials, after ``rank`` and ``trial``.
    """

    groups: pd.DataFrame | None
    trials: pd.DataFrame
    details: pd.DataFrame


def views_of(rows: pd.DataFrame, config: SweepConfig) -> Views:
    """Arrange the table of :func:`tune.table.rows_of`; a setting that depends on another is joined to it."""
    grouped = [key for key in GROUPED_BY if key in config.parameters]
    first = grouped or list(config.parameters)[:3]
    settings = {key: _joined(rows, key, config) for key in config.parameters}
    names = {key: "/".join(map(short_name, [key, *_derived(key, config)])) for key in config.parameters}
    start = rows[["rank", "trial"]]
    trials = pd.concat(
        [
            rows[["rank", "trial", "status"]],
            *(settings[key].rename(names[key]) for key in first),
            rows[[config.metric, "epochs", "seconds"]],
        ],
        axis=1,
    )
    rest = [key for key in config.parameters if key not in first and rows[key].notna().any()]
    scores = [name for name in rows.columns if name[:4] == "val_" and name != config.metric]
    details = pd.concat(
        [start, *(settings[key].rename(names[key]) for key in rest), rows[[*scores, CELLS_SEEN, "loss"]]],
        axis=1,
    )
    groups = _groups(trials, [names[key] for key in grouped], config) if len(grouped) > 1 else None
    return Views(groups, trials, details)


def _derived(key: str, config: SweepConfig) -> list[str]:
    return [name for name, derived in config.derived.items() if derived.key == key]


def _joined(rows: pd.DataFrame, key: str, config: SweepConfig) -> pd.Series:
    """A parameter, with what is derived from it: 64 and 4 heads are 64/4."""
    more = _derived(key, config)
    if not more:
        return rows[key]
    parts = rows[[key, *more]].itertuples(index=False, name=None)
    joined = [None if pd.isna(values[0]) else "/".join(map(short, values)) for values in parts]
    return pd.Series(joined, rows.index, "string")


def _groups(trials: pd.DataFrame, names: Sequence[str], config: SweepConfig) -> pd.DataFrame:
    """What the trials of each combination reached; combinations are in the order of the space's choices."""
    known = trials.assign(**{name: trials[name].astype("string").fillna(NOTHING) for name in names})
    order = {key: i for i, key in enumerate(_combinations(config, len(names)))}
    found: list[dict[str, Any]] = []
    for key, part in known.groupby(list(names), sort=False):
        best = part.iloc[0]  # the best come first
        found.append(
            dict(zip(names, key, strict=True))
            | {"trials": len(part), "finished": int((part["status"] == "finished").sum())}
            | {config.metric: best[config.metric], "trial": best["trial"], "seconds": best["seconds"]}
        )
    found.sort(key=lambda row: order.get(tuple(str(row[name]) for name in names), len(order)))
    return pd.DataFrame(found)


def _combinations(config: SweepConfig, n: int) -> list[tuple[str, ...]]:
    """The values of all combinations as they are shown."""
    keys = [key for key in GROUPED_BY if key in config.parameters][:n]
    shown = []
    for point in config.grid(keys):
        settings = config.settings(point)
        parts = [
            "/".join(short(settings[each]) for each in (key, *_derived(key, config)))
            if key in point
            else NOTHING
            for key in keys
        ]
        shown.append(tuple(parts))
    return shown
