"""Writes docs/peers.md from the stored scores; no figure in it is typed by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from results_opening import panel_scores

from peers import loading_page, prediction_page, summary
from peers.environment import peers
from peers.pathway_tests import VARIANTS
from peers.pathways_of_tadvae import TIMED
from peers.prediction_tests import LONGER
from tadvae.evaluation.bootstrap import bootstrap_mean

INTRODUCTION = """# Beside other programs

Programs that people use today, on the same data, scored here with the same metrics. Written by `make peers`
from the stored scores in `benchmarks/results/peers`; do not edit. Every program runs in an environment of its
own, from the package index, with the settings its authors recommend, which its file in `benchmarks/peers`
names. What could not be installed or run is named with its error.
"""


PATHWAYS = """## Pathway activities

- **truth**: simulated screens with known activities: mean absolute correlation over cells of an activity with
  the true one; mean over 5 simulations (lowest to highest).
- **panels**: 700 held-out PBMC, each seen through two disjoint halves of the genes: mean reciprocal rank of a
  cell's other half among the 700 by the correlation of its activities; mean over random halvings (lowest to
  highest); chance 0.010. A program of sums needs no training; ours is trained on other cells, half of them
  through each panel. *permuted*: pathways of the same sizes with genes exchanged at random.
- **targets**: for every perturbed gene, without its own expression: the share of pairs in which a pathway
  that it belongs to moves more than one that it does not; mean over targets [95% bootstrap interval], chance
  0.5. A permuted pathway keeps the name and size of the true one. Ours is trained on the screen; expiMap and
  VEGA on the cells of each target and the controls that are scored. Datlinger has too few control cells for
  `agreement`, which is `members` there.

Each on single cells (log1p of counts per ten thousand) and, for truth and panels, on *smoothed* cells: the
same projected onto their 20 leading principal axes. `TADVAE.activities` does that by default, and subtracts
each cell's mean over its genes; our scores on panels were made before it did.
"""


REPLICABILITY = """### Replicability

Correlation over cells of the activities of two trainings that differ in nothing but their seed, mean over
pathways and simulated screens (lowest to highest). Sums of genes need no training and have 1. Ours is the
least of the pairs of three trainings, for cells that it smooths itself ([the paper's table](paper-table.md)).
"""

TOOK = """### Time and memory

For the 700 cells of one panel and the true pathways, one thread: CPU seconds, and the largest resident set of
the process, in which all methods of a program run. Training before is on other cells; VEGA and expiMap train
on the cells themselves, until ten CPU seconds are spent.
"""

DECISION = """Ours is one model (of activities, that with the better masking); bold is the better of the two.
The best program is that with the best figure, of as many as the last column says, at the budgets below;
groups are those that both predict.
"""

WHY = """
Ours is behind `mlm` on simulated truth: `mlm` fits all pathways of a cell at once, and so separates those
that share genes; ours, like `ulm`, gives each pathway what its own members show. On the real panels there
are more pathways than `mlm` can tell apart, and it fails (above). What was tried is in `experiments.md`.

For targets, expiMap is the only program above chance on both screens. It is trained to reconstruct the very
cells that differ by the perturbation; sums of members, ours among them, are not above chance on Norman.
"""

INTERCHANGE = """## Interchange

What we write, read by other programs in their own environments (`benchmarks/peers/interchange_checks.py`).
"""

OWN = ("tadvae", "arithmetic")
"""What is stored beside the programs."""


def decision(results: Path) -> list[str]:
    """The table that decides, from all that is stored."""
    stored, found = _stored(results), _of_job(_stored(results), "pathways")
    rows = [_truth_rows(_our_truth(results.parent), found), _panel_rows(_our_panels(results.parent), found)]
    return summary.table(stored, *rows)


def _stored(results: Path) -> dict[str, Any]:
    return {place.stem: json.loads(place.read_text()) for place in sorted(results.glob("*.json"))}


def write_page(results: Path, page: Path) -> None:
    """Write the page from all that is stored."""
    stored = _stored(results)
    predicted, loaded = (_of_job(stored, job) for job in ("prediction", "loading"))
    lines = [INTRODUCTION, *decision(results), "", DECISION]
    if predicted:
        lines += [*prediction_page.tables(predicted), *_notes(predicted), ""]
        lines += prediction_page.training(predicted)
        if any(test.cases[0] in each.get("scores", {}) for test in LONGER for each in predicted.values()):
            lines += prediction_page.longer(predicted)
    if loaded:
        lines += [*loading_page.table(loaded), *_notes(loaded), ""]
    lines += [*_pathways(results, stored), *_missing(stored), *_interchange(stored)]
    page.write_text("\n".join(lines).rstrip() + "\n")


def _interchange(stored: dict[str, Any]) -> list[str]:
    """What worked, by program and version."""
    if "interchange" not in stored:
        return []
    lines = ["", INTERCHANGE, "| program | check | result |", "|---|---|---|"]
    for name, each in stored["interchange"]["programs"].items():
        about = ", ".join(f"{key} {value}" for key, value in each.get("versions", {}).items()) or name
        checks = each.get("checks", {"environment": each.get("error", "")})
        lines += [f"| {about} | {check} | {result} |" for check, result in checks.items()]
    return lines


def _missing(stored: dict[str, Any]) -> list[str]:
    """Programs that have a file here, and no stored result yet."""
    return [
        f"- {peer.name} ({', '.join(peer.requirements)}): {job}, not run yet."
        for job in ("prediction", "pathways", "loading")
        for peer in peers(job)
        if f"{job}-{peer.name}" not in stored
    ]


def _of_job(stored: dict[str, Any], job: str) -> dict[str, Any]:
    """What is stored of a job by program."""
    start = f"{job}-"
    return {name.removeprefix(start): each for name, each in stored.items() if name.startswith(start)}


def _pathways(results: Path, stored: dict[str, Any]) -> list[str]:
    rows = {"truth": _our_truth(results.parent), "panels": _our_panels(results.parent)}
    found = _of_job(stored, "pathways")
    lines = [PATHWAYS]
    for test, table in (("truth", _truth), ("panels", _panels), ("targets", _targets)):
        lines += [f"### {test.capitalize()}\n", *table(rows.get(test, {}), found), ""]
    lines += [*_replicability(results.parent, found), *_took(found)]
    if "tadvae" not in found:
        lines.append('- tadvae: not run on *targets* yet (`make peers PEERS="--peer tadvae"`: 16 trainings).')
    return [*lines, *_notes(found), WHY]


def _replicability(results: Path, found: dict[str, Any]) -> list[str]:
    """Of programs that are trained, on simulated screens."""
    rows = {
        (f"{name}, {method}", variant): [scores[variant] for scores in cases.values()]
        for name, each in found.items()
        for method, cases in each.get("replicability", {}).items()
        for variant in VARIANTS
    }
    if not rows:
        return []
    trials = pd.read_csv(results / "paper_table" / "simulated.csv")
    own = trials[trials["model.pathway.masking"] == "agreement"]["replicability"].iloc[:1]
    rows["tadvae, agreement", VARIANTS[1]] = own.tolist()
    lines = [REPLICABILITY, f"| method | {' | '.join(VARIANTS)} |", "|---" * 3 + "|"]
    return [*lines, *_lines(rows, list(VARIANTS)), ""]


def _took(found: dict[str, Any]) -> list[str]:
    """Time and memory for the cells of one panel."""
    rows = [
        (f"{name}, {method}", cases[TIMED])
        for name, each in found.items()
        for method, cases in each.get("took", {}).items()
        if TIMED in cases
    ]
    if not rows:
        return []
    lines = [TOOK, "| method | CPU seconds | training before, CPU s | peak, GiB |", "|---" * 4 + "|"]
    lines += [
        f"| {prediction_page.bold(name)} | {one['seconds']:.2f} | {one.get('training', 0.0):.1f} "
        f"| {one['peak'] / 2**30:.2f} |"
        for name, one in rows
    ]
    return [*lines, ""]


def _notes(found: dict[str, Any]) -> list[str]:
    """Versions, settings, and what could not be run."""
    lines = []
    for name, each in found.items():
        if "error" in each:
            lines.append(
                f"- {name} ({', '.join(each['about']['requirements'])}): **not run**: {each['error']}"
            )
        elif each.get("versions"):
            known = each["versions"]
            missing = [one for one in each["about"]["requirements"] if one.split("==")[0] not in known]
            about = ", ".join([*missing, *(f"{package} {version}" for package, version in known.items())])
            lines.append(f"- {name}: Python {each['about']['python']}, {about}.")
        for method, errors in each.get("errors", {}).items():
            case, error = next(iter(errors.items()))
            lines.append(f"- {name}, {method}: failed in {len(errors)} cases, such as {case}: {error}")
    return lines


def _methods(found: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Scores of every method of every program by case."""
    return {
        f"{name}, {method}": cases
        for name, each in found.items()
        for method, cases in each.get("scores", {}).items()
    }


def _truth(ours: dict[str, list[float]], found: dict[str, Any]) -> list[str]:
    lines, rows = ["| method | cells | smoothed cells |", "|---|---|---|"], _truth_rows(ours, found)
    return [*lines, *_lines(rows, list(VARIANTS)), "", _against(rows, list(VARIANTS), list(found))]


def _truth_rows(ours: dict[str, list[float]], found: dict[str, Any]) -> summary.Rows:
    rows = {(name, variant): values for name, by in ours.items() for variant, values in by.items()}
    for name, cases in _methods(found).items():
        for variant in VARIANTS:
            values = [scores[variant] for case, scores in cases.items() if case.startswith("truth-")]
            if values:
                rows[name, variant] = values
    return rows


def _panels(ours: dict[str, Any], found: dict[str, Any]) -> list[str]:
    columns = [f"{variant}, {kind}" for variant in VARIANTS for kind in ("true", "permuted")]
    rows, shown = _panel_rows(ours, found), [column for column in columns if column.endswith("true")]
    return [
        "| method | " + " | ".join(columns) + " |",
        "|---" * 5 + "|",
        *_lines(rows, columns),
        "",
        _against(rows, shown, list(found)),
    ]


def _panel_rows(ours: dict[str, Any], found: dict[str, Any]) -> summary.Rows:
    rows = {(name, column): values for name, by in ours.items() for column, values in by.items()}
    for name, cases in _methods(found).items():
        for variant in VARIANTS:
            for kind in ("true", "permuted"):
                values = [
                    scores[variant]
                    for case, scores in cases.items()
                    if case.startswith("panels-") and case.endswith(f"-{kind}")
                ]
                if values:
                    rows[name, f"{variant}, {kind}"] = values
    return rows


def _against(rows: dict[tuple[str, str], list[float]], columns: list[str], programs: list[str]) -> str:
    """The best of ours compared with the best program, by column, over methods that ran in every case."""
    words = []
    for column in columns:
        values = {name: each for (name, of), each in rows.items() if of == column and each}
        most = max(map(len, values.values()), default=0)
        means = {name: float(np.mean(each)) for name, each in values.items() if len(each) == most}
        best = [
            max(
                (name for name in means if name.startswith(start)), key=lambda name: means[name], default=None
            )
            for start in (("tadvae, ",), tuple(f"{name}, " for name in programs if name not in OWN))
        ]
        if None not in best:
            words.append(f"{column}: {best[0]} {means[best[0]] - means[best[1]]:+.3f} against {best[1]}")
    return f"Ours minus the best program: {'; '.join(words)}." if words else ""


def _lines(rows: dict[tuple[str, str], list[float]], columns: list[str]) -> list[str]:
    """One line per method: mean (lowest to highest) of each column."""
    names = dict.fromkeys(name for name, _ in rows)
    lines = []
    for name in names:
        cells = [_span(rows.get((name, column), [])) for column in columns]
        if any(cells):
            lines.append(f"| {prediction_page.bold(name)} | " + " | ".join(cells) + " |")
    return lines


def _targets(_: dict[str, Any], found: dict[str, Any]) -> list[str]:
    methods = _methods(found)
    columns = sorted({case for cases in methods.values() for case in cases if case.startswith("targets-")})
    names = [_about(case) for case in columns]
    lines = ["| method | " + " | ".join(names) + " |", "|---" * (len(columns) + 1) + "|"]
    rows: summary.Rows = {}
    for name, cases in methods.items():
        cells = []
        for case in columns:
            if case not in cases:
                cells.append("")
                continue
            values = rows[name, _about(case)] = list(cases[case].values())
            mean = bootstrap_mean(values)
            cells.append(f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}], {len(values)} targets")
        if any(cells):
            lines.append(f"| {prediction_page.bold(name)} | " + " | ".join(cells) + " |")
    shown = [name for name in names if name.endswith("true")]
    return [*lines, "", _against(rows, shown, list(found))]


def _about(case: str) -> str:
    _, study, kind = case.split("-")
    return f"{study.removesuffix('_alone')}, {kind}"


def _span(values: list[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.3f} (one case)" for value in values)
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def _our_truth(results: Path) -> dict[str, dict[str, list[float]]]:
    """Our activities of ``truth.json`` by method and kind of cells, and the bound that knows the truth."""
    rows = json.loads((results / "truth.json").read_text())["rows"]
    found: dict[str, dict[str, list[float]]] = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        if key.startswith("bound"):
            found[f"{key} (fitted to the truth)"] = {VARIANTS[0]: values}
        elif key.startswith("activity, "):
            masking, *raw = key.removeprefix("activity, ").split(", ")
            smooth = not raw and f"{key}, not smoothed" in rows[0]
            found.setdefault(f"tadvae, {masking}", {})[VARIANTS[int(smooth)]] = values
    return found


def _our_panels(results: Path) -> dict[str, dict[str, list[float]]]:
    """Ours and plain sums of members by method and column: means over seeds of every halving."""
    found: dict[str, dict[str, list[float]]] = {}
    for (method, kind), by in panel_scores(results / "panel_transfer").items():
        masking, _, how = method.partition(", ")
        if masking == "plain":
            name, variant = "sums of members", VARIANTS[int(how == "smoothed")]
        else:
            name, variant = f"tadvae, {masking}", VARIANTS[int(how == "smoothed")]
        found.setdefault(name, {})[f"{variant}, {kind}"] = [float(np.mean(values)) for values in by.values()]
    return found
