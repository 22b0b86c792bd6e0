"""Do the standard errors of a single run's mean profiles cover the truth? Simulated screens.

    python benchmarks/standard_errors.py [--seeds N] [--out FILE] [--real]

Doubles or singles are held out, a model is trained, and the share of genes is counted whose true mean profile
is within 1.96 standard errors of the predicted one. The truth is the mean of newly drawn cells. Compared are
the posterior standard deviation of the regression, the same widened by its leave-one-out errors, and ``se``,
which ``predict`` writes: the latter with the difference of regression and prediction added in squares. The
prediction is that of the whole model, or that of its regression alone. For the change from the true control::

    |(true profile − true control) − (predicted profile − observed control)| < 1.96 √(se² + variance / n)

``--real`` adds the doubles of Norman 2019, with the regression alone, to what is stored. Their truth is not
known: what is compared is the observed mean of n held-out cells, with the sampling variance of that mean
added to se².
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies import STUDIES, make_store

from pipelines.convert import convert
from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.data.splits import TEST, TRAIN
from tadvae.evaluation.bootstrap import bootstrap_mean
from tadvae.evaluation.questions import ask
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import Simulation, simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit
from tadvae.training.prepare import prepare_training

RESULTS = Path(__file__).parent / "results" / "standard_errors.json"
TRUTH_CELLS = 1_500
DESIGNS: dict[str, dict[str, Any]] = {
    "two screens": {},  # the default: 12 singles and 16 doubles, 8 and 6 in each of two contexts
    "one screen": {"n_targets": 30, "screens": (ScreenConfig(name="screen", n_singles=30, n_doubles=60),)},
}
SETTINGS = [
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 6, hidden: 32}",
    "model.decoder={d_gene: 16, hidden: 32}",
    "train={epochs: 20, trackers: []}",
    "stream.bags_per_batch=8",
]
FOLDS = 5
REAL = "norman_alone"


def inside(error: np.ndarray, variance: np.ndarray) -> list[float]:
    """Share of genes within 1.96 standard errors, by perturbation; those without an error are left out."""
    known = np.isfinite(variance).all(axis=1)
    share = (np.abs(error[known]) < 1.96 * np.sqrt(variance[known])).mean(axis=1)
    return [round(float(each), 4) for each in share]


def of_model(model: TADVAE, store: Store, groups: Any, simulation: Simulation) -> list[dict[str, Any]]:
    """Shares of genes inside by perturbation, one row for every context and kind of perturbation."""
    words, pairs, rows = model.vocabulary, interventions(store, model.vocabulary), []
    effects = model.effects
    assert effects is not None
    assert effects.observed is not None
    for (d, c), row in context_rows(store, words).items():
        own = groups[(groups["dataset"] == d) & (groups["context"] == c)]
        truth = next(t for t in simulation.truth.screens if t.name == store.manifest.datasets[d].name)
        line = truth.contexts.index(store.manifest.contexts[c])
        entry = words.datasets[d]
        known = [simulation.truth.genes[g] for g in truth.panel]
        order = [known.index(key) for key in words.genes["gene"].to_numpy()[entry.genes].tolist()]
        named = {frozenset(name.split("+")): i for i, name in enumerate(truth.conditions)}
        place, profile = model.means_at(row), words.contexts[row].profile.astype(np.float64)
        assert place.errors is not None
        control = truth.profile[line, 0][order]
        several = own["perturbation"].map(lambda p: len(pairs[p]))
        for kind, chosen in {
            "unseen doubles": own[(own["part"] == TEST) & (several == 2)],
            "unseen singles": own[(own["part"] == TEST) & (several == 1)],
            "seen doubles": own[(own["part"] == TRAIN) & (several == 2)],
            "seen singles": own[(own["part"] == TRAIN) & (several == 1)],
        }.items():
            if chosen.empty:
                continue
            asked = [pairs[p] for p in chosen["perturbation"]]
            names = chosen["perturbation_name"].tolist()
            true = np.stack([truth.profile[line, named[frozenset(n.split("+"))]][order] for n in names])
            regression = profile + effects.predict(d, row, asked, entry.genes)
            mean = place.means(asked).mean.astype(np.float64)
            plain = effects.standard_errors(d, row, asked, entry.genes, widened=False) ** 2
            widened = effects.standard_errors(d, row, asked, entry.genes) ** 2
            se = place.errors(asked, mean) ** 2
            if np.isnan(se).all():  # doubles of singles that are held out
                continue
            variance = effects.observed.variance[d]
            assert variance is not None
            change = variance / effects.n_controls[row]
            rows.append(
                {
                    "kind": kind,
                    "context": c,
                    "genes": len(entry.genes),
                    "model, posterior": inside(true - mean, plain),
                    "model, widened": inside(true - mean, widened),
                    "model, se": inside(true - mean, se),
                    "model, change, se": inside(true - control - mean + profile, se + change),
                    "regression, posterior": inside(true - regression, plain),
                    "regression, widened": inside(true - regression, widened),
                    "error over se": round(float(np.sqrt(np.nanmean((true - mean) ** 2 / se))), 4),
                }
            )
    return rows


def of_real_screen(name: str) -> list[dict[str, Any]]:
    """Shares of genes inside of the held-out doubles of a screen, predicted by the regression alone."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path, more = make_store(STUDIES[name], Path(folder))
        store = Store.open(str(path))
        for fold in range(FOLDS):
            split = f"split={{kind: combo, folds: {FOLDS}, fold: {fold}}}"
            config = ExperimentConfig.load(None, [split, *more])
            ready = prepare_training(store, config)
            effects, groups = ready.effects, ready.groups
            assert effects is not None
            assert effects.observed is not None
            rows, pairs = context_rows(store, ready.vocabulary), interventions(store, ready.vocabulary)
            tested = groups[groups["part"] == TEST]
            for question in ask(store, groups, tested, ready.vocabulary, config.split):
                d, row = question.place[0], rows[question.place]
                asked = [pairs[p] for p in question.groups["perturbation"]]
                off = question.observed - question.control - effects.predict(d, row, asked, question.genes)
                n = question.groups["n_cells"].to_numpy(np.float64)
                variance = effects.observed.variance[d]
                assert variance is not None
                sampled = variance / n[:, None]
                shares = {
                    "posterior" if not widened else "widened": inside(
                        off, effects.standard_errors(d, row, asked, question.genes, widened) ** 2 + sampled
                    )
                    for widened in (False, True)
                }
                found.append(
                    {"design": name, "kind": "unseen doubles", "fold": fold}
                    | {f"regression, {key}": values for key, values in shares.items()}
                )
    return found


def run(design: str, seed: int, folds: list[int]) -> list[dict[str, Any]]:
    """One simulation, with some of its folds of doubles held out in turn."""
    simulation = simulate(SimulationConfig(seed=seed, truth_cells=TRUTH_CELLS, **DESIGNS[design]))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        write_simulation(simulation, Path(folder) / "screens")
        convert(f"{folder}/screens/spec.yaml", f"{folder}/store")
        store = Store.open(f"{folder}/store")
        for kind, fold in [*(("combo", fold) for fold in folds), ("single", 0)]:
            settings = [
                *SETTINGS,
                f"split={{kind: {kind}, folds: {FOLDS}, fold: {fold}}}",
                f"pathways.file={folder}/screens/pathways.gmt",
                f"seed={seed}",
                *["model.causal.targets=gene"] * (kind == "single"),
            ]
            model, groups = fit(store, ExperimentConfig.load(None, settings))
            about = {"design": design, "seed": seed, "split": kind, "fold": fold}
            found += [about | row for row in of_model(model, store, groups, simulation)]
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean share of genes inside over perturbations, by design and kind of perturbation."""
    found: dict[str, Any] = {}
    for row in rows:
        found.setdefault(f"{row['design']}, {row['kind']}", []).append(row)
    result = {}
    for key, some in sorted(found.items()):
        measures = [name for name, value in some[0].items() if isinstance(value, list)]
        result[key] = {"n": sum(len(row[measures[0]]) for row in some)}
        for measure in measures:
            values = [value for row in some for value in row[measure]]
            result[key][measure] = bootstrap_mean(values)._asdict() | {
                "tenth": float(np.quantile(values, 0.1)), "lowest": min(values)
            }  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=2, help="folds that are held out, of five")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--real", action="store_true", help="add Norman 2019 to the file, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.real:
        report = json.loads(options.out.read_text())
        report["rows"] = [row for row in report["rows"] if row["design"] != REAL] + of_real_screen(REAL)
        report["summary"] = summary(report["rows"])
        options.out.write_text(json.dumps(report) + "\n")
        return
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for design in DESIGNS:
            rows += run(design, seed, list(range(options.folds)))
            about = {
                "script": "standard_errors.py", "seeds": seed + 1, "folds": options.folds,
                "truth_cells": TRUTH_CELLS, "settings": SETTINGS,
            }  # fmt: skip
            report = {"about": about, "summary": summary(rows), "rows": rows}
            options.out.write_text(json.dumps(report) + "\n")
            for key, values in report["summary"].items():
                shown = {n: round(v["mean"], 3) for n, v in values.items() if isinstance(v, dict)}
                print(seed, key, values["n"], shown, flush=True)


if __name__ == "__main__":
    main()
