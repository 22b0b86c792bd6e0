"""The parts of docs/peers.md on prediction and on training: tables from the stored scores."""

from dataclasses import replace
from typing import Any

import numpy as np

from peers import prediction_tests
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

LONGER = """### More time, and two cores

One case of a test again with other budgets of CPU seconds, and with two threads. Ours has no budget: it
trains as many more epochs as the budget is larger. Mean over the groups that every program predicts, and what
the training took; cells per second of wall time only in the runs of 30 seconds, which had the machine for
themselves. JAX (CellFlow) takes both cores whatever it is told. Steps of ours are too small for two threads;
its commands set one, and more cores train more models (`--seeds`) or more workers.
"""

LONGER_COLUMNS = (
    "test", "method", "threads", "budget", "epochs", "CPU seconds", "cells per second", "Pearson-Δ", "L2",
)  # fmt: skip

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
    lines = [PREDICTION.format(budget=Test.budget)]
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


def longer(stored: dict[str, Any]) -> list[str]:
    """The same case with other budgets and threads, beside the run of the test itself."""
    lines = [LONGER, f"| {' | '.join(LONGER_COLUMNS)} |", "|---" * len(LONGER_COLUMNS) + "|"]
    cases = {replace(test, budget=Test.budget, threads=1) for test in prediction_tests.LONGER}
    for usual in sorted(cases, key=lambda test: test.about, reverse=True):
        again = [
            test for test in prediction_tests.LONGER if (test.study, test.parts) == (usual.study, usual.parts)
        ]
        runs = sorted([usual, *again], key=lambda test: (test.budget, test.threads))
        found = {test: of_test(stored, test) for test in runs}
        names = [name for name in found[usual] if any(name in found[test] for test in again)]
        common = set.intersection(*(set(found[usual][name]) for name in names)) if names else set()
        groups = sorted(common, key=sorted)
        for name in names:
            for test in runs:
                if name in found[test]:
                    each = stored["tadvae" if name == OURS else name]["training"][test.cases[0]]
                    lines.append(_run(test, name, each, [found[test][name][group] for group in groups]))
    return [*lines, ""]


def _run(test: Test, name: str, took: dict[str, float], scores: list[dict[str, float]]) -> str:
    r, error = (float(np.mean([one[metric] for one in scores])) for metric in ("pearson_delta", "l2"))
    alone = test.budget == min(other.budget for other in prediction_tests.LONGER)
    speed = f"{took['cells'] / took['wall']:,.0f}" if alone else ""
    return (
        f"| {test.about} | {bold(name)} | {test.threads} | {test.budget:.0f} | {took['epochs']:.0f} "
        f"| {took['seconds']:.0f} | {speed} | {r:.3f} | {error:.3f} |"
    )


def bold(name: str) -> str:
    """Ours stand out."""
    return f"**{name}**" if name.startswith("tadvae") else name
