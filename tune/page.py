"""The sweep page as HTML: figures, table and best settings; it loads nothing.

This module collects what ``templates/sweep.html.j2`` lays out.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tadvae.report.rendering import Table, environment
from tune.answer import answer
from tune.config import SweepConfig
from tune.figures import importance_bars, learning_curves, legend, parallel_coordinates
from tune.importance import importances
from tune.records import TrialRecord
from tune.shown import short
from tune.views import views_of

GROUPS = "The best trial of each combination, in the order of the search space"


def page(
    sweep: str, config: SweepConfig, records: Sequence[TrialRecord], rows: pd.DataFrame, best_yaml: str
) -> str:
    """Return the page as text.

    Parameters
    ----------
    rows
        From :func:`tune.table.rows_of`.
    best_yaml
        Settings of the best trial; empty where no trial has a value.
    """
    by_status = ", ".join(f"{n} {name}" for name, n in rows["status"].value_counts().items())
    shares, views = importances(records, config), views_of(rows, config)
    return (
        environment("tune")
        .get_template("sweep.html.j2")
        .render(
            title=f"Sweep {sweep}",
            counts={"total": len(records), "by_status": by_status},
            metric=config.metric,
            better="higher" if config.mode == "max" else "lower",
            answer=answer(records, config),
            colours=legend(config),
            parallel_coordinates=parallel_coordinates(records, config),
            learning_curves=learning_curves(records, config),
            importance=importance_bars(shares, config) if shares else None,
            conditional=any(config.parameters[key].when for key in shares),
            groups=None if views.groups is None else Table.of(views.groups, GROUPS, number=short),
            trials=Table.of(
                views.trials.assign(reason=rows["reason"]),
                "Trials, the best first",
                attributes=_attributes,
                number=short,
            ),
            details=Table.of(views.details, "Other settings and scores of the same trials", number=short),
            best_yaml=best_yaml,
        )
    )


def _attributes(row: dict[str, Any]) -> dict[str, str]:
    return {"class": "best"} if row["rank"] == 1 else {}
