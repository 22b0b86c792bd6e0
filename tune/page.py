"""One HTML page for a sweep: figures, table, best settings; it loads nothing."""

from collections.abc import Sequence
from html import escape

import pandas as pd

from tune.config import SweepConfig
from tune.figures import importance_bars, learning_curves, legend, parallel_coordinates
from tune.importance import importances
from tune.journal import short
from tune.records import TrialRecord, best_of

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;
  max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}
svg{width:100%;height:auto;font:12px system-ui,sans-serif;fill:#1a1a1a}
.axis{stroke:#595959;stroke-width:1}.strong{font-weight:600}
.trial{fill:none;stroke-width:1.8;stroke-opacity:.85}.trial:hover{stroke-width:4;stroke-opacity:1}
.legend span{margin-right:1em;white-space:nowrap}.swatch{display:inline-block;
  width:1em;height:1em;margin-right:.3em!important;vertical-align:-.12em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.3em .6em;border-bottom:1px solid #bbb;text-align:left;vertical-align:top}
td.number,th.number{text-align:right}tr.best{font-weight:700;background:#eef4fb}
pre{background:#f4f4f4;padding:1em;overflow-x:auto}
"""


def page(
    sweep: str, config: SweepConfig, records: Sequence[TrialRecord], rows: pd.DataFrame, best_yaml: str
) -> str:
    """The page as text.

    Parameters
    ----------
    rows
        From :func:`tune.table.rows_of`.
    best_yaml
        Settings of the best trial; empty where no trial has a value.
    """
    best = best_of(list(records), config)
    counts = ", ".join(f"{n} {name}" for name, n in rows["status"].value_counts().items())
    more = "higher" if config.mode == "max" else "lower"
    head = f"{len(records)} trials ({counts}), compared by {config.metric} ({more} is better)."
    if best is not None:
        head += f" Best: trial {best.number:04d} with {best.value(config.metric):.4f}."
    shares = importances(records, config)
    conditional = any(config.parameters[key].when for key in shares)
    note = " * among the trials where it was set." if conditional else ""
    bars = importance_bars(shares, config) if shares else "<p>Too few trials, or too alike, to tell.</p>"
    settings = f"<pre>{escape(best_yaml)}</pre>" if best_yaml else "<p>No trial has a value yet.</p>"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Sweep {escape(sweep)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>Sweep {escape(sweep)}</h1><p>{escape(head)}</p>"
        f"<h2>Parallel coordinates</h2>{legend(config)}{parallel_coordinates(records, config)}"
        f"<h2>Learning curves</h2>{legend(config)}{learning_curves(records, config)}"
        "<h2>Importance of parameters</h2><p>How much each decides whether a trial is among the best, as "
        "shares (Optuna's PED-ANOVA, on the last validation of every trial that has one; few trials say "
        f"little).{note}</p>{bars}"
        f'<h2>Trials</h2><div class="wide" tabindex="0">{_table(rows)}</div>'
        f"<h2>Best settings</h2><p>For <code>tadvae train STORE --config best.yaml</code>.</p>{settings}"
        "</main></body></html>\n"
    )


def _table(rows: pd.DataFrame) -> str:
    numeric = {name: pd.api.types.is_numeric_dtype(rows[name]) for name in rows.columns}

    def cell(tag: str, name: str, words: str) -> str:
        kind = ' class="number"' if numeric[name] else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{kind}{scope}>{escape(words)}</{tag}>"

    head = "".join(cell("th", name, name) for name in rows.columns)
    body = ""
    for row in rows.to_dict("records"):
        cells = "".join(
            cell("td", str(name), "" if value is None or pd.isna(value) else short(value))
            for name, value in row.items()
        )
        body += f'<tr class="best">{cells}</tr>' if row["rank"] == 1 else f"<tr>{cells}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
