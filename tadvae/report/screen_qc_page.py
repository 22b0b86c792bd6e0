"""The page of ``tadvae inspect --qc``: the answer in a sentence, two charts, and the tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from tadvae.report.charts import COLOURS, Scale, axes, cut, element, hover, line, svg, text
from tadvae.report.rendering import Table, environment
from tadvae.screen_qc.check import NO_CHANGE, ScreenQc
from tadvae.screen_qc.thresholds import QcConfig

WIDTH, LEFT, HIGH = 700, 210, 20
"""Width of a chart, that of its labels, and the height of a row, in pixels."""
DRAWN, SHOWN = 40, 500
"""Rows in a chart, and rows in a table of the page; the others are in the CSV files."""
_STRONG = 0.3
"""Cramér's V from which batches and perturbations are called associated (a medium effect of Cohen 1988)."""


def screen_qc_page(qc: ScreenQc, config: QcConfig, name: str) -> str:
    """Return the page as text; ``name`` is what the store is called."""
    tables = [
        Table.of(_readable(frame).head(SHOWN), f"{title} ({len(frame):,})", key)
        for title, key, frame in (
            ("Perturbations", "perturbations", qc.perturbations),
            ("Expression of the targets themselves", "targets", qc.targets),
            ("Contexts", "contexts", qc.contexts),
            ("Datasets", "datasets", qc.datasets),
        )
        if len(frame)
    ]
    return (
        environment()
        .get_template("screen_qc.html.j2")
        .render(
            title=f"Quality control of {name}",
            answer=answer(qc),
            findings=findings(qc, config),
            targets_chart=_targets_chart(qc.targets),
            escaped_chart=_escaped_chart(qc.perturbations),
            tables=tables,
            shown=SHOWN,
        )
    )


def answer(qc: ScreenQc) -> str:
    """What was found, in one sentence."""
    if qc.perturbations.empty:
        return "The store has no perturbed single cells to check."
    parts = [f"{len(qc.perturbations):,} perturbations in {len(qc.contexts)} {_contexts(len(qc.contexts))}"]
    signed = qc.targets[qc.targets["verdict"].isin(_EXPECTED) | (qc.targets["verdict"] == NO_CHANGE)]
    if len(qc.targets):
        good = int(qc.targets["verdict"].isin(_EXPECTED).sum())
        bad = int(qc.targets["verdict"].str.endswith("not as expected").sum())
        if good or bad:
            parts.append(f"{good:,} of {len(qc.targets):,} measured targets change as expected")
        else:
            parts.append(f"{len(qc.targets) - len(signed):,} of {len(qc.targets):,} measured targets change")
    known = qc.perturbations.dropna(subset=["escaped"])
    if len(known):
        share = float(np.average(known["escaped"], weights=known["cells"]))
        parts.append(f"{share:.0%} of the cells of {len(known):,} perturbations look unperturbed")
    else:
        parts.append("too few genes respond to find escaped cells")
    without = qc.contexts[(qc.contexts["control_cells"] == 0) & (qc.contexts["perturbed_cells"] > 0)]
    if len(without):
        parts.append(f"{len(without)} {_contexts(len(without))} without control cells")
    return "; ".join(parts) + "."


_EXPECTED = ("lower, as expected", "higher, as expected")


def _contexts(n: int) -> str:
    return "context" if n == 1 else "contexts"


def findings(qc: ScreenQc, config: QcConfig) -> list[str]:
    """What needs a look, one sentence each; empty if nothing does."""
    table, found = qc.perturbations, []

    def add(rows: pd.DataFrame, words: str) -> None:
        if len(rows):
            names = [f"{row.perturbation} ({row.context})" for row in rows.head(5).itertuples()]
            more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
            found.append(f"{len(rows):,} perturbations {words}: {', '.join(names)}{more}.")

    add(table[table["cells"] < config.min_cells], f"with fewer than {config.min_cells} cells")
    add(table[table["guides"] == 1], "with one guide only")
    several = table["dataset"].map(qc.datasets.set_index("dataset")["batches"]) > 1
    add(table[several & (table["batches"] == 1)], "in one batch only")
    add(table[table["without_control"] > 0], "with cells in batches without control cells")
    add(table[table["escaped"] > 0.5], "of which most cells look unperturbed")
    wrong = qc.targets[qc.targets["verdict"].str.endswith("not as expected")]
    add(wrong, "whose own target changes in the wrong direction")
    for row in qc.contexts[(qc.contexts["control_cells"] == 0)].itertuples():
        found.append(f"Context {row.context} of {row.dataset} has no control cells.")
    for row in qc.datasets.itertuples():
        if row.cramers_v >= _STRONG:
            found.append(
                f"Batches and perturbations of {row.dataset} are associated (Cramér's V {row.cramers_v:.2f})."
            )
        if row.several_guides > 0:
            found.append(f"{row.several_guides:.1%} of the cells of {row.dataset} have several guides.")
        if row.left_out:
            found.append(f"Left out of {row.dataset} as its spec asks: {row.left_out}.")
    return found


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Column names with spaces; columns without any value, or with one dataset or context, are left out."""
    frame = frame.dropna(axis="columns", how="all")
    one = [name for name in ("dataset", "context") if name in frame and frame[name].nunique() == 1]
    frame = frame.drop(columns=one if len(frame) > 1 else [])
    return frame.rename(columns={name: str(name).replace("_", " ") for name in frame.columns})


def _targets_chart(targets: pd.DataFrame) -> Markup | None:
    """Fold changes of the targets with the strongest evidence, with their intervals."""
    rows = targets.sort_values("q", kind="stable").head(DRAWN)
    if rows.empty:
        return None
    labels = _labels(targets, rows, "target")
    words = [
        f"{row.target} under {row.perturbation} in {row.context}: log2 fold change "
        f"{row.log2_fold_change:.2f} [{row.low:.2f}, {row.high:.2f}], q {row.q:.2g}; {row.verdict}"
        for row in rows.itertuples()
    ]
    return _rows(
        "own-expression",
        "Expression of the targets themselves",
        "log2 fold change against control cells",
        labels,
        words,
        rows[["log2_fold_change", "low", "high"]].to_numpy(np.float64),
    )


def _escaped_chart(perturbations: pd.DataFrame) -> Markup | None:
    """Expected shares of escaped cells, the largest first."""
    rows = perturbations.dropna(subset=["escaped"]).sort_values("escaped", ascending=False, kind="stable")
    rows = rows.head(DRAWN)
    if rows.empty:
        return None
    labels = _labels(perturbations, rows, "perturbation")
    words = [
        f"{row.perturbation} in {row.context}: {row.escaped:.0%} of {row.cells:,} cells look unperturbed, by "
        f"{row.responding_genes:,} responding genes"
        for row in rows.itertuples()
    ]
    shares = rows["escaped"].to_numpy(np.float64)
    ends = np.stack([shares, np.zeros_like(shares), shares], axis=1)
    return _rows(
        "escaped-cells", "Escaped cells", "share of cells that look unperturbed", labels, words, ends
    )


def _labels(table: pd.DataFrame, rows: pd.DataFrame, column: str) -> list[str]:
    """Names of rows, with the context if the table has several."""
    names = [str(name) for name in rows[column]]
    if table["context"].nunique() == 1:
        return names
    return [f"{name} ({context})" for name, context in zip(names, rows["context"], strict=True)]


def _rows(
    name: str, title: str, unit: str, labels: Sequence[str], words: Sequence[str], values: np.ndarray
) -> Markup:
    """One row per label: a dot and the line between two ends; ``values`` (rows, 3): dot, low, high."""
    bottom = 10 + HIGH * len(labels)
    x = Scale.over([0.0, *values[np.isfinite(values)]], LEFT, WIDTH - 20)
    y = Scale(0.0, 1.0, bottom, 10)
    parts = [*axes(x, y, unit)[:2], line(x(0.0), 10, x(0.0), bottom, "guide")]
    for anchor, tick in zip(("start", "middle", "end"), x.ticks(), strict=True):
        parts.append(text(x(tick), bottom + 14, f"{tick:.3g}", anchor))
    parts.append(text((x.start + x.end) / 2, bottom + 30, unit, "middle"))
    for i, (label, said, (dot, low, high)) in enumerate(zip(labels, words, values.tolist(), strict=True)):
        middle = 10 + HIGH * (i + 0.5)
        interval = (
            line(x(low), middle, x(high), middle, "interval") if np.isfinite([low, high]).all() else None
        )
        parts.append(
            element(
                "g",
                hover(said),
                text(LEFT - 10, middle + 4, cut(label, 26), "end"),
                interval,
                element("circle", cx=x(dot), cy=middle, r=4, fill=COLOURS[0]),
            )
        )
    return svg(name, title, f"{title}: {unit}, {len(labels)} rows.", parts, WIDTH, bottom + 40)
