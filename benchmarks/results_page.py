"""Writes docs/results.md from the stored scores; no figure in it is typed by hand."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from results_opening import Row, opening, relative, structure
from studies import STUDIES

from tadvae.evaluation.bootstrap import Interval, bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.evaluate import CEILING, COVERAGE, METHOD, NULL
from tadvae.evaluation.metrics import HIGHER_IS_BETTER

COLUMNS = {
    "pearson_delta": "Pearson-Δ", "pearson_delta_de": "Pearson-Δ, responsive genes", "l2": "L2",
    "rmse": "RMSE", "cosine_logfc": "cosine log-FC", "rank_cosine": "rank",
    "centroid_accuracy": "centroid accuracy",
    "de_overlap": "DE overlap", "de_direction_match": "DE direction", "de_jaccard": "DE Jaccard",
    "de_lfc_error": "DE log₂ fold-change error", "mmd": "MMD", "energy_distance": "energy distance",
    "coverage": "genes inside 90% intervals",
}  # fmt: skip
ONE_SEED = "tadvae, one seed"
FEWEST = 6
"""Fewest groups for a verdict: five groups all fall on one side by chance in one case of sixteen."""
_MAIN = ("pearson_delta", "l2")  # higher is better for the first, lower for the second

INTRODUCTION = """# Results

Written by `make results` from the stored scores in `benchmarks/results`; do not edit. All scores are
for groups that were not seen in training. **tadvae** is the mean prediction of the members of an ensemble;
*tadvae, one seed* is the mean of its members' scores. Entries: mean over the held-out groups of all folds
[95% bootstrap interval over groups]; the best method of a column is bold. `noise_ceiling` scores one half of
a group's cells against the other half; `null_95` is the 95th percentile of the distance between two such
halves. Neither exists for mean profiles. Coverage is measured: the share of genes whose observed mean lies
inside the ensemble's 90% interval. Below each table: masking, width, heads, epochs and seeds of every model.
Published models run as published (`model.md`, Presets) on the first fold of each split, or are left out
where nothing in the data can teach them; they have tables of their own.
"""


def write_page(results: Path, page: Path) -> None:
    """Write the page: one section per study, one table per split and category."""
    stored = {name: _read(results / name) for name in STUDIES}
    published = {name: _read(results / name / "published") for name in STUDIES}
    head, about = INTRODUCTION.split("\n\n", 1)
    further = [*_level_together(stored), *_behind(stored)]
    parts = [f"{head}\n", *opening(results, page, _rows(stored), further), about]
    parts += [*_summary(stored), *structure(results), *_together(stored)]
    for name, study in STUDIES.items():
        found = stored[name]
        if not found:
            continue
        parts.append(f"## {name}\n\n{study.about}.\n")
        for kind in study.splits:
            folds = _of_split(found, kind)
            if folds:
                parts.append(_section(kind, folds))
                parts += _published(folds, _of_split(published[name], kind))
    parts += [*_maskings(results), *_intervals(results), *_truth(results / "truth.json")]
    page.write_text("\n".join(parts))


def _read(folder: Path) -> list[dict]:
    return [json.loads(place.read_text()) for place in sorted(folder.glob("*.json"))]


def _rows(stored: dict[str, list[dict]]) -> list[Row]:
    """L2 against the best baseline, for every table with enough groups."""
    rows = []
    for label, folds, chosen in _tables(stored):
        if chosen.sum() >= FEWEST:
            best, gain, _ = _against_best(folds, "l2", chosen)
            score = np.nanmean(values_of(folds, "l2", best)[chosen])
            rows.append(relative(label, gain._asdict(), score))
    return rows


def _tables(stored: dict[str, list[dict]]) -> Iterator[tuple[str, list[dict], np.ndarray]]:
    """Every table of the page by its name: its folds, and which of their groups."""
    for name, found in stored.items():
        for kind in STUDIES[name].splits if STUDIES[name].part_of is None else ():
            folds = _of_split(found, kind)
            for category in _categories(folds):
                yield f"{name}, {kind}: {category}", folds, _of_category(folds, category)


def _behind(stored: dict[str, list[dict]]) -> list[str]:
    """Where the correlation is worse than that of the best baseline, for the beginning of the page."""
    found = []
    for label, folds, chosen in _tables(stored):
        best, gain, verdict = _against_best(folds, "pearson_delta", chosen)
        if verdict == "worse":
            found.append(f"{label} {gain.mean:+.3f} ({best})")
    if not found:
        return []
    return [f"- **Pearson-Δ** is smaller than the best baseline's in {len(found)}: {'; '.join(found)}."]


def _summary(stored: dict[str, list[dict]]) -> list[str]:
    """The model compared with the best baseline, for every table of the page."""
    lines = [
        "## Summary\n",
        "**tadvae** minus the best baseline of each table and metric (chosen by its mean), paired over "
        "held-out groups, with a 95% bootstrap interval. *better* and *worse*: the interval excludes zero; "
        f"*level*: it does not; *too few*: fewer than {FEWEST} groups.\n",
        "| study, split | groups | Pearson-Δ: best baseline | tadvae minus it | | L2: best baseline | "
        "tadvae minus it | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    gains: dict[str, list[float]] = {metric: [] for metric in _MAIN}
    for label, folds, chosen in _tables(stored):
        row = [label, str(int(chosen.sum()))]
        for metric in _MAIN:
            best, gain, text = _against_best(folds, metric, chosen)
            gains[metric].append(gain.mean)
            row += [best, f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]", text]
        lines.append("| " + " | ".join(row) + " |")
    if not gains["l2"]:
        return []
    means = [f"{np.nanmean(gains[metric]):+.4f}" for metric in _MAIN]
    lines.append(f"| mean over the tables | | | {means[0]} | | | {means[1]} | |")
    return [*lines, "", *_covered(stored), ""]


def _covered(stored: dict[str, list[dict]]) -> list[str]:
    """Coverage of the intervals over all tables that have them."""
    found = [each for folds in stored.values() for each in folds if COVERAGE in each["scores"]["values"]]
    if not found:
        return []
    values = values_of(found, COVERAGE, METHOD)
    elsewhere = _of_category(found, "unseen_context") | _of_category(found, "unseen_dataset")
    parts = [
        (values[~elsewhere], "held-out perturbations"),
        (values[elsewhere], "groups in contexts not seen"),
    ]
    covered = []
    for part, what in parts:
        if len(part):
            mean = bootstrap_mean(part)
            covered.append(f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}] over {len(part)} {what}")
    return [f"Genes inside the 90% intervals: {', '.join(covered)}."]


def _of_split(found: list[dict], kind: str) -> list[dict]:
    return [each for each in found if each["about"]["split"] == kind]


def _categories(folds: list[dict]) -> list[str]:
    return sorted({group[-1] for each in folds for group in each["scores"]["groups"]})


def _of_category(folds: list[dict], category: str) -> np.ndarray:
    return np.array([group[-1] == category for each in folds for group in each["scores"]["groups"]])


def _against_best(folds: list[dict], metric: str, chosen: np.ndarray) -> tuple[str, Interval, str]:
    """The best baseline's name, the model's score minus its score, and the verdict."""
    names = [n for n in folds[0]["scores"]["values"][metric] if not n.startswith((METHOD, CEILING, NULL))]
    sign = 1 if HIGHER_IS_BETTER[metric] else -1
    score = {name: values_of(folds, metric, name)[chosen] for name in names}
    score = {name: values for name, values in score.items() if np.isfinite(values).any()}
    best = max(score, key=lambda name: sign * np.nanmean(score[name]))
    return best, *_difference(values_of(folds, metric, METHOD)[chosen] - score[best], sign)


def _difference(values: np.ndarray, sign: int) -> tuple[Interval, str]:
    gain = bootstrap_mean(values)
    if np.isfinite(values).sum() < FEWEST:
        return gain, "too few"
    low, high = sorted((sign * gain.low, sign * gain.high))
    return gain, "**better**" if low > 0 else "worse" if high < 0 else "level"


def _alone(stored: dict[str, list[dict]]) -> Iterator[tuple[str, int, dict[str, tuple[Interval, str]]]]:
    """Studies that are part of a larger one: name and split, groups, and by metric together minus alone."""
    for name, found in stored.items():
        whole = STUDIES[name].part_of
        for kind in STUDIES[name].splits if whole is not None else ():
            alone = _of_split(found, kind)
            number = {each["about"]["fold"] for each in alone}
            both = [each for each in _of_split(stored[whole], kind) if each["about"]["fold"] in number]
            if not alone or not both:
                continue
            gains, common = {}, []
            for metric in _MAIN:
                values = [_by_group(folds, metric) for folds in (both, alone)]
                common = sorted(values[0].keys() & values[1].keys())
                less = np.array([values[0][group] - values[1][group] for group in common])
                gains[metric] = _difference(less, 1 if HIGHER_IS_BETTER[metric] else -1)
            yield f"{name}, {kind}", len(common), gains


def _together(stored: dict[str, list[dict]]) -> list[str]:
    """Whether training on more screens helps: studies compared with the larger study that contains them."""
    lines = []
    for label, n, gains in _alone(stored):
        row = [label, str(n)]
        for gain, verdict in gains.values():
            row += [f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]", verdict]
        lines.append("| " + " | ".join(row) + " |")
    if not lines:
        return []
    head = [
        "## Does it help to train on several screens together?\n",
        "**tadvae** trained on both screens minus **tadvae** trained on one of them alone, on the same "
        "held-out groups, paired, with a 95% bootstrap interval.\n",
        "| alone, split | groups | Pearson-Δ: together minus alone | | L2: together minus alone | |",
        "|---|---|---|---|---|---|",
    ]
    return [*head, *lines, ""]


def _level_together(stored: dict[str, list[dict]]) -> list[str]:
    """The same in a sentence, for the beginning of the page."""
    words = [f"{label} {gains['l2'][0].mean:+.3f} ({gains['l2'][1]})" for label, _, gains in _alone(stored)]
    if not words:
        return []
    return [f"- **Screens of cells together**, L2 minus that of each alone: {'; '.join(words)}."]


def _by_group(folds: list[dict], metric: str) -> dict[tuple, float]:
    """The model's score by (fold, dataset, context, perturbation)."""
    groups = [(each["about"]["fold"], *group[:3]) for each in folds for group in each["scores"]["groups"]]
    return dict(zip(groups, values_of(folds, metric, METHOD).tolist(), strict=True))


def _section(kind: str, folds: list[dict]) -> str:
    about = folds[0]["about"]
    lines = [
        f"### {kind}\n",
        f"{len(folds)} of {about['folds']} folds; {len(about['seeds'])} seeds, {about['epochs']} epochs.\n",
    ]
    for category in _categories(folds):
        chosen = _of_category(folds, category)
        lines.append(f"**{category}**: {chosen.sum()} held-out groups\n")
        lines.append(_table(folds, chosen))
    abstained = [reason for each in folds for reason in each["abstained"].values()]
    if abstained:
        lines.append(
            f"Groups for which the model abstains: {len(abstained)} (for example: {abstained[0]}).\n"
        )
    notes = {note for each in folds for note in each["notes"] if not note.startswith(f"{METHOD}, seed ")}
    lines += [f"- {note}" for note in sorted(notes)]
    return "\n".join(lines) + "\n"


def _published(folds: list[dict], published: list[dict]) -> list[str]:
    """Published models on the folds that have them, beside the model on the same groups."""
    ours = {each["about"]["fold"]: each for each in folds}
    both = [(ours[each["about"]["fold"]], each) for each in published if each["about"]["fold"] in ours]
    scored = [
        (mine, each) for mine, each in both
        if each["scores"] is not None and each["scores"]["groups"] == mine["scores"]["groups"]
    ]  # fmt: skip
    rows = []
    for name in published[0]["about"]["models"] if scored else ():
        cells = [name]
        for metric in _MAIN:
            theirs = values_of([each for _, each in scored], metric, name)
            less = values_of([mine for mine, _ in scored], metric, METHOD) - theirs
            gain, verdict = _difference(less, 1 if HIGHER_IS_BETTER[metric] else -1)
            interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
            cells += [f"{np.nanmean(theirs):.3f}", interval, verdict]
        rows.append(f"| {' | '.join(cells)} |")
    lines = [f"- {note}" for note in sorted({note for _, each in both for note in each["notes"]})]
    if rows:
        number = ", ".join(str(each["about"]["fold"]) for _, each in scored)
        n = sum(len(each["scores"]["groups"]) for _, each in scored)
        seeds = ", ".join(map(str, published[0]["about"]["seeds"]))
        lines = [
            f"Published models on the {n} groups of fold {number}, all categories, seed {seeds}:\n",
            "| model | Pearson-Δ ↑ | tadvae minus it | | L2 ↓ | tadvae minus it | |",
            "|---|---|---|---|---|---|---|",
            *rows, "", *lines,
        ]  # fmt: skip
    return [*lines, ""] if lines else []


def values_of(folds: list[dict], metric: str, method: str) -> np.ndarray:
    """Scores of one method over the groups of all folds, NaN where a fold has none."""
    parts = []
    for each in folds:
        n = len(each["scores"]["groups"])
        found = each["scores"]["values"].get(metric, {}).get(method, [None] * n)
        parts.append(np.array([np.nan if value is None else value for value in found], dtype=np.float64))
    return np.concatenate(parts)


def _table(folds: list[dict], chosen: np.ndarray) -> str:
    names = list(dict.fromkeys(m for each in folds for by in each["scores"]["values"].values() for m in by))
    seeds = [name for name in names if name.startswith(f"{METHOD}, seed ")]
    methods = [n for n in names if n not in (*seeds, METHOD, CEILING, NULL)]
    methods += [ONE_SEED, METHOD, *(n for n in (CEILING, NULL) if n in names)]
    cells: dict[tuple[str, str], tuple[str, float]] = {}
    for metric in COLUMNS:
        for method in methods:
            if method == ONE_SEED:
                of_seeds = np.stack([values_of(folds, metric, seed) for seed in seeds])
                values = of_seeds.mean(axis=0)
            else:
                values = values_of(folds, metric, method)
            interval = bootstrap_mean(values[chosen])
            if not np.isnan(interval.mean):
                text = f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
                cells[method, metric] = text, interval.mean
    shown = [metric for metric in COLUMNS if any((method, metric) in cells for method in methods)]
    lines = ["| method | " + " | ".join(f"{COLUMNS[m]} {_arrow(m)}".rstrip() for m in shown) + " |"]
    lines.append("|---|" + "---|" * len(shown))
    best = {
        metric: _best(cells, [m for m in methods if m not in (CEILING, NULL)], metric) for metric in shown
    }
    for method in methods:
        row = []
        for metric in shown:
            text, value = cells.get((method, metric), ("", np.nan))
            competes = method not in (CEILING, NULL) and value == best[metric]
            row.append(f"**{text}**" if competes else text)
        if any(row):
            lines.append(f"| {f'**{method}**' if method == METHOD else method} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _arrow(metric: str) -> str:
    return "" if metric not in HIGHER_IS_BETTER else "↑" if HIGHER_IS_BETTER[metric] else "↓"


def _best(cells: dict, methods: list[str], metric: str) -> float | None:
    values = [cells[method, metric][1] for method in methods if (method, metric) in cells]
    if metric not in HIGHER_IS_BETTER or not values:
        return None
    return max(values) if HIGHER_IS_BETTER[metric] else min(values)


def _maskings(results: Path) -> list[str]:
    """Maskings on the same unseen combinations, which ``benchmarks/quality.py`` has stored, a file each."""
    lines = []
    for study in STUDIES:
        stored = {
            place.stem.removeprefix(f"quality_{study}_"): json.loads(place.read_text())
            for place in sorted(results.glob(f"quality_{study}_*.json"))
        }
        first = next(iter(stored), None)
        for masking, found in stored.items():
            cells = [study, masking, str(found["seeds"])]
            for metric in _MAIN:
                mine, own = found["results"][study][metric], _by_name(found, study, metric)
                less = paired_bootstrap_difference(own, _by_name(stored[first], study, metric))
                interval = f"{less.mean:+.4f} [{less.low:+.4f}, {less.high:+.4f}]"
                cells += [f"{mine[METHOD]['mean']:.4f}", "" if masking == first else interval]
            lines.append(f"| {' | '.join(cells)} |")
    if not lines:
        return []
    return [
        "## Maskings on unseen combinations (`benchmarks/quality.py`)\n",
        "With the regression; all five folds; differences from the first masking of a study, paired over "
        "combinations.\n",
        "| study | masking | seeds | Pearson-Δ ↑ | minus the first | L2 ↓ | minus the first |",
        "|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def _by_name(found: dict, study: str, metric: str) -> pd.Series:
    return pd.Series(found["results"][study][metric]["groups"])


def _intervals(results: Path) -> list[str]:
    """Coverage that ``benchmarks/intervals.py`` has stored."""
    lines = []
    for place in sorted(results.glob("intervals_*.json")):
        found = json.loads(place.read_text())
        about, summary = found["about"], found["summary"]
        inside = summary["genes_inside"]
        lines.append(
            f"- {place.stem.removeprefix('intervals_')}: {inside['mean']:.3f} [{inside['low']:.3f}, "
            f"{inside['high']:.3f}] of genes inside, {summary['n']} held-out doubles; ensembles of "
            f"{about['members']}, {about['calibration_folds']} calibration folds of "
            f"{about['seeds_per_fold']} seeds."
        )
    return (
        ["## Measured coverage of 90% intervals (`benchmarks/intervals.py`)\n", *lines, ""] if lines else []
    )


def _truth(place: Path) -> list[str]:
    """Scores that ``benchmarks/truth.py`` has stored."""
    if not place.exists():
        return []
    found = json.loads(place.read_text())
    rows, names = found["rows"], [name for name in found["rows"][0] if name != "seed"]
    lines = [
        "## Simulated screens with a known truth (`benchmarks/truth.py`)\n",
        f"Settings: {', '.join(found['settings']) or 'defaults'}. The rows are explained in `model.md`.\n",
        "| | " + " | ".join(f"seed {row['seed']}" for row in rows) + " | mean |",
        "|---|" + "---|" * (len(rows) + 1),
    ]
    for name in names:
        values = [row[name] for row in rows]
        cells = [f"{value:.2f}" for value in [*values, float(np.mean(values))]]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]
