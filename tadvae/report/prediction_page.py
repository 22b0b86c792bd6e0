"""The page of one prediction: its answer in a sentence, pictures and tables of genes and pathways."""

import numpy as np
import pandas as pd
from markupsafe import Markup

from tadvae.report.charts import COLOURS, NO_VALUE, Scale, axes, cut, element, hover, line, svg, text
from tadvae.report.prediction import Prediction
from tadvae.report.rendering import Table, environment

WIDTH, HEIGHT = 700, 420
DRAWN = 500
"""Genes in the picture and in the table: those that change most."""
LABELLED = 14
"""Genes that the picture names, where there is room."""
PATHWAYS = 20
"""Pathways in the picture; the table has all."""
LARGE = 0.1
"""Change in log1p units that the sentence counts from: about 10%."""
CERTAINTY = {
    "seed_spread": "standard deviation between seeds",
    "standard_error": "standard error",
}
"""Columns that a change is set against in the chart of genes, the first that there is."""
FEW, MANY = 0.1, 1000.0
"""Limits of change over spread: what is beyond is drawn at them."""
UP, DOWN = COLOURS[1], COLOURS[0]


def prediction_page(found: Prediction) -> str:
    """Return the page as text."""
    facts = {
        "perturbation": found.perturbation,
        "context": f"{found.context}, dataset {found.dataset}",
        "started from": found.started_from,
        "models": str(found.members),
    }
    shown = found.pathways.rename(columns=lambda name: name.replace("_", " "))
    return (
        environment()
        .get_template("prediction.html.j2")
        .render(
            title=f"{found.perturbation} in {found.context}",
            answer=answer(found),
            facts=facts,
            members=found.members,
            has_errors="standard_error" in found.genes,
            level=found.level,
            has_activity="activity" in found.pathways,
            genes_chart=genes_chart(found),
            genes=Table.of(
                found.genes.head(DRAWN).rename(columns=lambda name: name.replace("_", " ")),
                f"The {min(DRAWN, len(found.genes))} genes that change most, of {len(found.genes):,}",
                "genes",
            ),
            pathways_chart=pathways_chart(found.pathways) if len(found.pathways) else None,
            pathways=Table.of(shown, "Measured pathways", "pathways") if len(found.pathways) else None,
        )
    )


def answer(found: Prediction) -> str:
    """What is predicted, in one sentence."""
    genes, pathways = found.genes, found.pathways
    n = int((genes["change"].abs() > LARGE).sum())
    ends = [_named(genes, "gene", "change", "+.2f", sign) for sign in (1, -1)]
    words = "; ".join(f"{way}: {names}" for way, names in zip(("up", "down"), ends, strict=True) if names)
    sentence = (
        f"Under {found.perturbation}, {n:,} of {len(genes):,} genes of {found.context} are predicted to "
        f"change by more than {LARGE:g}" + (f" (most, {words})" if words else "")
    )
    if "half_width" in genes:
        outside = int((genes["change"].abs() > genes["half_width"]).sum())
        sentence += f"; for {outside:,} genes the {found.level:.0%} interval excludes no change"
    elif "standard_error" in genes:
        outside = int((genes["change"].abs() > 1.96 * genes["standard_error"]).sum())
        sentence += f"; for {outside:,} genes the change is larger than 1.96 standard errors"
    ends = [_named(pathways, "pathway", "enrichment", "+.2f", sign) for sign in (1, -1)]
    words = "; ".join(f"{way}: {names}" for way, names in zip(("up", "down"), ends, strict=True) if names)
    return sentence + (f". Pathways whose genes move most, {words}." if words else ".")


def _named(frame: pd.DataFrame, name: str, value: str, form: str, sign: int, most: int = 2) -> str:
    """The first rows of one sign, with their values."""
    rows = frame[sign * frame[value] > 0].head(most)
    return ", ".join(f"{a} {b:{form}}" for a, b in zip(rows[name], rows[value], strict=True))


def genes_chart(found: Prediction) -> Markup:
    """Return the genes that change most: their change against its certainty, or against their expression.

    As in a volcano plot, an ensemble's change is set against its size over the standard deviation between
    seeds, that of one model against its size over the standard error; without either, the change is set
    against the mean of control cells.
    """
    genes = found.genes.head(DRAWN)
    bottom, top, left, right = HEIGHT - 46.0, 24.0, 62.0, WIDTH - 20.0
    reach = float(genes["change"].abs().max()) or 1.0
    across = Scale(-1.1 * reach, 1.1 * reach, left, right)
    certainty = next((name for name in CERTAINTY if name in genes), None)
    if certainty is not None:
        spread = genes[certainty].to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.clip(np.nan_to_num(genes["change"].abs().to_numpy() / spread, nan=FEW), FEW, MANY)
        height, upright = (
            Scale(float(ratio.min()) / 1.1, float(ratio.max()) * 1.1, bottom, top, log=True),
            ratio,
        )
        name = f"change over {CERTAINTY[certainty]}"
    else:
        upright = genes["control"].to_numpy(dtype=np.float64)
        height, name = Scale.over(upright, bottom, top), "mean of control cells"
    parts = [*axes(across, height, "predicted change of the mean, log1p units")]
    parts += [text(left, 14, name, "start", "strong"), line(across(0.0), bottom, across(0.0), top, "guide")]
    for i, row in enumerate(genes.to_dict("records")):
        x, y = across(row["change"]), height(float(upright[i]))
        words = f"{row['gene']}: {row['change']:+.3f} from {row['control']:.3f}"
        if certainty is not None:
            words += f"; {CERTAINTY[certainty]} {row[certainty]:.3f}"
        if "half_width" in row:
            words += f"; interval ±{row['half_width']:.3f}"
        sure = "half_width" not in row or abs(row["change"]) > row["half_width"]
        colour = (UP if row["change"] > 0 else DOWN) if sure else NO_VALUE
        edge = COLOURS[4] if row["targeted"] else None
        parts.append(
            element("circle", hover(words), cx=x, cy=y, r=3.5, fill=colour, fill_opacity=".75", stroke=edge)
        )
    named = pd.concat([genes[genes["targeted"]], genes[~genes["targeted"]].head(LABELLED)])
    placed = [(across(change), height(float(upright[i]))) for i, change in named["change"].items()]
    labels = _labels(named["gene"].tolist(), placed, (left + right) / 2)
    about = "with an interval that excludes no change" if "half_width" in genes else "predicted"
    words = (
        f"The {len(genes)} genes that change most, one dot each; orange rises, blue falls, {about}; a black "
        "edge marks targets of the perturbation. The table below has the values."
    )
    return svg("genes-chart", "Predicted change of genes", words, [*parts, *labels], WIDTH, HEIGHT)


def _labels(names: list[str], places: list[tuple[float, float]], middle: float) -> list[Markup]:
    """Return the names of dots, beside them; one that would be over another is left out."""
    shown: list[tuple[float, float]] = []
    parts = []
    for name, (x, y) in zip(names, places, strict=True):
        if any(abs(y - b) < 12 and abs(x - a) < 70 for a, b in shown):
            continue
        shown.append((x, y))
        beside, anchor = (x - 7, "end") if x > middle else (x + 7, "start")
        parts.append(text(beside, y + 4, cut(name, 16), anchor))
    return parts


def pathways_chart(pathways: pd.DataFrame) -> Markup:
    """Return the enrichment of the pathways whose genes move most, those first that move furthest."""
    rows, high, left = pathways.head(PATHWAYS), 20, 330.0
    bottom = 10.0 + high * len(rows)
    x = Scale(-1.0, 1.0, left, WIDTH - 20.0)
    parts = [line(x(0.0), 10, x(0.0), bottom, "guide"), line(left, bottom, WIDTH - 20.0, bottom, "axis")]
    parts += [text(x(value), bottom + 14, f"{value:g}", "middle") for value in (-1, -0.5, 0, 0.5, 1)]
    parts.append(text((x.start + x.end) / 2, bottom + 32, "enrichment (rank-biserial correlation)", "middle"))
    for i, row in enumerate(rows.to_dict("records")):
        y = 10 + high * (i + 0.5)
        words = f"{row['pathway']}: enrichment {row['enrichment']:+.3f}, {row['genes']} genes"
        if "activity" in row:
            words += f", activity {row['activity']:+.3g}"
        colour = UP if row["enrichment"] > 0 else DOWN
        parts.append(
            element(
                "g",
                hover(f"{words}; {row['most_changed']}"),
                text(left - 10, y + 4, cut(str(row["pathway"]), 50), "end"),
                line(x(0.0), y, x(row["enrichment"]), y, "range"),
                element("circle", cx=x(row["enrichment"]), cy=y, r=5, fill=colour),
            )
        )
    words = f"Enrichment of the {len(rows)} pathways whose genes move most; the table below has all."
    return svg("pathways-chart", "Enrichment of pathways", words, parts, WIDTH, bottom + 40)
