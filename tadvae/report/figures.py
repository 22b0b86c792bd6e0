"""The figures of the report page."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from tadvae.report.charts import (
    COLOURS,
    Box,
    Curve,
    Scale,
    axes,
    curves,
    cut,
    diverging,
    element,
    hover,
    line,
    short_number,
    svg,
    text,
)
from tadvae.report.data import Comparison, Graph
from tadvae.report.verdict import AgainstBaseline

WIDTH = 960
NARROW = 700
"""Width of charts of few elements, in which the letters would be too large on a wide page."""
PANELS = 3
"""Panels of the learning curves in a row."""
SHOWN_PATHWAYS = 30
SHOWN_FACTORS = 40
SHOWN_EDGES = 80
FURTHEST = 50.0
"""Percent at which the axis of gains ends; what is beyond is drawn at its end."""
VERDICTS = {"better": COLOURS[0], "level": "#767676", "worse": COLOURS[1]}


def learning_curves(by_run: Mapping[str, pd.DataFrame]) -> Markup:
    """Return one panel for each term of the loss over epochs, with one line for each run."""
    terms = list(dict.fromkeys(c for curve in by_run.values() for c in curve.columns if c != "epoch"))
    wide, high = WIDTH / PANELS, 190
    parts = []
    for i, term in enumerate(terms):
        left, top = (i % PANELS) * wide, (i // PANELS) * high
        box = Box(left + 62, left + wide - 12, top + 30, top + high - 38)
        parts += curves(_curves_of(term, by_run), box, "epoch", term)
    words = f"Means over each epoch of {', '.join(terms)}."
    return svg("curves", "Learning curves", words, parts, WIDTH, high * -(-len(terms) // PANELS))


def _curves_of(term: str, by_run: Mapping[str, pd.DataFrame]) -> list[Curve]:
    found = []
    for i, (name, curve) in enumerate((n, c) for n, c in by_run.items() if term in c):
        shown = curve[["epoch", term]].dropna()
        points = list(zip(shown["epoch"].tolist(), shown[term].tolist(), strict=True))
        words = f"{name}: {term}"
        if points:
            words += f" {points[0][1]:.4g} in epoch {points[0][0]}, {points[-1][1]:.4g} in the last"
        attributes = {"class_": "curve", "data_term": term}
        found.append(Curve(points, words, COLOURS[i % len(COLOURS)], attributes))
    return found


def gains(found: Sequence[AgainstBaseline]) -> Markup:
    """Return the gain over the best baseline in percent of its score, one line per comparison."""
    drawn = [(each, each.percent) for each in found]
    several = len({each.category for each in found}) > 1
    labels = [cut(f"{each.category}: {each.metric}" if several else each.metric, 40) for each in found]
    left, high, top = 24.0 + 6.6 * max(map(len, labels)), 20, 26
    right, bottom = NARROW - 24.0 - 6.6 * max(len(each.baseline) for each in found), top + high * len(drawn)
    ends = [abs(value) for _, percent in drawn if percent is not None for value in percent]
    reach = min(max([1.0, *ends]), FURTHEST)
    x = Scale(-reach, reach, left, right)
    parts = [
        text(left, 14, "worse", "start"), text(right, 14, "better", "end"),
        line(x(0.0), top - 6, x(0.0), bottom, "guide"), line(left, bottom, right, bottom, "axis"),
    ]  # fmt: skip
    parts += [text(x(value), bottom + 16, f"{value:.3g}%", "middle") for value in (-reach, 0.0, reach)]
    parts.append(text(x(0.0), bottom + 34, "gain over the best baseline, in percent of its score", "middle"))
    for i, (each, percent) in enumerate(drawn):
        y = top + high * (i + 0.5)
        words = f"{labels[i]}: {each.own:.4g}, {each.baseline} {each.best:.4g}; {each.verdict}"
        marks = [text(left - 10, y + 4, labels[i], "end"), text(right + 12, y + 4, each.baseline)]
        if percent is not None:
            mean, low, high_end = (x(float(np.clip(value, -reach, reach))) for value in percent)
            colour = VERDICTS[each.verdict]
            marks += [
                line(low, y, high_end, y, "range"),
                element("circle", cx=mean, cy=y, r=4.5, fill=colour),
            ]
        parts.append(element("g", hover(words), *marks))
    words = (
        f"{len(found)} comparisons of the model with the best baseline, with 95% intervals; blue: better, "
        "grey: level, orange: worse. The table below has the numbers."
    )
    return svg("gains", "Gain over the best baseline", words, parts, NARROW, bottom + 44)


def scatter(comparison: Comparison, number: int) -> Markup:
    """Return the predicted change against the observed change, with one point for each gene."""
    size, left, bottom = 240, 62, 40
    predicted, half = comparison.predicted, comparison.half_width
    ends = predicted if half is None else np.concatenate([predicted - half, predicted + half])
    both = [*comparison.observed.tolist(), *ends.tolist(), 0.0]
    x, y = Scale.over(both, left, size - 8), Scale.over(both, size - bottom, 8)
    parts = axes(x, y, "observed change")
    parts.append(line(x(x.low), y(x.low), x(x.high), y(x.high), "guide"))
    parts.append(text(11, (size - bottom) / 2, "predicted change", "middle", rotate=-90))
    for i, gene in enumerate(comparison.genes):
        at = x(comparison.observed[i])
        words = f"{gene}: observed {comparison.observed[i]:+.3f}, predicted {predicted[i]:+.3f}"
        if half is not None:
            words += f" ± {half[i]:.3f}"
            parts.append(line(at, y(predicted[i] - half[i]), at, y(predicted[i] + half[i]), "interval"))
        parts.append(
            element(
                "circle",
                hover(words),
                cx=at,
                cy=y(predicted[i]),
                r=3,
                fill=COLOURS[0],
                fill_opacity=".7",
            )
        )
    title = f"{comparison.perturbation} in {comparison.dataset}, {comparison.context}"
    words = (
        f"Predicted against observed change of {len(comparison.genes)} genes; over all genes their "
        f"correlation is {comparison.pearson_delta:.2f}."
    )
    return svg(f"scatter-{number}", title, words, parts, size, size)


def heat_map(activity: pd.DataFrame) -> Markup:
    """Return the changes of activity of pathways (rows) under perturbations (columns).

    The colours of each pathway are relative to its own largest change.
    """
    rows = _shown_rows(activity)
    shown, start = shown_pathways(activity), activity[_controls(activity)].iloc[rows]
    headings = [cut(name.split(" (")[0], 26) for name in shown.columns]
    left, high = 400, 17
    top = 24 + round(5.6 * max(map(len, headings), default=0))  # the headings are slanted
    wide = min(24.0, (WIDTH - left - 10) / max(len(shown.columns), 1))
    parts = [
        text(left + (j + 0.7) * wide, top - 6, heading, rotate=-55, title=column)
        for j, (column, heading) in enumerate(zip(shown.columns, headings, strict=True))
    ]
    for i, (name, row) in enumerate(shown.iterrows()):
        y = top + i * high
        before = ", ".join(short_number(v) for v in start.iloc[i])
        parts.append(text(left - 6, y + 12, cut(str(name), 58), "end", title=f"{name}; control {before}"))
        largest = float(np.nanmax(np.abs(row.to_numpy()))) or 1.0
        for j, (column, value) in enumerate(row.items()):
            words = "not measured" if np.isnan(value) else f"{value:+.4g}"
            parts.append(
                element(
                    "rect",
                    hover(f"{name}, {column}: {words} (control {before})"),
                    x=left + j * wide,
                    y=y,
                    width=wide - 1,
                    height=high - 1,
                    fill=diverging(value / largest),
                    class_="cell",
                )
            )
    words = (
        f"Change of activity of the {len(shown)} pathways that differ most between {len(shown.columns)} "
        "predicted perturbations; orange is more than in control cells, blue less. Each pathway has its "
        "own scale; values are in the titles of the cells."
    )
    return svg("activity", "Pathway activity", words, parts, WIDTH, top + high * len(shown) + 10)


def shown_pathways(activity: pd.DataFrame) -> pd.DataFrame:
    """Return the changes that the heat map shows, without the columns of the controls."""
    return activity.drop(columns=_controls(activity)).iloc[_shown_rows(activity)]


def _controls(activity: pd.DataFrame) -> list[str]:
    return [name for name in activity.columns if name.startswith("control (")]


def _shown_rows(activity: pd.DataFrame) -> np.ndarray:
    """Return positions of the measured pathways that differ most between perturbations."""
    change = activity.drop(columns=_controls(activity))
    known = np.flatnonzero(change.notna().any(axis=1).to_numpy())
    spread = change.iloc[known].std(axis=1, ddof=0).to_numpy()
    rows: np.ndarray = known[np.argsort(-spread, kind="stable")[:SHOWN_PATHWAYS]]
    return rows


def arc_diagram(graph: Graph, name: str, title: str) -> Markup:
    """Return the factors that have effects, causes above, with an arc per effect (dashed if negative)."""
    edges = graph.edges.head(SHOWN_EDGES)
    linked = sorted({*edges["source"].tolist(), *edges["target"].tolist()})[:SHOWN_FACTORS]
    edges = edges[edges["source"].isin(linked) & edges["target"].isin(linked)]
    place = {k: 22 + 24 * i for i, k in enumerate(linked)}
    largest = float(edges["effect"].abs().max()) if len(edges) else 1.0
    spans = [abs(place[a] - place[b]) for a, b in zip(edges["source"], edges["target"], strict=True)]
    x = min(32 + round(0.45 * max(spans, default=0)), 300)
    parts = [_arrow_tip(f"{name}-tip")]
    for edge in edges.itertuples():
        top, end = place[edge.source], place[edge.target]
        bend = x - min(12 + abs(end - top) * 0.55, x - 10)
        share = f", in {edge.share:.0%} of the seeds" if "share" in graph.edges else ""
        words = f"{graph.names[edge.source]} → {graph.names[edge.target]}: {edge.effect:+.3f}{share}"
        parts.append(
            element(
                "path",
                hover(words),
                class_="arc",
                d=f"M{x} {top}C{bend:.0f} {top} {bend:.0f} {end} {x} {end}",
                stroke=COLOURS[1 if edge.effect > 0 else 0],
                stroke_width=0.8 + 3.2 * abs(float(edge.effect)) / largest,
                stroke_dasharray=None if edge.effect > 0 else "6 3",
                marker_end=f"url(#{name}-tip)",
            )
        )
    for k, y in place.items():
        parts.append(element("circle", cx=x + 7, cy=y, r=5, fill=COLOURS[4]))
        parts.append(text(x + 20, y + 4, cut(graph.names[k], 100), title=graph.names[k]))
    words = (
        f"{len(linked)} of {len(graph.names)} factors, {len(edges)} of {len(graph.edges)} effects; orange "
        "and solid raises, blue and dashed lowers, thicker is stronger."
    )
    return svg(name, title, words, parts, WIDTH, 24 * len(linked) + 24)


def _arrow_tip(name: str) -> Markup:
    tip = element("path", d="M0 0L8 4L0 8z", fill=COLOURS[4])
    size = {"viewBox": "0 0 8 8", "refX": 7, "refY": 4, "markerWidth": 9, "markerHeight": 9}
    return element(
        "defs", element("marker", tip, id=name, **size, markerUnits="userSpaceOnUse", orient="auto")
    )
