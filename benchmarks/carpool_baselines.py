"""The simple baselines on held-out double knock-downs of CaRPool-seq (Wessels et al. 2023).

Five-fold cross-validation over the 60 doubles: each fold is predicted from the control, all 28 singles and
the doubles of the other folds. The folds are drawn anew for every seed; a double's score is its mean over
the seeds, and the interval is a bootstrap over the doubles.

    python benchmarks/carpool_baselines.py [--json FILE] [--seeds 0 1 2 3 4]

The data folder is the environment variable TADVAE_DATA, or ../shared/data next to the repository.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from tadvae.evaluation.baselines import BASELINES, Array, Profiles, fit_all
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.metrics import METRICS, score_profiles

FILE = Path("profiles") / "carpool23_thp1_cas13d_means.h5ad"
FOLDS = 5
REFERENCE = "additive"  # every baseline is also compared with it, double by double


def data_folder() -> Path:
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("TADVAE_DATA", default))


def read_profiles(path: Path) -> Profiles:
    """All 88 conditions of the file; ``obs.perturbation`` is ``control``, ``A`` or ``A+B``."""
    adata = anndata.read_h5ad(path)
    names = [str(name) for name in adata.obs["perturbation"]]
    values = np.asarray(adata.X, dtype=np.float64)  # (89, 2000)
    genes = [str(gene) for gene in adata.var_names]
    kept = [i for i, name in enumerate(names) if name != "control"]
    targets = [tuple(names[i].split("+")) for i in kept]
    return Profiles(
        control=values[names.index("control")],
        targets=targets,
        means=values[kept],
        genes=genes,
        target_gene={target: target for combination in targets for target in combination},
    )


def folds(doubles: Sequence[int], seed: int) -> Iterator[list[int]]:
    """The held-out conditions of each fold of one seed."""
    order = np.random.default_rng(seed).permutation(np.asarray(doubles))
    for part in np.array_split(order, FOLDS):
        yield sorted(part.tolist())


def cross_validate(profiles: Profiles, seeds: Sequence[int]) -> dict[str, dict[str, Array]]:
    """{baseline: {metric: mean over seeds, (doubles,)}}."""
    doubles = [i for i, targets in enumerate(profiles.targets) if len(targets) > 1]
    true = profiles.means[doubles]  # (60, G)
    place = {condition: row for row, condition in enumerate(doubles)}
    total = {name: {metric: np.zeros(len(doubles)) for metric in METRICS} for name in BASELINES}
    for seed in seeds:
        pred = {name: np.zeros_like(true) for name in BASELINES}
        for test in folds(doubles, seed):
            train = [i for i in range(len(profiles.targets)) if i not in test]
            training = Profiles(
                control=profiles.control,
                targets=[profiles.targets[i] for i in train],
                means=profiles.means[train],
                genes=profiles.genes,
                target_gene=profiles.target_gene,
            )
            for name, baseline in fit_all(training).items():
                pred[name][[place[i] for i in test]] = baseline.predict([profiles.targets[i] for i in test])
        for name in BASELINES:
            for metric, scores in score_profiles(pred[name], true, profiles.control).items():
                total[name][metric] += scores / len(seeds)
    return total


def summarise(scores: dict[str, dict[str, Array]]) -> dict[str, dict[str, Any]]:
    """{baseline: {metric: {mean, low, high, minus_reference}}}."""
    return {
        name: {
            metric: bootstrap_mean(values)._asdict()
            | {"minus_" + REFERENCE: paired_bootstrap_difference(values, scores[REFERENCE][metric])._asdict()}
            for metric, values in by_metric.items()
        }
        for name, by_metric in scores.items()
    }


def table(summary: dict[str, dict[str, Any]]) -> str:
    lines = ["baseline        " + "".join(f"{metric:>24}" for metric in METRICS)]
    for name, by_metric in summary.items():
        cells = [f"{s['mean']:.3f} [{s['low']:.3f}, {s['high']:.3f}]" for s in by_metric.values()]
        lines.append(f"{name:<16}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="fold assignments")
    options = parser.parse_args()
    path = data_folder() / FILE
    if not path.is_file():
        print(f"{path}: no such file; set TADVAE_DATA to the folder that holds {FILE}.", file=sys.stderr)
        return 2
    summary = summarise(cross_validate(read_profiles(path), options.seeds))
    print(f"CaRPool-seq, {FOLDS}-fold over doubles, {len(options.seeds)} seeds, 95% bootstrap over doubles")
    print(table(summary))
    ratio = summary["additive_ridge"]["l2"]["mean"] / summary[REFERENCE]["l2"]["mean"]
    print(f"additive_ridge / {REFERENCE}: l2 ratio {ratio:.3f}")
    if options.json:
        options.json.write_text(json.dumps({"seeds": options.seeds, "baselines": summary}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
