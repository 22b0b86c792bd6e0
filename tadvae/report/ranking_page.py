"""The page of ``tadvae rank``: the answer in a sentence, a chart of the best perturbations, and the table."""

from markupsafe import Markup

from tadvae.evaluation.ranking import Ranking
from tadvae.report.charts import COLOURS, Scale, axes, cut, element, hover, line, svg, text
from tadvae.report.rendering import Table, environment

WIDTH, LEFT, HIGH = 700, 210, 22
"""Width of the chart, that of its labels, and the height of a row, in pixels."""
DRAWN = 25
"""Perturbations in the chart."""
SHOWN = 500
"""Perturbations in the table of the page; the others are in the file of the table."""
UNITS = {"energy": "share of the energy distance that is removed", "cosine": "cosine of the two changes"}


def ranking_page(ranking: Ranking, towards: str) -> str:
    """Return the page as text; ``towards`` is what the wanted state is called."""
    reasons = ranking.reasons.most_common(5)
    return (
        environment()
        .get_template("ranking.html.j2")
        .render(
            title=f"Towards {towards}",
            answer=answer(ranking, towards),
            facts=_facts(ranking),
            chart=chart(ranking),
            shown=Table.of(
                ranking.table.head(SHOWN), f"The best {min(len(ranking.table), SHOWN)}", "ranking"
            ),
            score=UNITS[ranking.score],
            members=ranking.members,
            reasons=reasons,
        )
    )


def answer(ranking: Ranking, towards: str) -> str:
    """What was found, in one sentence."""
    if ranking.table.empty:
        return "No perturbation that was asked for could be predicted."
    first = ranking.table.iloc[0]
    value, low, high = (_value(ranking, first[name]) for name in ("score", "low", "high"))
    interval = f"{value} [{low}, {high}]"
    where = f"control cells of {ranking.context} ({ranking.dataset})"
    if first["low"] <= 0.0:
        return (
            f"No perturbation certainly moves {where} towards {towards}: the best of {ranking.n_asked:,}, "
            f"{first['perturbation']}, has the {ranking.score} score {interval}."
        )
    equal = int((ranking.table["high"] >= first["low"]).sum()) - 1
    have = "other has an interval that overlaps" if equal == 1 else "others have intervals that overlap"
    others = f"; {equal:,} {have} with its own" if equal else ""
    return (
        f"Of {ranking.n_asked:,} perturbations, {first['perturbation']} moves {where} furthest towards "
        f"{towards}, with the {ranking.score} score {interval}{others}."
    )


def _value(ranking: Ranking, value: float) -> str:
    return f"{value:.0%}" if ranking.score == "energy" else f"{value:.2f}"


def _facts(ranking: Ranking) -> dict[str, str]:
    return {
        "compared perturbations": f"{ranking.n_asked:,}",
        "without an answer": f"{sum(ranking.reasons.values()):,}",
        "start": f"{ranking.n_controls} control cells of {ranking.context}, dataset {ranking.dataset}",
        "wanted state": f"{ranking.n_state} cells",
        "genes that both measure": f"{ranking.n_genes:,}",
        "energy distance between both": f"{ranking.distance:.3g}",
    }


def chart(ranking: Ranking) -> Markup | None:
    """Return the scores of the best perturbations with their intervals; None without any."""
    rows = ranking.table.head(DRAWN)
    if rows.empty:
        return None
    bottom = 10 + HIGH * len(rows)
    x = Scale.over([0.0, *rows["low"], *rows["high"]], LEFT, WIDTH - 20)
    y = Scale(0.0, 1.0, bottom, 10)
    parts = [*axes(x, y, UNITS[ranking.score])[:2], line(x(0.0), 10, x(0.0), bottom, "guide")]
    for anchor, value in zip(("start", "middle", "end"), x.ticks(), strict=True):
        parts.append(text(x(value), bottom + 14, _value(ranking, value), anchor))
    parts.append(text((x.start + x.end) / 2, bottom + 30, UNITS[ranking.score], "middle"))
    for i, row in enumerate(rows.itertuples()):
        middle = 10 + HIGH * (i + 0.5)
        words = (
            f"{row.perturbation}: {_value(ranking, row.score)} [{_value(ranking, row.low)}, "
            f"{_value(ranking, row.high)}]; {row.pathways or 'no pathway carries it more than others'}"
        )
        parts.append(
            element(
                "g",
                hover(words),
                text(LEFT - 10, middle + 4, cut(row.perturbation, 30), "end"),
                line(x(row.low), middle, x(row.high), middle, "interval"),
                element("circle", cx=x(row.score), cy=middle, r=4, fill=COLOURS[0]),
            )
        )
    words = f"{ranking.score} scores of the best {len(rows)} perturbations with 95% intervals."
    return svg("ranking-chart", "The best perturbations", words, parts, WIDTH, bottom + 40)
