"""Do the 90% intervals of an ensemble cover 90% on combinations that it has not seen?

Trains ensembles in this process on the CaRPool doubles (where the real data is available) and on simulated
screens, calibrates them on training doubles that are held out in turn, and counts how many genes of the
held-out doubles lie inside their interval. Every outer fold is stored when it ends; a second call skips the
folds that are stored::

    python benchmarks/intervals.py --members 3 --out benchmarks/results
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from studies import STUDIES, make_store

from pipelines.cluster.connection import ray_session
from tadvae.evaluation.bootstrap import bootstrap_mean
from tadvae.evaluation.evaluate import COVERAGE, METHOD, WIDTH, evaluate
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.calibrate import fit_ensemble

STUDIED = ("carpool", "simulated")


def of_fold(store: Store, settings: list[str], fold: int, arguments: argparse.Namespace) -> dict:
    """Coverage and width by held-out group of one outer fold."""
    split = f"split={{kind: combo, folds: {arguments.folds}, fold: {fold}}}"
    config = ExperimentConfig.load(None, [split, *settings])
    seeds = list(range(arguments.members))
    ensemble, groups = fit_ensemble(
        store, config, seeds, arguments.calibration_folds, arguments.seeds_per_fold
    )
    table = evaluate(store, groups, ensemble).table
    own = table[table["method"] == METHOD].pivot_table(
        index=["dataset", "context", "perturbation", "category"], columns="metric", values="value"
    )
    rows = own[[COVERAGE, WIDTH, "l2", "pearson_delta"]].reset_index().to_dict("records")
    calibration = ensemble.calibration
    return {"factor": calibration.factor, "n": calibration.n, "kind": calibration.kind, "groups": rows}


def summarise(folds: list[dict]) -> dict:
    rows = [row for fold in folds for row in fold["groups"]]
    result = {"n": len(rows), "genes_inside": bootstrap_mean([row[COVERAGE] for row in rows])._asdict()}
    result["width"] = bootstrap_mean([row[WIDTH] for row in rows])._asdict()
    result["lowest_group"] = float(np.min([row[COVERAGE] for row in rows]))
    for category in sorted({row["category"] for row in rows}):
        values = [row[COVERAGE] for row in rows if row["category"] == category]
        result[category] = {"n": len(values), **bootstrap_mean(values)._asdict()}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--calibration-folds", type=int, default=4)
    parser.add_argument("--seeds-per-fold", type=int, default=2)
    parser.add_argument("--only", choices=STUDIED)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in STUDIED:
        if arguments.only not in (None, name) or not STUDIES[name].at_hand:
            continue
        place = arguments.out / f"intervals_{name}.json"
        about = {key: value for key, value in vars(arguments).items() if key not in ("out", "only")}
        found = json.loads(place.read_text()) if place.exists() else {}
        folds = found.get("folds", []) if found.get("about") == about else []
        with tempfile.TemporaryDirectory() as folder:
            with ray_session():
                path, settings = make_store(STUDIES[name], Path(folder))
            store = Store.open(str(path))
            for fold in range(len(folds), arguments.folds):
                folds.append(of_fold(store, [*settings, *arguments.settings], fold, arguments))
                report = {"about": about, "summary": summarise(folds), "folds": folds}
                place.write_text(json.dumps(report, indent=1) + "\n")
                print(f"{name}, fold {fold}: {report['summary']['genes_inside']}", flush=True)
        print(name, json.dumps(report["summary"] if folds else {}, indent=1))


if __name__ == "__main__":
    main()
