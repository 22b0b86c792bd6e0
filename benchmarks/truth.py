"""Does the model recover the truth? Simulated screens with a known causal truth, by seed and strategy.

For every seed: the share of targets assigned to their true factor and the F1 of the graph's edges, read
from interventions (``TADVAE.causal_graph``) and from the graph that training learned; and the correlation
over cells of each pathway's activity with the true activity, by masking strategy, with two upper bounds:
the best linear fit of the true activity on the pathway's own genes, and on all genes (both use the truth)::

    python benchmarks/truth.py --seeds 5 --json benchmarks/results/truth.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from pipelines.convert import convert
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import Simulation, simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit

STRATEGIES = ("linear", "agreement", "members", "hard", "soft_log", "soft", "none")


def match(found: np.ndarray, true: np.ndarray, K: int) -> dict[int, int]:
    """The pairing of found factors with true ones that agrees on most targets."""
    table = np.zeros((K, K))
    np.add.at(table, (found, true), 1)
    return dict(zip(*linear_sum_assignment(-table), strict=True))


def assigned(found: np.ndarray, true: np.ndarray, K: int) -> float:
    pairs = match(found, true, K)
    return float(np.mean([pairs[f] == t for f, t in zip(found, true, strict=True)]))


def edge_f1(graph: np.ndarray, pairs: dict[int, int], true: np.ndarray) -> float:
    moved = np.zeros(true.shape, bool)
    for i, j in zip(*np.nonzero(graph), strict=True):
        moved[pairs[int(i)], pairs[int(j)]] = True
    return float(2 * (moved & (true != 0)).sum() / max(moved.sum() + (true != 0).sum(), 1))


def learned_graph(model: TADVAE, K: int) -> tuple[np.ndarray, np.ndarray]:
    """The factor that training assigned each target to, and its graph with the K² · 35% largest edges."""
    causal = model.module.causal
    with torch.no_grad():
        codes = causal.codes(torch.arange(causal.n_targets), model.module.decoder.gene)
        target_factor = causal.assignment(codes, 100.0).argmax(1).numpy()
    graph = model.graph()
    kept = np.sort(np.abs(graph[np.triu_indices(K, 1)]))[::-1]
    return target_factor, np.where(np.abs(graph) >= kept[round(0.35 * len(kept)) - 1], graph, 0.0)


def causal_scores(model: TADVAE, simulation: Simulation) -> dict[str, float]:
    truth, K = simulation.truth, len(simulation.truth.graph)
    true_factor = dict(zip(truth.targets, truth.target_factor, strict=True))
    seen = [t.name for t in model.vocabulary.targets if t.seen]
    true = np.array([true_factor[name] for name in seen])
    read = model.causal_graph(K)
    learned_factor, learned = learned_graph(model, K)
    learned_factor = learned_factor[[model.vocabulary.target_index[name] for name in seen]]
    return {
        "targets, read": assigned(read.target_factor, true, K),
        "edges F1, read": edge_f1(read.graph, match(read.target_factor, true, K), truth.graph),
        "targets, learned": assigned(learned_factor, true, K),
        "edges F1, learned": edge_f1(learned, match(learned_factor, true, K), truth.graph),
    }


def explained(X: np.ndarray, y: np.ndarray) -> float:
    X = np.c_[X, np.ones(len(X))]
    return float(np.corrcoef(X @ np.linalg.lstsq(X, y, rcond=None)[0], y)[0, 1])


def activity_scores(model: TADVAE, simulation: Simulation, smooth: int | None = None) -> float:
    """Mean |correlation| of a pathway's activity with the true one, over screens and their pathways."""
    found = []
    for screen, truth in zip(simulation.screens, simulation.truth.screens, strict=True):
        adata = ad.AnnData(screen.X.astype(np.float32), screen.obs, screen.var)
        activity = model.activities(adata, smooth=smooth)
        for p, name in enumerate(simulation.truth.pathways):
            if name in activity and activity[name].notna().all():
                found.append(abs(np.corrcoef(activity[name], truth.activity[:, p])[0, 1]))
    return float(np.mean(found))


def bounds(simulation: Simulation) -> dict[str, float]:
    own, every = [], []
    for screen, truth in zip(simulation.screens, simulation.truth.screens, strict=True):
        counts = screen.X.toarray().astype(float)
        X = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
        for p in range(len(simulation.truth.pathways)):
            members = np.flatnonzero(simulation.truth.weight[p, truth.panel])
            if len(members) >= 5:
                own.append(explained(X[:, members], truth.activity[:, p]))
                every.append(explained(X, truth.activity[:, p]))
    return {"bound, own genes": float(np.mean(own)), "bound, all genes": float(np.mean(every))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as top:
        simulations = [simulate(SimulationConfig(seed=seed)) for seed in range(arguments.seeds)]
        for seed, simulation in enumerate(simulations):
            folder = Path(top) / str(seed)
            write_simulation(simulation, folder / "screens")
            convert(str(folder / "screens" / "spec.yaml"), str(folder / "store"))
            store = Store.open(str(folder / "store"))
            row: dict[str, float] = {"seed": seed, **bounds(simulation)}
            for strategy in arguments.strategies:
                settings = [
                    f"seed={seed}",
                    "split.kind=none",
                    f"pathways.file={folder}/screens/pathways.gmt",
                    f"model.causal.n_factors={len(simulation.truth.graph)}",
                    f"model.pathway.masking={strategy}",
                    *arguments.settings,
                ]
                model, _ = fit(store, ExperimentConfig.load(None, settings))
                row[f"activity, {strategy}"] = activity_scores(model, simulation)
                if model.module.pathway.is_linear:
                    row[f"activity, {strategy}, not smoothed"] = activity_scores(model, simulation, 0)
                if strategy == arguments.strategies[0]:
                    row |= causal_scores(model, simulation)
            rows.append(row)
            print(pd.DataFrame(rows).round(3).T.to_string(), flush=True)
    table = pd.DataFrame(rows).set_index("seed")
    print(table.mean().round(3).to_string())
    if arguments.json:
        arguments.json.write_text(json.dumps({"settings": arguments.settings, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
