"""The beginning of docs/results.md: a summary, one figure, and the tables of the studies of structure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tadvae.report.charts import element

FIGURE = Path("images") / "results.svg"
WORDS = ("Smaller", "Level", "Larger")
METRICS = {"pearson_delta": "Pearson-Δ", "l2": "L2"}
REGRESSION = "regression"
PATHWAYS, PERMUTED = "regression, pathways", "regression, permuted"
STYLE = (
    "text{font:12px sans-serif;fill:#1a1a1a}.zero{stroke:#1a1a1a}.bar{stroke:#595959;stroke-width:2}"
    ".better{fill:#0072b2}.level{fill:#8a8a8a}.worse{fill:#b34700}.back{fill:#fff}"
)


@dataclass(frozen=True)
class Row:
    """Relative difference of L2 to a baseline, in percent, with its 95% interval; negative is better.

    Rows of one ``family`` are one item of the sentence that names them.
    """

    label: str
    family: str
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Whether the interval excludes zero, and on which side."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "level"


def relative(label: str, difference: dict[str, float], score: float, family: str | None = None) -> Row:
    """Row from a paired difference and the score of the baseline."""
    return Row(label, family or label, *(100 * difference[key] / score for key in ("mean", "low", "high")))


def read(place: Path) -> dict[str, Any]:
    """A stored result; empty if there is none."""
    found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    return {name: value for name, value in found.items() if name != "about"}


def context_rows(results: Path) -> list[Row]:
    """Rows of the studies of other contexts and of unseen targets."""
    rows = []
    places = {"": "known_drugs", ", other folds": "known_drugs_seed_1", " (Tahoe)": "known_drugs_tahoe"}
    for words, name in places.items():
        for kind, scores in read(results / "contexts" / f"{name}.json").items():
            own = scores[REGRESSION]["l2"]["minus_context_ridge"]
            label = f"known {kind.replace('drugs, ', 'drug in type ')}{words}"
            family = f"a known drug in another cell type{words}"
            rows.append(relative(label, own, scores["context_ridge"]["l2"]["mean"], family))
    for scores in read(results / "contexts" / "unseen_types.json").values():
        own = scores[REGRESSION]["l2"]["minus_context_kernel"]
        score = scores["context_kernel"]["l2"]["mean"]
        rows.append(relative("IFN-beta in an unseen cell type", own, score))
    for screen, scores in read(results / "contexts" / "unseen_targets.json").items():
        mean = scores["mean"]["l2"]
        label = f"unseen targets, {screen}"
        rows.append(relative(label, mean["pathways_minus"], mean["mean"], "unseen targets"))
    return rows


def chart(rows: list[Row]) -> str:
    """Dots with intervals, one line per row."""
    left, width, step = 330, 330, 20
    reach = max(1.0, *(abs(end) for row in rows for end in (row.low, row.high)))
    reach = min(reach, 40.0)

    def x(value: float) -> float:
        return left + width / 2 * (1 + float(np.clip(value / reach, -1, 1)))

    height = step * (len(rows) + 3)
    parts = [element("rect", width=left + width + 20, height=height, class_="back")]
    parts.append(element("line", x1=x(0), x2=x(0), y1=step * 1.2, y2=height - step * 1.5, class_="zero"))
    for i, row in enumerate(rows):
        y = step * (i + 2.0)
        parts += [
            element("text", row.label, x=left - 10, y=y + 4, text_anchor="end"),
            element("line", x1=x(row.low), x2=x(row.high), y1=y, y2=y, class_="bar"),
            element("circle", cx=x(row.mean), cy=y, r=5, class_=row.verdict),
        ]
    for value in (-reach, 0.0, reach):
        parts.append(element("text", f"{value:+.0f}%", x=x(value), y=height - 8, text_anchor="middle"))
    words = "L2 of tadvae compared with the best baseline (left: smaller error)"
    parts.append(element("text", words, x=left + width / 2, y=step * 0.8, text_anchor="middle"))
    chart = element(
        "svg", element("title", words), element("style", STYLE), *parts,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {left + width + 20} {height}", role="img",
    )  # fmt: skip
    return str(chart) + "\n"


def opening(results: Path, page: Path, rows: list[Row], further: Sequence[str] = ()) -> list[str]:
    """The sentences and the figure, which is written next to the page; nothing without results.

    Parameters
    ----------
    rows
        Of the studies of the page.
    further
        Lines that end the summary.
    """
    rows = [*rows, *context_rows(results)]
    if not rows:
        return []
    place = page.parent / FIGURE
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(chart(rows))
    better, level, worse = (
        [row for row in rows if row.verdict == verdict] for verdict in ("better", "level", "worse")
    )
    lines = [
        "**In two minutes.** On conditions that tadvae has not seen, its error (L2) is smaller than that of "
        f"the best baseline in {len(better)} of {len(rows)} comparisons, level in {len(level)} and larger in "
        f"{len(worse)} (95% intervals).\n",
        *(
            f"- **{word}**: {_listed(some)}."
            for word, some in zip(WORDS, (better, level, worse), strict=True)
            if some
        ),
        *_attention(results),
        *_pathways(results),
        *_joint(results),
        *further,
    ]
    figure = f"![L2 compared with the best baseline]({FIGURE.as_posix()})"
    note = (
        "Dots are relative differences of L2 with 95% intervals; blue: better, grey: level, orange: worse. "
        "Rows from *known drug* on are the regression of mean effects alone, which the model uses there."
    )
    return [*lines, "", figure + "\n", note + "\n"]


def _listed(rows: list[Row]) -> str:
    """The families of some rows, with the smallest and the largest of their differences."""
    families: dict[str, list[float]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row.mean)
    words = [
        f"{family} {values[0]:+.1f}%"
        if len(values) == 1
        else f"{family} ({len(values)}: {min(values):+.1f} to {max(values):+.1f}%)"
        for family, values in families.items()
    ]
    return "; ".join(words)


def panel_scores(folder: Path) -> dict[tuple[str, str], dict[int, list[float]]]:
    """MRR of the runs of ``panel_transfer.py`` by (method, pathways), halving and seed."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    stored = [json.loads(place.read_text()) for place in sorted(folder.glob("*.json"))]
    runs: dict[tuple[int, int], int] = {}
    for row in stored:
        run = row["about"]["halving"], row["about"]["seed"]
        runs[run] = runs.get(run, 0) + 1
    for row in stored:
        about = row["about"]
        if runs[about["halving"], about["seed"]] < max(runs.values()):
            continue  # other maskings or permuted pathways are still to be trained
        for how, scores in row["scores"].items():
            method = how if how.startswith("plain") else f"{about['masking']}, {how}"
            by = found.setdefault((method, about["pathways"]), {})
            by.setdefault(about["halving"], []).append(scores["MRR centred"])
    return found


def transfer(results: Path) -> dict[tuple[str, str], tuple[float, float, int]]:
    """MRR by (method, pathways): mean over halvings of means over seeds, half an interval, runs."""
    found = panel_scores(results / "panel_transfer")
    table = {}
    for key, by in found.items():
        means = np.array([np.mean(values) for values in by.values()])
        half = 1.96 * means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.nan
        table[key] = float(means.mean()), float(half), sum(map(len, by.values()))
    return table


def _attention(results: Path) -> list[str]:
    parts = []
    truth = read(results / "truth.json").get("rows", [])
    if truth:
        means = {
            name: np.mean([row[f"activity, {name}"] for row in truth])
            for name in ("agreement", "linear", "members", "hard")
            if f"activity, {name}" in truth[0]
        }
        words = ", ".join(f"{name} {value:.2f}" for name, value in means.items())
        parts.append(f"activities on simulated screens correlate with the truth ({words})")
    table = transfer(results)
    if ("agreement, smoothed", "true") in table and ("linear, smoothed", "true") in table:
        own, linear = (table[f"{name}, smoothed", "true"][0] for name in ("agreement", "linear"))
        plain = table["plain, smoothed", "true"][0]
        parts.append(
            f"cells seen through two disjoint panels find themselves with an MRR of {own:.3f} with "
            f"attention, {linear:.3f} with a linear layer, {plain:.3f} with plain sums of members: "
            f"attention adds {'nothing' if own <= plain else f'{own - plain:.3f}'} to plain sums"
        )
    parts += _layers_of_the_paper(results / "paper_table")
    return [f"- **Attention**: {'; '.join(parts)}."] if parts else []


def _layers_of_the_paper(folder: Path) -> list[str]:
    """What the default and ``linear`` are worth beside the best of the layers that the paper describes."""
    words = []
    for place in sorted(folder.glob("*.csv")):
        trials = pd.read_csv(place)
        if "val_pearson_delta" in trials:
            layers = ["model.pathway.masking", "model.pathway.d_embed", "model.encoder.kind"]
            mean = trials.groupby(layers, dropna=False)["val_pearson_delta"].mean()
            own, linear = (mean[name].iloc[0] for name in ("agreement", "linear"))
            best = mean.drop(["agreement", "linear"]).max()
            words.append(f"{place.stem} {own:.3f}, {linear:.3f}, {best:.3f}")
    if not words:
        return []
    said = "the network alone with the default attention, a linear layer, the best layer of the paper"
    return [f"Pearson-Δ of {said} ([all layers](paper-table.md)): {'; '.join(words)}"]


def _pathways(results: Path) -> list[str]:
    parts, table = [], transfer(results)
    if ("agreement, smoothed", "permuted") in table:
        true, permuted = (table["agreement, smoothed", kind][0] for kind in ("true", "permuted"))
        parts.append(f"across panels, true ones have an MRR of {true:.3f}, permuted ones {permuted:.3f}")
    rows = []
    for screen, scores in read(results / "contexts" / "unseen_targets.json").items():
        gain = scores[PERMUTED]["l2"]
        rows.append(relative(screen, gain["pathways_minus"], gain["mean"]))
    if rows:
        ahead, level = ([row for row in rows if (row.verdict == "better") == wanted] for wanted in (1, 0))
        parts.append(f"for unseen targets, L2 compared with permuted ones is smaller in {_listed(ahead)}")
        parts.append(f"and not smaller in {_listed(level)}")
    return [f"- **Pathways**: {'; '.join(parts)}."] if parts else []


def _joint(results: Path) -> list[str]:
    found = read(results / "contexts" / "known_drugs.json")
    words = [
        f"{kind.removeprefix('drugs, ')} {scores[REGRESSION]['l2']['mean']:.1f} against "
        f"{scores['mean']['l2']['mean']:.1f}"
        for kind, scores in found.items()
    ]
    if not words:
        return []
    return [
        "- **Joint training**: for a drug that other cell types tested, L2 with their data and with the mean "
        f"of the own cell type, all that a model of it alone knows: {', '.join(words)}."
    ]


def structure(results: Path) -> list[str]:
    """Tables of the studies of other contexts, unseen targets and panels."""
    lines = []
    for name, title in {
        "known_drugs": "A known drug in another cell type",
        "known_drugs_seed_1": "The same with other folds of the same drugs (seed 1)",
        "known_drugs_tahoe": "The same on Tahoe (its a498, lovo and snu_423 served to choose the method)",
        "unseen_types": "IFN-beta in an unseen cell type",
        "unseen_targets": "Unseen targets, from pathways (true, permuted, none)",
    }.items():
        found = read(results / "contexts" / f"{name}.json")
        if found:
            lines += [f"### {title}\n", *_scores(found), ""]
    table = transfer(results)
    if table:
        lines += [
            "### Cells seen through two disjoint panels (`benchmarks/panel_transfer.py`)\n",
            "Mean reciprocal rank (chance 0.010) over halvings ± 1.96 standard errors; runs in brackets. "
            "*smoothed*: activities by default; *read*: with `smooth=0`; *plain*: no model.\n",
            "| activities | true pathways | permuted |",
            "|---|---|---|",
        ]
        for method in sorted({method for method, _ in table}):
            cells = [
                "{:.3f} ± {:.3f} ({})".format(*table[method, kind]) if (method, kind) in table else ""
                for kind in ("true", "permuted")
            ]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    if not lines:
        return []
    return ["## Does the structure contribute?\n", "The regression alone, unless said otherwise.\n", *lines]


def _scores(found: dict[str, Any]) -> list[str]:
    lines = ["| held out | method | Pearson-Δ ↑ | minus reference | L2 ↓ | minus reference |"]
    lines.append("|---|---|---|---|---|---|")
    for held, methods in found.items():
        for method, scores in methods.items():
            if not isinstance(scores, dict):
                continue
            row = [held, method]
            for metric in METRICS:
                (key,) = [key for key in scores[metric] if "minus" in key]
                row.append(f"{scores[metric]['mean']:.3f}")
                row.append("{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**scores[metric][key]))
            lines.append("| " + " | ".join(row) + " |")
    reference = "`regression, pathways`, whose score minus that of the row is shown"
    if "pathways_minus" not in json.dumps(found):
        reference = "`context_ridge` or `context_kernel`"
    return [*lines, "", f"The reference is {reference}; 95% intervals, paired."]
