"""What do layers of the encoder give? Simulated screens with a known truth, the network alone, by seed.

For each number of layers of the encoder ``inducing`` (0: no encoder) and each value mode: the correlation
over cells of each pathway's activity with the true one, and the scores of held-out combinations. Paired by
seed; width 32, 2 heads::

    python benchmarks/encoder_layers.py --seeds 3 --json benchmarks/results/encoder_layers.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import pandas as pd
import torch
from truth import activity_scores

from pipelines.convert import convert
from tadvae.evaluation.evaluate import evaluate
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import Simulation, simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit

SIZE = "model.pathway={{masking: members, d_embed: 32, n_heads: 2, value_mode: {mode}}}"


def scores(store: Store, simulation: Simulation, settings: list[str]) -> dict[str, float]:
    """Truth of activities and mean scores over the held-out combinations of one model."""
    model, groups = fit(store, ExperimentConfig.load(None, settings))
    table = evaluate(store, groups, model).table
    own = table[table["method"] == "tadvae"].groupby("metric")["value"].mean()
    found = {"activity": activity_scores(model, simulation)}
    return found | {name: float(own[name]) for name in ("pearson_delta", "l2", "mmd") if name in own}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--modes", nargs="*", default=["scale", "film"])
    parser.add_argument("--set", action="append", default=[], dest="settings")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as top:
        for seed in range(options.seeds):
            folder = Path(top) / str(seed)
            simulation = simulate(SimulationConfig(seed=seed))
            write_simulation(simulation, folder / "screens")
            convert(str(folder / "screens" / "spec.yaml"), str(folder / "store"))
            store = Store.open(str(folder / "store"))
            for mode in options.modes:
                for layers in options.layers:
                    settings = [
                        f"seed={seed}",
                        "effects.weight=0",
                        f"pathways.file={folder}/screens/pathways.gmt",
                        SIZE.format(mode=mode),
                        *([f"model.encoder={{kind: inducing, n_layers: {layers}}}"] if layers else []),
                        *options.settings,
                    ]
                    row = {"seed": seed, "mode": mode, "layers": layers}
                    rows.append(row | scores(store, simulation, settings))
                    print(pd.DataFrame(rows).round(4).to_string(), flush=True)
                    if options.json:
                        about = {"about": __doc__, "settings": options.settings}
                        options.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    table = pd.DataFrame(rows).drop(columns="seed")
    print(table.groupby(["mode", "layers"]).mean().round(4).to_string())


if __name__ == "__main__":
    main()
