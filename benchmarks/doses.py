"""Doses that were not tested: simulated dose screens, one dose held out at a time.

    python benchmarks/doses.py [--seeds N] [--out FILE]

The truth is the simulated one, the exact mean profile of each perturbation at each dose, less that of the
control. Compared are the whole model, its network, its regression, the effect of the nearest dose of
training, a line between the two neighbours (at the ends the nearest), and the mean over the doses of
training, which ignores the dose.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.convert import convert
from tadvae.data.build_vocabulary import interventions
from tadvae.data.splits import TEST
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.dose_interpolation import interpolate
from tadvae.evaluation.metrics import score_profiles
from tadvae.model.predictor import Predictor
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit

RESULTS = Path(__file__).parent / "results" / "doses.json"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "doses.md"
HEADING = "## Measured"
DOSES = (0.01, 0.0316, 0.1, 0.316, 1.0, 3.16, 10.0)
SETTINGS = [
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 8, hidden: 32}",
    "model.decoder={d_gene: 16, hidden: 32}",
    "train={epochs: 20, trackers: []}",
    "stream.bags_per_batch=8",
]
METRICS = ("pearson_delta", "l2")
TITLES = {
    "between": "A dose between those of training",
    "at the ends": "The smallest or the largest dose",
}
METHODS = {
    "tadvae": "tadvae",
    "network": "its network alone",
    "regression": "its regression alone",
    "line": "line between the two neighbouring doses",
    "nearest": "nearest dose",
    "mean": "mean over the doses",
}


def screens(seed: int) -> SimulationConfig:
    screen = ScreenConfig(
        name="drugs",
        n_genes=300,
        n_singles=12,
        n_doubles=0,
        control_cells=200,
        cells_per_condition=20,
        doses=DOSES,
    )
    return SimulationConfig(
        seed=seed, n_genes=300, n_factors=6, n_targets=12, truth_cells=300, screens=(screen,)
    )


def run(seed: int, fold: int, folder: Path) -> dict[str, Any]:
    """One dose of one simulation held out."""
    simulation = simulate(screens(seed))
    write_simulation(simulation, folder / "screens")
    convert(str(folder / "screens" / "spec.yaml"), str(folder / "store"))
    store = Store.open(str(folder / "store"))
    split = f"split={{kind: dose, folds: {len(DOSES)}, fold: {fold}}}"
    gmt = f"pathways.file={folder / 'screens' / 'pathways.gmt'}"
    model, groups = fit(store, ExperimentConfig.load(None, [*SETTINGS, split, gmt, f"seed={seed}"]))
    held = groups[groups["part"] == TEST]["perturbation"].tolist()
    truth = simulation.truth.screens[0]
    row = {name: i for i, name in enumerate(truth.conditions)}
    words, genes = model.vocabulary, model.vocabulary.datasets[0].genes
    keys = words.genes["gene"].to_numpy()[genes].tolist()
    order = [[simulation.truth.genes[g] for g in truth.panel].index(key) for key in keys]
    control, names = truth.profile[0, 0][order], store.perturbations["name"].to_numpy()
    true = np.stack([truth.profile[0, row[names[p]]][order] for p in held])
    pairs = interventions(store, words)
    cells, profile = model.controls[0], words.contexts[0].profile
    before = cells.dense(genes).mean(axis=0, dtype=np.float64)
    effects = model.effects
    assert effects is not None
    network = Predictor(model.module, words, model.config, None)
    asked = [pairs[p] for p in held]
    found = {
        "tadvae": model.predictor.means(cells, genes, profile, 0, asked, 0) - before,
        "network": network.means(cells, genes, profile, 0, asked, 0) - before,
        "regression": effects.predict(0, 0, asked, genes),
    }
    assert effects.observed is not None
    conditions = effects.observed.conditions
    simple: dict[str, list[np.ndarray]] = {"line": [], "nearest": [], "mean": []}
    for pair in asked:
        (target, _, log_dose, _), *_ = pair
        rows = [i for i in range(len(conditions)) if conditions.targets[i, target]]
        logs = conditions.amounts[rows, 0]
        each = np.stack([effects.observed.effects[i] for i in rows])
        simple["line"].append(interpolate(conditions.amounts[rows], each, np.array([log_dose, np.nan])))
        simple["nearest"].append(each[np.argmin(np.abs(logs - log_dose))])
        simple["mean"].append(each.mean(axis=0))
    found |= {name: np.stack(values) for name, values in simple.items()}
    scores = {
        name: score_profiles(control + change, true, control, METRICS) for name, change in found.items()
    }
    dose = float(np.exp(asked[0][0][2]))
    return {"dose": dose, "scores": {n: {m: s[m].tolist() for m in METRICS} for n, s in scores.items()}}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over held-out perturbations, and differences of the model from each method."""
    found: dict[str, Any] = {}
    inside = [each for each in runs if min(DOSES) * 1.01 < each["dose"] < max(DOSES) * 0.99]
    for where, some in (("between", inside), ("at the ends", [each for each in runs if each not in inside])):
        found[where] = {}
        for method in METHODS:
            found[where][method] = {}
            for metric in METRICS:
                ours, values = (
                    np.concatenate([np.array(each["scores"][name][metric]) for each in some])
                    for name in ("tadvae", method)
                )
                minus = paired_bootstrap_difference(ours, values)
                found[where][method][metric] = bootstrap_mean(values)._asdict() | {
                    "tadvae_minus": minus._asdict()
                }
    return found


def write_page(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the measured part of the page from the stored scores."""
    stored = json.loads(results.read_text())
    lines = [
        HEADING,
        "",
        "Written by `python benchmarks/doses.py`, which has the settings; do not edit. Simulated screens of",
        f"12 drugs at {len(DOSES)} doses (20 cells each), one dose held out at a time, "
        f"{stored['about']['seeds']} seeds; the truth is the",
        "simulated mean profile. Means over held-out perturbations; in brackets tadvae minus the method,",
        "with its 95% bootstrap interval.",
        "",
    ]
    for where, methods in stored["summary"].items():
        lines += [
            f"### {TITLES[where]}",
            "",
            "| method | Pearson-Δ | L2 |",
            "|---|---|---|",
        ]
        for method, metrics in methods.items():
            cells = [METHODS[method]]
            for metric, digits in zip(METRICS, (3, 2), strict=True):
                score = metrics[metric]
                minus = score["tadvae_minus"]
                text = f"{score['mean']:.{digits}f}"
                if method != "tadvae":
                    shown = (f"{minus[end]:+.{digits}f}" for end in ("mean", "low", "high"))
                    text += " ({}; {} to {})".format(*shown)
                cells.append(text)
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    text = page.read_text(encoding="utf-8").split(HEADING)[0]
    page.write_text(text + "\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=len(DOSES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for seed in range(options.seeds):
        for fold in range(options.folds):
            with tempfile.TemporaryDirectory() as folder:
                runs.append(run(seed, fold, Path(folder)))
            last = runs[-1]
            shown = {
                n: [round(float(np.nanmean(s[m])), 3) for m in METRICS] for n, s in last["scores"].items()
            }
            print(seed, f"{last['dose']:.3g}", shown, flush=True)
    about = {"script": "doses.py", "seeds": options.seeds, "doses": DOSES, "settings": SETTINGS}
    options.out.write_text(json.dumps({"about": about, "summary": summary(runs)}, indent=1) + "\n")
    if options.out.resolve() == RESULTS.resolve():
        write_page()


if __name__ == "__main__":
    main()
