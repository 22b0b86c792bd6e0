"""The figures of a run's page."""

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd

from tadvae.report.data import Comparison, Graph
from tadvae.report.svg import COLOURS, Scale, diverging, short_number, svg, text

WIDTH = 960
PANELS = 3  # learning curves beside each other
SHOWN_PATHWAYS = 30
SHOWN_FACTORS = 40
SHOWN_EDGES = 80


def learning_curves(curves: Mapping[str, pd.DataFrame]) -> str:
    """A panel a term of the loss, over epochs; a line a run."""
    terms = list(dict.fromkeys(c for curve in curves.values() for c in curve.columns if c != "epoch"))
    wide, high = WIDTH / PANELS, 190
    parts = []
    for i, term in enumerate(terms):
        left, top = (i % PANELS) * wide, (i // PANELS) * high
        shown = {name: curve[["epoch", term]].dropna() for name, curve in curves.items() if term in curve}
        x = Scale.over([e for c in shown.values() for e in c["epoch"]], left + 62, left + wide - 12)
        y = Scale.over([v for c in shown.values() for v in c[term]], top + high - 38, top + 30)
        parts += _axes(x, y, left + 62, top + high - 38)
        parts.append(text(left + 62, top + 18, term, "start", "strong"))
        parts.append(text((x.start + x.end) / 2, top + high - 10, "epoch", "middle"))
        for j, (name, curve) in enumerate(shown.items()):
            colour = COLOURS[j % len(COLOURS)]
            pairs = list(zip(curve["epoch"], curve[term], strict=True))
            points = " ".join(f"{x(e):.1f},{y(v):.1f}" for e, v in pairs if np.isfinite(v))
            words = f"{name}: {term} {pairs[0][1]:.4g} in epoch {pairs[0][0]}, {pairs[-1][1]:.4g} in the last"
            parts.append(
                f'<polyline class="curve" data-term="{escape(term)}" points="{points}" stroke="{colour}">'
                f"<title>{escape(words)}</title></polyline>"
            )
            parts += [
                f'<circle cx="{x(e):.1f}" cy="{y(v):.1f}" r="2" fill="{colour}"/>'
                for e, v in pairs
                if len(pairs) < 25 and np.isfinite(v)
            ]
    words = f"Means over each epoch of {', '.join(terms)}."
    return svg("curves", "Learning curves", words, parts, WIDTH, high * -(-len(terms) // PANELS))


def scatter(comparison: Comparison, number: int) -> str:
    """Predicted change against observed change, a point a gene."""
    size, left, bottom = 240, 62, 40
    predicted, half = comparison.predicted, comparison.half_width
    ends = predicted if half is None else np.concatenate([predicted - half, predicted + half])
    both = [*comparison.observed.tolist(), *ends.tolist(), 0.0]
    x, y = Scale.over(both, left, size - 8), Scale.over(both, size - bottom, 8)
    parts = _axes(x, y, left, size - bottom)
    low, high = x.low, x.high
    parts.append(
        f'<line x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}" class="guide"/>'
    )
    parts.append(text((left + size) / 2, size - 6, "observed change", "middle"))
    parts.append(
        f'<text transform="translate(11 {(size - bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "predicted change</text>"
    )
    for i, gene in enumerate(comparison.genes):
        at, value = x(comparison.observed[i]), y(predicted[i])
        words = f"{gene}: observed {comparison.observed[i]:+.3f}, predicted {predicted[i]:+.3f}"
        if half is not None:
            words += f" ± {half[i]:.3f}"
            ends_of = f'y1="{y(predicted[i] - half[i]):.1f}" y2="{y(predicted[i] + half[i]):.1f}"'
            parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" {ends_of} class="interval"/>')
        parts.append(
            f'<circle cx="{at:.1f}" cy="{value:.1f}" r="3" fill="{COLOURS[0]}" fill-opacity=".7">'
            f"<title>{escape(words)}</title></circle>"
        )
    title = f"{comparison.perturbation} in {comparison.dataset}, {comparison.context}"
    words = (
        f"Predicted against observed change of {len(comparison.genes)} genes; over all genes their "
        f"correlation is {comparison.pearson_delta:.2f}."
    )
    return svg(f"scatter-{number}", title, words, parts, size, size)


def heat_map(activity: pd.DataFrame) -> str:
    """Pathways by perturbations: change of activity, each pathway relative to its largest."""
    rows = _shown_rows(activity)
    shown, start = shown_pathways(activity), activity[_controls(activity)].iloc[rows]
    longest = max((len(_cut(name.split(" (")[0], 26)) for name in shown.columns), default=0)
    left, top, high = 400, 24 + round(5.6 * longest), 17  # headings are slanted
    wide = min(24.0, (WIDTH - left - 10) / max(len(shown.columns), 1))
    parts = []
    for j, column in enumerate(shown.columns):
        x = left + (j + 0.7) * wide
        parts.append(
            f'<text transform="translate({x:.1f} {top - 6}) rotate(-55)"><title>{escape(column)}</title>'
            f"{escape(_cut(column.split(' (')[0], 26))}</text>"
        )
    for i, (name, row) in enumerate(shown.iterrows()):
        y = top + i * high
        before = ", ".join(short_number(v) for v in start.iloc[i])
        parts.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">'
            f"<title>{escape(f'{name}; control {before}')}</title>{escape(_cut(str(name), 58))}</text>"
        )
        largest = float(np.nanmax(np.abs(row.to_numpy()))) or 1.0
        for j, (column, value) in enumerate(row.items()):
            words = "not measured" if np.isnan(value) else f"{value:+.4g}"
            parts.append(
                f'<rect x="{left + j * wide:.1f}" y="{y}" width="{wide - 1:.1f}" height="{high - 1}" '
                f'fill="{diverging(value / largest)}" class="cell">'
                f"<title>{escape(f'{name}, {column}: {words} (control {before})')}</title></rect>"
            )
    words = (
        f"Change of activity of the {len(shown)} pathways that differ most between {len(shown.columns)} "
        "predicted perturbations; orange is more than in control cells, blue less. Each pathway has its "
        "own scale; values are in the titles of the cells."
    )
    return svg("activity", "Pathway activity", words, parts, WIDTH, top + high * len(shown) + 10)


def shown_pathways(activity: pd.DataFrame) -> pd.DataFrame:
    """The changes that the heat map shows: pathways that differ most, without the controls' columns."""
    return activity.drop(columns=_controls(activity)).iloc[_shown_rows(activity)]


def _controls(activity: pd.DataFrame) -> list[str]:
    return [name for name in activity.columns if name.startswith("control (")]


def _shown_rows(activity: pd.DataFrame) -> np.ndarray:
    """Positions of the pathways that some panel sees and that differ most between perturbations."""
    change = activity.drop(columns=_controls(activity))
    known = np.flatnonzero(change.notna().any(axis=1).to_numpy())
    spread = change.iloc[known].std(axis=1, ddof=0).to_numpy()
    rows: np.ndarray = known[np.argsort(-spread, kind="stable")[:SHOWN_PATHWAYS]]
    return rows


def arc_diagram(graph: Graph, name: str, title: str) -> str:
    """Factors in causal order, causes above; an arc an effect, dashed where it is negative."""
    edges = graph.edges.head(SHOWN_EDGES)
    linked = sorted({*edges["source"].tolist(), *edges["target"].tolist()})[:SHOWN_FACTORS]
    lonely = [k for k in range(len(graph.names)) if k not in set(linked)]
    shown = sorted([*linked, *lonely[: max(SHOWN_FACTORS - len(linked), 0)]])
    edges = edges[edges["source"].isin(shown) & edges["target"].isin(shown)]
    place = {k: 22 + 24 * i for i, k in enumerate(shown)}
    x, largest = 300.0, float(edges["effect"].abs().max()) if len(edges) else 1.0
    parts = [
        '<defs><marker id="' + name + '-tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" '
        'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" '
        'fill="#1a1a1a"/></marker></defs>'
    ]
    for edge in edges.itertuples():
        top, end = place[edge.source], place[edge.target]
        reach = min(12 + abs(end - top) * 0.55, x - 20)
        width, colour = 0.8 + 3.2 * abs(edge.effect) / largest, COLOURS[1 if edge.effect > 0 else 0]
        dash = "" if edge.effect > 0 else ' stroke-dasharray="6 3"'
        share = f", in {edge.share:.0%} of the seeds" if "share" in graph.edges else ""
        words = f"{graph.names[edge.source]} → {graph.names[edge.target]}: {edge.effect:+.3f}{share}"
        parts.append(
            f'<path class="arc" d="M{x} {top}C{x - reach:.0f} {top} {x - reach:.0f} {end} {x} {end}" '
            f'stroke="{colour}" stroke-width="{width:.1f}"{dash} marker-end="url(#{name}-tip)">'
            f"<title>{escape(words)}</title></path>"
        )
    for k, y in place.items():
        parts.append(f'<circle cx="{x + 7}" cy="{y}" r="5" fill="{COLOURS[4]}"/>')
        parts.append(
            f'<text x="{x + 20}" y="{y + 4}"><title>{escape(graph.names[k])}</title>'
            f"{escape(_cut(graph.names[k], 100))}</text>"
        )
    words = (
        f"{len(shown)} of {len(graph.names)} factors, {len(edges)} of {len(graph.edges)} effects; orange and "
        "solid raises, blue and dashed lowers, thicker is stronger."
    )
    return svg(name, title, words, parts, WIDTH, 24 * len(shown) + 24)


def _axes(x: Scale, y: Scale, left: float, bottom: float) -> list[str]:
    parts = [
        f'<line x1="{x.start:.1f}" x2="{x.end:.1f}" y1="{bottom:.1f}" y2="{bottom:.1f}" class="axis"/>',
        f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{y.start:.1f}" y2="{y.end:.1f}" class="axis"/>',
    ]
    for anchor, value in zip(("start", "middle", "end"), x.ticks(), strict=True):
        parts.append(text(x(value), bottom + 14, short_number(value), anchor))
    parts += [text(left - 5, y(value) + 4, short_number(value), "end") for value in y.ticks()]
    return parts


def _cut(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"
