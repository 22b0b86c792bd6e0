"""Escaped cells: found in simulated screens with a known truth, and left out of a real one.

    python benchmarks/quality_control.py [--json FILE]

Simulated: the screens of the demo with 30% escaped cells, three seeds; area under the ROC curve of the
probability over all perturbed cells, with the direction of a regularised discriminant and with independent
genes, and for two numbers of genes.

Papalexi 2021: every target's cells are cut into two random halves, three times. The mean of one half predicts
that of the other, and the mean effect of the other targets predicts a target that is held out; L2 distance of
mean profiles, with escaped cells left out of the training half, of the test half, of both and of none. Each
half is divided with its own half of the controls. As a control, as many random cells are left out. The data
folder is the environment variable TADVAE_DATA, or ../shared/data next to the repository.
"""

import argparse
import json
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from sklearn.metrics import roc_auc_score

from tadvae.cells.normalize import normalize
from tadvae.evaluation.bootstrap import paired_bootstrap_difference
from tadvae.screen_qc.escaped_cells import GeneMoments, divide_cells, responding
from tadvae.screen_qc.thresholds import QcConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.simulate import simulate

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("TADVAE_DATA", DEFAULT))
SEEDS, HALVINGS, LIMIT = 3, 3, 0.5
ALL, KEPT, RANDOM = "all cells", "without escaped cells", "without as many random cells"


def normalised(data: Any, total: str | None = None) -> np.ndarray:
    counts = data.X.tocsr()
    library = np.asarray(counts.sum(axis=1)).ravel() if total is None else data.obs[total].to_numpy()
    counts.data = normalize(counts.data, counts.indices, counts.indptr, library, "cp10k").astype(np.float64)
    return np.asarray(counts.toarray())


def probability(cells: np.ndarray, controls: np.ndarray, config: QcConfig) -> np.ndarray:
    """Probability that each cell is perturbed, NaN where it cannot be told."""
    found = responding(GeneMoments.of(cells), GeneMoments.of(controls), config.fdr)
    genes = found[: config.max_genes]
    return divide_cells(cells[:, genes], controls[:, genes], config).probability


def simulated(config: QcConfig) -> dict[str, Any]:
    aucs, shares = [], []
    for seed in range(SEEDS):
        default = SimulationConfig()
        screens = tuple(each.model_copy(update={"escaped": 0.3}) for each in default.screens)
        world = simulate(SimulationConfig(seed=seed, truth_cells=1, screens=screens))
        for screen, truth in zip(world.screens, world.truth.screens, strict=True):
            values = normalised(screen)
            label = screen.obs["condition"].astype(str).to_numpy()
            line = screen.obs["cell_type"].astype(str).to_numpy()
            found = np.full(len(values), np.nan)
            for name, place in product(sorted(set(label) - {"control"}), sorted(set(line))):
                rows = (label == name) & (line == place)
                controls = values[(label == "control") & (line == place)]
                found[rows] = probability(values[rows], controls, config)
            known = np.isfinite(found)
            aucs.append(float(roc_auc_score(~truth.escaped[known], found[known])))
            shares.append(float(1 - found[known].mean() - truth.escaped[known].mean()))
    return {"auroc": aucs, "error_of_share": shares, "mean_auroc": float(np.mean(aucs))}


def halves(seed: int, values: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """L2 by what is left out of the training half and of the test half, per target."""
    rng, config = np.random.default_rng(seed), QcConfig()
    rows = np.flatnonzero(label == "control")
    rng.shuffle(rows)
    control = [values[part] for part in np.array_split(rows, 2)]
    names, means, shares = [], [], []
    for name in sorted(set(label) - {"control"}):
        rows = np.flatnonzero(label == name)
        rng.shuffle(rows)
        each: list[dict[str, np.ndarray]] = []
        for half, part in enumerate(np.array_split(rows, 2)):
            cells = values[part]
            kept = ~(probability(cells, control[half], config) < LIMIT)
            as_many = rng.permutation(len(cells))[: kept.sum()]
            shares.append(float(1 - kept.mean()))
            each.append(
                {ALL: cells.mean(axis=0), KEPT: cells[kept].mean(axis=0), RANDOM: cells[as_many].mean(axis=0)}
            )
        names.append(name)
        means.append(each)
    by_target = np.reshape(shares, (-1, 2)).mean(axis=1)
    result: dict[str, Any] = {"left_out": dict(zip(names, by_target.tolist(), strict=True))}
    for train, test in product((ALL, KEPT, RANDOM), (ALL, KEPT)):
        learned = np.stack([each[0][train] - control[0].mean(axis=0) for each in means])
        asked = np.stack([each[1][test] - control[1].mean(axis=0) for each in means])
        others = (learned.sum(axis=0) - learned) / (len(learned) - 1)
        result[f"{train} -> {test}"] = {
            "other half": np.linalg.norm(learned - asked, axis=1).tolist(),
            "other targets": np.linalg.norm(others - asked, axis=1).tolist(),
        }
    return result


def papalexi() -> dict[str, Any]:
    data = anndata.read_h5ad(DATA / "screens" / "papalexi21_thp1_eccite.h5ad")
    values, label = normalised(data, "cov_response_n_umis"), data.obs["condition"].astype(str).to_numpy()
    every = [halves(seed, values, label) for seed in range(HALVINGS)]
    left_out = {
        name: float(np.mean([each["left_out"][name] for each in every])) for name in every[0]["left_out"]
    }
    table: dict[str, Any] = {"left_out": left_out, "mean_left_out": float(np.mean(list(left_out.values())))}
    for test, question in product((ALL, KEPT), ("other half", "other targets")):
        l2 = {
            train: np.mean([each[f"{train} -> {test}"][question] for each in every], axis=0)
            for train in (ALL, KEPT, RANDOM)
        }
        difference = paired_bootstrap_difference(l2[KEPT], l2[ALL])
        table[f"{question}, test {test}"] = {
            **{train: float(scores.mean()) for train, scores in l2.items()},
            "difference": [float(difference.mean), float(difference.low), float(difference.high)],
            "n": len(l2[ALL]),
        }
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = {
        "simulated": {
            f"shrinkage {shrinkage:g}, {genes} genes": simulated(
                QcConfig(shrinkage=shrinkage, max_genes=genes)
            )
            for shrinkage, genes in product((0.5, 1.0), (40, 100))
        },
        "papalexi21": papalexi(),
    }
    text = json.dumps(found, indent=1)
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
