"""The report page as HTML: it loads nothing, and its tables sort and filter without a library.

This module collects what each section shows; ``templates/_sections.html.j2`` lays it out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tadvae.evaluation.evaluate import CEILING, COVERAGE, METHOD, NULL
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.report.data import Graph, Report
from tadvae.report.figures import arc_diagram, gains, heat_map, learning_curves, scatter, shown_pathways
from tadvae.report.learned import first_edges
from tadvae.report.rendering import Table, csv_link, environment
from tadvae.report.verdict import table, verdict

SHOWN_EDGES = 200
OF_PROFILES = ("pearson_delta", "pearson_delta_de", "l2", "rmse", "cosine_logfc", "de_overlap")
Values = dict[str, Any]
"""What the macro of a section takes, by the names of its parameters."""


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    title
    layout
        The macro in ``_sections.html.j2``.
    collect
        From a report to the arguments of the macro; None where the report has nothing to show.
    """

    title: str
    layout: str
    collect: Callable[[Report], Values | None]


def page(report: Report) -> str:
    """Return the page as text."""
    shown = []
    for section in SECTIONS:
        values = section.collect(report)
        if values is not None:
            shown.append((section, values))
    template = environment().get_template("report.html.j2")
    return template.render(
        title=f"Run {report.name}", answer=answer(report), notes=report.notes, sections=shown
    )


def answer(report: Report) -> str:
    """Return what the page says first: whether the model is better than the baselines."""
    if report.against:
        return verdict(report.against)
    if not report.asked:
        return "Nothing was held out in this run, so it cannot be compared with baselines."
    return "This run was not compared with baselines yet."


def _against(report: Report) -> Values | None:
    if not report.against:
        return None
    shown = Table.of(table(report.against), "The model and the best baseline of each metric", "against")
    return {
        "chart": gains(report.against),
        "shown": shown,
        "groups": max(each.n for each in report.against),
        "several": len({each.category for each in report.against}) > 1,
    }


def _data(report: Report) -> Values:
    caption = "Datasets; held out: groups of one perturbation in one context"
    tables = [Table.of(report.datasets, caption)]
    names = report.datasets["dataset"].tolist()
    if len(names) > 1:
        for what, shared in (("Genes", report.shared_genes), ("Targets", report.shared_targets)):
            frame = pd.DataFrame(shared, columns=names)
            frame.insert(0, "dataset", names, allow_duplicates=True)
            tables.append(Table.of(frame, f"{what} in common"))
    return {"facts": report.about, "tables": tables}


def _curves(report: Report) -> Values | None:
    return {"chart": learning_curves(report.curves)} if report.curves else None


@dataclass(frozen=True)
class Score:
    """The mean of a metric with its interval; ``best`` of the methods that compete."""

    mean: float
    low: float
    high: float
    best: bool


@dataclass(frozen=True)
class ScoreTable:
    """Methods by metrics.

    Attributes
    ----------
    caption
    metrics
        Names, with an arrow for the direction that is better.
    rows
        A method and its scores, None where it has none.
    csv
        The same as CSV, see :func:`tadvae.report.rendering.csv_link`.
    """

    caption: str
    metrics: list[str]
    rows: list[tuple[str, list[Score | None]]]
    csv: str


def _scores(report: Report) -> Values | None:
    if report.scores is None:
        return None
    categories = report.scores["category"].unique().tolist()
    shown = categories if len(categories) > 2 else categories[:1]  # one category is all there is
    tables = []
    for category in shown:
        scores = report.scores[report.scores["category"] == category]
        metrics = scores["metric"].unique().tolist()
        # Two tables, since one of all metrics is wider than a page.
        for what, chosen in (
            ("mean profiles", [metric for metric in OF_PROFILES if metric in metrics]),
            ("which perturbation, which cells", [m for m in metrics if m not in OF_PROFILES]),
        ):
            if chosen:
                tables.append(_score_table(f"{category}, {what}", scores, chosen))
    return {"tables": tables}


def _score_table(title: str, scores: pd.DataFrame, metrics: list[str]) -> ScoreTable:
    best = {}
    for metric in metrics:
        rivals = scores[(scores["metric"] == metric) & ~scores["method"].isin([CEILING, NULL])]
        if metric in HIGHER_IS_BETTER and rivals["mean"].notna().any():
            best[metric] = rivals["mean"].max() if HIGHER_IS_BETTER[metric] else rivals["mean"].min()
    rows = []
    for method, part in scores.groupby("method", sort=False):
        by_metric = part.set_index("metric")[["mean", "low", "high"]].to_dict("index")
        found: list[Score | None] = []
        for metric in metrics:
            values = by_metric.get(metric)
            if values is None or np.isnan(values["mean"]):
                found.append(None)
                continue
            competes = method not in (CEILING, NULL)
            found.append(Score(**values, best=competes and values["mean"] == best.get(metric)))
        if any(score is not None for score in found):  # a ceiling of profiles has no distances, for example
            rows.append((str(method), found))
    arrows = {m: (" ↑" if HIGHER_IS_BETTER[m] else " ↓") if m in HIGHER_IS_BETTER else "" for m in metrics}
    n = int(scores["n"].max())
    caption = f"{title}: {n} held-out group{'' if n == 1 else 's'}"
    csv = csv_link(scores[scores["metric"].isin(metrics)])
    return ScoreTable(caption, [metric + arrows[metric] for metric in metrics], rows, csv)


def _intervals(report: Report) -> Values | None:
    if report.calibration is None:
        return None
    table = None
    if report.scores is not None:
        own = report.scores[report.scores["method"].eq(METHOD) & report.scores["metric"].eq(COVERAGE)]
        if len(own):
            shown = own[["category", "n", "mean", "low", "high"]]
            table = Table.of(shown, "Share of genes inside their interval")
    return {"calibration": report.calibration, "shown": table}


def _groups(report: Report) -> Values | None:
    if report.groups.empty:
        return None

    def attributes(row: dict[str, Any]) -> dict[str, str]:
        key = _key(row["dataset"], row["context"], row["perturbation"])
        return {"data-group": key, "data-category": row["category"]}

    caption = "Scores of the model; a click on a heading sorts"
    table = Table.of(report.groups, caption, "groups", attributes=attributes)
    return {"categories": sorted(report.groups["category"].unique()), "shown": table}


def _comparisons(report: Report) -> Values | None:
    shown = [
        {"key": _key(c.dataset, c.context, c.perturbation), "group": c, "chart": scatter(c, i)}
        for i, c in enumerate(report.comparisons)
    ]
    return {"comparisons": shown, "asked": report.asked} if shown else None


def _activity(report: Report) -> Values | None:
    if report.activity is None:
        return None
    shown = shown_pathways(report.activity).rename_axis("pathway").reset_index()
    long = shown.melt("pathway", var_name="perturbation", value_name="change")
    table = Table.of(long, "Change of activity", "activity-table")
    return {"chart": heat_map(report.activity), "shown": table}


def _factors(report: Report) -> Values:
    return _graph(report.factors, "factors", "Latent factors", "Effects of factors on each other")


def _causal(report: Report) -> Values:
    if isinstance(report.causal, str):
        return {"missing": report.causal}
    return _graph(report.causal, "causal", "Causal graph", "Direct effects, in units of a factor's own")


def _graph(graph: Graph, name: str, title: str, caption: str) -> Values:
    """Return the part of a graph that is shown first, and the whole of it to unfold."""
    first, rule = first_edges(graph)
    return {
        "rule": rule,
        "chart": arc_diagram(first, name, title) if len(first.edges) else None,
        "whole": arc_diagram(graph, f"{name}-all", title) if len(first.edges) < len(graph.edges) else None,
        "shown": _edges(graph, caption, f"{name}-edges"),
    }


def _edges(graph: Graph, caption: str, name: str) -> Table | None:
    """Return the edges of a graph, with the share of seeds that have them where there are several."""
    if graph.edges.empty:
        return None
    frame = pd.DataFrame(
        {
            "cause": [graph.names[k] for k in graph.edges["source"]],
            "effect on": [graph.names[k] for k in graph.edges["target"]],
            "effect": graph.edges["effect"],
        }
    )
    if "share" in graph.edges:
        frame["share of seeds"] = graph.edges["share"]
    more = f", the {SHOWN_EDGES} largest of {len(frame)}" if len(frame) > SHOWN_EDGES else ""
    return Table.of(frame.head(SHOWN_EDGES), caption + more, name)


def _mask(report: Report) -> Values | None:
    if report.mask is None:
        return None
    counts = report.mask.edges["change"].value_counts()
    edges = report.mask.edges.head(SHOWN_EDGES)
    return {
        "mask": report.mask,
        "added": int(counts.get("added", 0)),
        "removed": int(counts.get("removed", 0)),
        "at_most": SHOWN_EDGES,
        "shown": Table.of(edges, "Edges", "mask") if len(edges) else None,
    }


def _commands(report: Report) -> Values:
    return {"commands": report.commands, "config": report.config}


def _key(dataset: str, context: str, perturbation: str) -> str:
    return f"{perturbation} · {dataset} · {context}"


SECTIONS = (
    Section("Is it better than the baselines?", "against", _against),
    Section("What it was trained on", "data", _data),
    Section("Learning curves", "curves", _curves),
    Section("Comparison with baselines", "scores", _scores),
    Section("Intervals", "intervals", _intervals),
    Section("Held-out perturbations", "groups", _groups),
    Section("Predicted and observed change", "comparisons", _comparisons),
    Section("Pathway activity of predicted perturbations", "activity", _activity),
    Section("Latent factors", "factors", _factors),
    Section("Causal graph from interventions", "causal", _causal),
    Section("What the soft mask changed", "mask", _mask),
    Section("Reproduce it", "commands", _commands),
)
"""In the order of the page."""
