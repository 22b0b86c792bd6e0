"""Is the model better than simple baselines on combinations that it has not seen?

Trains in this process (no Ray) on simulated screens, and where the real data is available on the screens
with combinations, and scores held-out combinations for the model and the baselines; prints one table per data
set, writes JSON::

    python benchmarks/quality.py --json quality.json --seeds 1 --set loss.mean_match=1

``--set`` changes the model's settings, and ``--compare`` two of these files on the same groups, so that an
attempt can be compared with the defaults.
"""

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
import torch
from studies import STUDIES, make_store

from tadvae.base.terminal import print_text
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.evaluate import METHOD, evaluate
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit

STUDIED = ("simulated", "carpool", "norman_mcfaline", "datlinger")
METRICS = ("pearson_delta", "l2", "cosine_logfc", "mmd")
RIVAL = "additive_ridge"


def scores(store_path: Path, settings: list[str], folds: int, seeds: int) -> pd.DataFrame:
    """Scores of every method on every held-out group: one value per group and seed."""
    store, parts = Store.open(str(store_path)), []
    for seed in range(seeds):
        for fold in range(folds):
            split = f"split={{kind: combo, folds: {folds}, fold: {fold}, seed: {seed}}}"
            config = ExperimentConfig.load(None, [split, f"seed={seed}", *settings])
            model, groups = fit(store, config)
            parts.append(evaluate(store, groups, model).table.assign(seed=seed))
    return pd.concat(parts)


def summarise(table: pd.DataFrame) -> dict:
    """Means over groups (of their mean over seeds) with intervals, and the paired difference to the rival."""
    keys = ["dataset", "context", "perturbation"]
    result: dict = {}
    for metric in METRICS:
        wide = table[table["metric"] == metric].pivot_table(index=keys, columns="method", values="value")
        if wide.empty:
            continue
        result[metric] = {method: bootstrap_mean(wide[method])._asdict() for method in wide.columns}
        difference = paired_bootstrap_difference(wide[METHOD], wide[RIVAL])
        result[metric][f"{METHOD} − {RIVAL}"] = difference._asdict()
        own = wide[METHOD].dropna()  # so that two settings can be compared on the same groups
        result[metric]["groups"] = {"/".join(map(str, group)): value for group, value in own.items()}
    return result


def compare(first: Path, second: Path) -> None:
    """Print the scores of the second file less those of the first, over the same groups."""
    one, two = (json.loads(file.read_text())["results"] for file in (first, second))
    for name in one.keys() & two.keys():
        for metric in one[name]:
            groups = (pd.Series(each[name][metric]["groups"]) for each in (two, one))
            found = paired_bootstrap_difference(*groups)
            print_text(f"{name} {metric}: {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")


def show(name: str, summary: dict) -> None:
    rows = {
        metric: {
            method: f"{v['mean']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
            for method, v in cells.items()
            if method != "groups"
        }
        for metric, cells in summary.items()
    }
    print(f"\n{name}\n{pd.DataFrame(rows).to_string()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", choices=STUDIED)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--compare", type=Path, nargs=2, metavar="JSON", help="compare two that are stored")
    arguments = parser.parse_args()
    if arguments.compare:
        compare(*arguments.compare)
        return
    torch.set_num_threads(1)  # the matrices are small: a second thread costs more than it does
    results = {}
    for name in STUDIED:
        if arguments.only not in (None, name) or not STUDIES[name].at_hand:
            continue
        with tempfile.TemporaryDirectory() as folder:
            store, settings = make_store(STUDIES[name], Path(folder))
            table = scores(store, [*settings, *arguments.settings], arguments.folds, arguments.seeds)
        results[name] = summarise(table)
        show(name, results[name])
    if arguments.json:
        about = {"settings": arguments.settings, "seeds": arguments.seeds, "folds": arguments.folds}
        arguments.json.write_text(json.dumps(about | {"results": results}, indent=1))


if __name__ == "__main__":
    main()
