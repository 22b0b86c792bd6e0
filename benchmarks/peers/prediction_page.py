"""The parts of docs/peers.md on prediction and on training: tables from the stored scores."""

from typing import Any

import numpy as np

from peers import prediction_tests
from peers.prediction_case import BUDGET
from peers.prediction_tests import Scores, Test
from tadvae.evaluation.bootstrap import bootstrap_mean

PREDICTION = """## Prediction of perturbations that were not seen

Held-out groups of folds of `results.md`, and for Kang 2018 every cell type in turn; the same cells, genes and
groups for all; every program trains on all other cells, on one CPU thread. Mean over the groups that it
predicts [95% bootstrap interval]. *tadvae, one model* was trained in the same run as the programs (30
epochs); *tadvae* is the stored ensemble, and the baselines are stored scores too, over the same groups. A
program whose training is open-ended, or would take longer, gets {budget:.0f} seconds of CPU a case.
"""

TRAINING = """## Training: speed and memory

From the same trainings, one thread each, on a machine that does other work too: only CPU seconds count.
Cells are those presented to the model, each as often as it was. Peak is the largest resident set of the whole
process, with its libraries and its data. Over the cases of a test; Pearson-Δ is that of the table above.
"""

COLUMNS = ("trainings", "epochs", "CPU seconds each", "cells per CPU second", "peak, GiB", "Pearson-Δ")
SHOWN = ("no_change", "mean", "additive", "additive_ridge", "latent_additive", "context_kernel", "tadvae")
"""Stored methods beside the programs: baselines, and our ensemble."""
OURS = "tadvae, one model"


def of_test(stored: dict[str, Any], test: Test) -> dict[str, Scores]:
    """Scores of a program by condition (or context) over the cases of a test."""
    found = {
        name: {
            frozenset(key.split("+")): value
            for case in test.cases
            for key, value in each.get("scores", {}).get(case, {}).items()
        }
        for name, each in stored.items()
    }
    return {OURS if name == "tadvae" else name: scores for name, scores in found.items() if scores}


def tables(stored: dict[str, Any]) -> list[str]:
    """Of every test: programs, and baselines over the same groups."""
    lines = [PREDICTION.format(budget=BUDGET)]
    for test in prediction_tests.TESTS:
        found = of_test(stored, test)
        if not found:
            continue
        known = {
            method: {frozenset(key.split("+")): value for key, value in scores.items()}
            for method, scores in prediction_tests.references(test).items()
        }
        lines += [f"### {test.about}\n", "| method | groups | Pearson-Δ ↑ | L2 ↓ |", "|---|---|---|---|"]
        sizes = sorted({frozenset(scores) for scores in found.values()}, key=len, reverse=True)
        for groups in sizes:
            rows = {m: known[m] for m in SHOWN if m in known and groups <= set(known[m])}
            rows |= {name: scores for name, scores in found.items() if frozenset(scores) == groups}
            lines += [
                _row(name, [scores[group] for group in sorted(groups, key=sorted)])
                for name, scores in rows.items()
            ]
        lines += ["", _against(found), ""]
    return lines


def _row(name: str, scores: list[dict[str, float]]) -> str:
    cells = []
    for metric in prediction_tests.METRICS:
        mean = bootstrap_mean([each[metric] for each in scores])
        cells.append(f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]")
    return f"| {bold(name)} | {len(scores)} | {' | '.join(cells)} |"


def _against(found: dict[str, Scores]) -> str:
    """Ours minus each program, over the groups that both predict."""
    words = []
    for name, scores in found.items():
        mine = found.get(OURS, {})
        groups = sorted(set(scores) & set(mine), key=sorted)
        if name == OURS or not groups:
            continue
        r, error = (
            float(np.mean([mine[g][metric] - scores[g][metric] for g in groups]))
            for metric in ("pearson_delta", "l2")
        )
        words.append(f"{name} {r:+.3f} and {error:+.3f} ({len(groups)} groups)")
    return f"Ours (one model) minus the program, Pearson-Δ and L2: {'; '.join(words)}." if words else ""


def training(stored: dict[str, Any]) -> list[str]:
    """What the trainings took."""
    lines = [TRAINING]
    lines += [f"| test | method | {' | '.join(COLUMNS)} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for test in prediction_tests.TESTS:
        quality = of_test(stored, test)
        for name, each in stored.items():
            took = [each["training"][case] for case in test.cases if case in each.get("training", {})]
            if not took:
                continue
            seconds, cells, epochs, peak = (
                np.array([one[key] for one in took]) for key in ("seconds", "cells", "epochs", "peak")
            )
            shown = OURS if name == "tadvae" else name
            r = np.mean([value["pearson_delta"] for value in quality[shown].values()])
            lines.append(
                f"| {test.about} | {bold(shown)} | {len(took)} | {epochs.mean():.0f} | {seconds.mean():.0f} "
                f"| {cells.sum() / seconds.sum():,.0f} | {peak.max() / 2**30:.2f} | {r:.3f} |"
            )
    return [*lines, ""]


def bold(name: str) -> str:
    """Ours stand out."""
    return f"**{name}**" if name.startswith("tadvae") else name
