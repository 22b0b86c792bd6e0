"""The page of a run as HTML: it loads nothing, and its table sorts and filters without a library."""

from collections.abc import Callable
from html import escape
from importlib import resources

import numpy as np
import pandas as pd

from tadvae.evaluation.evaluate import CEILING, COVERAGE, METHOD, NULL
from tadvae.evaluation.metrics import HIGHER_IS_BETTER
from tadvae.report.data import Graph, Report
from tadvae.report.figures import arc_diagram, heat_map, learning_curves, scatter, shown_pathways

SHOWN_EDGES = 200
OF_PROFILES = ("pearson_delta", "pearson_delta_de", "l2", "rmse", "cosine_logfc", "de_overlap")
SECTIONS: list[tuple[str, Callable[[Report], str]]] = []
"""Title and content, in the page's order."""


def page(report: Report) -> str:
    """The page as text."""
    files = resources.files("tadvae.report")
    style, script = (files.joinpath(name).read_text("utf-8") for name in ("page.css", "table.js"))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes)
    body = ""
    for title, content in SECTIONS:
        found = content(report)
        body += f"<section><h2>{escape(title)}</h2>{found}</section>" if found else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Run {escape(report.name)}</title><style>{style}</style></head><body><main>"
        f"<h1>Run {escape(report.name)}</h1>{notes}{body}</main><script>{script}</script></body></html>\n"
    )


def _section(title: str) -> Callable[[Callable[[Report], str]], Callable[[Report], str]]:
    def enter(content: Callable[[Report], str]) -> Callable[[Report], str]:
        SECTIONS.append((title, content))
        return content

    return enter


@_section("What it was trained on")
def _data(report: Report) -> str:
    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in report.about.items())
    tables = _table(report.datasets, "Datasets; held out: groups of one perturbation in one context")
    names = report.datasets["dataset"].tolist()
    if len(names) > 1:
        for what, shared in (("Genes", report.shared_genes), ("Targets", report.shared_targets)):
            frame = pd.DataFrame(shared, columns=names)
            frame.insert(0, "dataset", names)
            tables += _table(frame, f"{what} in common")
    return f"<dl>{facts}</dl>{tables}"


@_section("Learning curves")
def _curves(report: Report) -> str:
    return learning_curves(report.curves) if report.curves else ""


@_section("Beside arithmetic")
def _scores(report: Report) -> str:
    if report.scores is None:
        return ""
    categories = report.scores["category"].unique().tolist()
    shown = categories if len(categories) > 2 else categories[:1]  # one category is all there is
    head = "<p>Mean over held-out groups, with its 95% interval over groups; the best method is bold.</p>"
    return head + "".join(
        _methods(category, report.scores[report.scores["category"] == category]) for category in shown
    )


def _methods(category: str, scores: pd.DataFrame) -> str:
    """Two tables, since one of all metrics is wider than a page."""
    metrics = scores["metric"].unique().tolist()
    others = [metric for metric in metrics if metric not in OF_PROFILES]
    return "".join(
        _methods_by(f"{category}, {what}", scores, chosen)
        for what, chosen in (
            ("mean profiles", [metric for metric in OF_PROFILES if metric in metrics]),
            ("which perturbation, which cells", others),
        )
        if chosen
    )


def _methods_by(title: str, scores: pd.DataFrame, metrics: list[str]) -> str:
    best = {}
    for metric in metrics:
        rivals = scores[(scores["metric"] == metric) & ~scores["method"].isin([CEILING, NULL])]
        if metric in HIGHER_IS_BETTER and rivals["mean"].notna().any():
            best[metric] = rivals["mean"].max() if HIGHER_IS_BETTER[metric] else rivals["mean"].min()
    arrows = {m: (" ↑" if HIGHER_IS_BETTER[m] else " ↓") if m in HIGHER_IS_BETTER else "" for m in metrics}
    head = "".join(f'<th scope="col" class="number">{escape(m + arrows[m])}</th>' for m in metrics)
    body = ""
    for method, part in scores.groupby("method", sort=False):
        row = part.set_index("metric")
        cells = ""
        if not row.index.isin(metrics).any() or row.loc[row.index.isin(metrics), "mean"].isna().all():
            continue  # no distance for a ceiling of profiles, no ceiling of distances
        for metric in metrics:
            if metric not in row.index or np.isnan(row.loc[metric, "mean"]):
                cells += "<td></td>"
                continue
            mean, low, high = (float(row.loc[metric, name]) for name in ("mean", "low", "high"))
            competes = method not in (CEILING, NULL) and mean == best.get(metric)
            kind = "number best" if competes else "number"
            cells += f'<td class="{kind}">{mean:.3f}<br><small>[{low:.3f}, {high:.3f}]</small></td>'
        body += f'<tr><th scope="row">{escape(str(method))}</th>{cells}</tr>'
    n = int(scores["n"].max())
    caption = f"{title}: {n} held-out group{'' if n == 1 else 's'}"
    return _wrap(
        f"<table><caption>{escape(caption)}</caption>"
        f'<thead><tr><th scope="col">method</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
        caption,
    )


@_section("Intervals")
def _intervals(report: Report) -> str:
    if report.calibration is None:
        return ""
    words = f"<p>{escape(report.calibration)}</p>"
    if report.scores is not None:
        own = report.scores[report.scores["method"].eq(METHOD) & report.scores["metric"].eq(COVERAGE)]
        table = own[["category", "n", "mean", "low", "high"]]
        words += _table(table, "Share of genes inside their interval") if len(own) else ""
    return words


@_section("Held-out perturbations")
def _groups(report: Report) -> str:
    if report.groups.empty:
        return ""
    options = "".join(
        f"<option>{escape(name)}</option>" for name in sorted(report.groups["category"].unique())
    )
    return (
        '<p class="controls"><label>Find <input id="filter" type="search"></label><label>Category '
        f'<select id="category"><option value="">all</option>{options}</select></label>'
        '<span id="count" role="status"></span></p>'
        + _table(report.groups, "Scores of the model; a click on a heading sorts", name="groups")
    )


@_section("Predicted and observed change")
def _comparisons(report: Report) -> str:
    figures = "".join(
        f'<figure data-group="{escape(_key(c.dataset, c.context, c.perturbation))}">{scatter(c, i)}'
        f"<figcaption>{escape(c.perturbation)} ({escape(c.dataset)}, {escape(c.context)}), "
        f"r = {c.pearson_delta:.2f}</figcaption></figure>"
        for i, c in enumerate(report.comparisons)
    )
    if not figures:
        return ""
    return (
        f"<p>{len(report.comparisons)} of {report.asked} held-out groups, evenly from the best predicted to "
        "the worst. A point is a gene: its mean less that of control cells, for the genes that change most, "
        "predicted or observed; r is over all genes. Bars are intervals, where the model gives any.</p>"
        f'<div class="grid">{figures}</div>'
    )


@_section("Pathway activity of predicted perturbations")
def _activity(report: Report) -> str:
    if report.activity is None:
        return ""
    return (
        "<p>Activity that the model reads from predicted mean profiles, less that of the control's mean "
        "profile. Orange: more, blue: less, grey: not measured; each pathway has its own scale.</p>"
        + heat_map(report.activity)
        + _unfold("The same as a table", _activity_table(report.activity), printed=False)
    )


def _activity_table(activity: pd.DataFrame) -> str:
    """Changes of the shown pathways, one row a cell of the heat map."""
    shown = shown_pathways(activity).rename_axis("pathway").reset_index()
    long = shown.melt("pathway", var_name="perturbation", value_name="change")
    return _table(long, "Change of activity", name="activity-table")


@_section("Latent factors")
def _factors(report: Report) -> str:
    return (
        "<p>The graph of the network, each factor named by the pathways that it reads most.</p>"
        + arc_diagram(report.factors, "factors", "Latent factors")
        + _edges(report.factors, "Effects of factors on each other", "factor-edges")
    )


def _edges(graph: Graph, caption: str, name: str) -> str:
    """A graph's edges as a table, with the share of seeds that have them where there are several."""
    if graph.edges.empty:
        return ""
    table = pd.DataFrame(
        {
            "cause": [graph.names[k] for k in graph.edges["source"]],
            "effect on": [graph.names[k] for k in graph.edges["target"]],
            "effect": graph.edges["effect"],
        }
    )
    if "share" in graph.edges:
        table["share of seeds"] = graph.edges["share"]
    more = f", the {SHOWN_EDGES} largest of {len(table)}" if len(table) > SHOWN_EDGES else ""
    return _unfold("The same as a table", _table(table.head(SHOWN_EDGES), caption + more, name=name))


def _unfold(summary: str, content: str, *, printed: bool = True) -> str:
    kind = "" if printed else ' class="screen"'
    return f"<details{kind}><summary>{escape(summary)}</summary>{content}</details>"


@_section("Causal graph from interventions")
def _causal(report: Report) -> str:
    if isinstance(report.causal, str):
        return f"<p>None: {escape(report.causal)}</p>"
    return (
        "<p>From what targets do to the genes of pathways; it holds if every pathway is driven by one factor "
        "and every factor is the aim of some target (named in brackets).</p>"
        + arc_diagram(report.causal, "causal", "Causal graph")
        + _edges(report.causal, "Direct effects, in units of a factor's own", "causal-edges")
    )


@_section("What the soft mask changed")
def _mask(report: Report) -> str:
    if report.mask is None:
        return ""
    change = report.mask.edges["change"].value_counts()
    words = (
        f"<p>{change.get('added', 0)} of {report.mask.n_candidates:,} candidates added, "
        f"{change.get('removed', 0)} of {report.mask.n_members:,} members removed; the furthest moved first, "
        f"at most {SHOWN_EDGES}.</p>"
    )
    edges = report.mask.edges.head(SHOWN_EDGES)
    return words + (_table(edges, "Edges", name="mask") if len(edges) else "")


@_section("Reproduce it")
def _commands(report: Report) -> str:
    return f"<pre>{escape(chr(10).join(report.commands))}</pre>" + _unfold(
        "config.yaml", f"<pre>{escape(report.config)}</pre>"
    )


def _table(frame: pd.DataFrame, caption: str, name: str | None = None) -> str:
    """A table; one with a name is long, and sorts."""
    numeric = {c: pd.api.types.is_numeric_dtype(frame[c]) for c in frame.columns}
    kind = {c: ' class="number"' if numeric[c] else "" for c in frame.columns}
    label = (lambda c: f'<button type="button">{escape(c)}</button>') if name else escape
    head = "".join(f'<th scope="col"{kind[c]}>{label(c)}</th>' for c in frame.columns)
    body = ""
    for row in frame.to_dict("records"):
        cells = "".join(f"<td{kind[str(c)]}{_cell(value)}</td>" for c, value in row.items())
        about = ""
        if name == "groups":
            key = _key(row["dataset"], row["context"], row["perturbation"])
            about = f' data-group="{escape(key)}" data-category="{escape(row["category"])}"'
        body += f"<tr{about}>{cells}</tr>"
    attributes = f' id="{name}" class="sortable"' if name else ""
    return _wrap(
        f"<table{attributes}><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>",
        caption,
        long=name is not None,
    )


def _cell(value: object) -> str:
    """End of a cell's tag, and its words; numbers keep all their digits for sorting."""
    if isinstance(value, float):
        return ' data-value="">' if np.isnan(value) else f' data-value="{value!r}">{value:.3f}'
    return f' data-value="{value}">{value:,}' if isinstance(value, int) else f">{escape(str(value))}"


def _wrap(table: str, caption: str, *, long: bool = False) -> str:
    kind = "wide long" if long else "wide"
    return f'<div class="{kind}" tabindex="0" role="region" aria-label="{escape(caption)}">{table}</div>'


def _key(dataset: str, context: str, perturbation: str) -> str:
    return f"{perturbation} · {dataset} · {context}"
