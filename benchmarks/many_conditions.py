"""Screens of very many perturbations with one cell each: do time and memory grow with their number alone?

For each number, a process of its own plans the conversion (it parses the labels and names the targets),
converts, and trains the network for one epoch, without the regression of mean effects, whose memory grows
with the square (see ``tadvae/effects/memory.py``). CPU seconds of that process, and its peak memory.

    python benchmarks/many_conditions.py [2000 8000 …]
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import yaml
from scipy import sparse

from pipelines.convert import convert
from pipelines.train.train import train
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.conversion import plan_store
from tadvae.store.spec import load_spec

GENES, CONTROLS = 200, 500
SETTINGS = ["effects.weight=0", "split.kind=single", "train={epochs: 1, trackers: []}"]


def write_screen(folder: Path, n: int) -> None:
    """A screen of n perturbations of one cell and 500 controls, its spec, and ten pathways."""
    rng = np.random.default_rng(0)
    cells = n + CONTROLS
    counts = sparse.random(
        cells, GENES, 0.2, "csr", np.float32, random_state=0, data_rvs=lambda k: rng.integers(1, 9, k)
    )
    labels = ["control"] * CONTROLS + [f"P{i:06d}" for i in range(n)]
    obs = pd.DataFrame({"condition": labels}, index=[f"c{i}" for i in range(cells)])
    names = [f"G{i}" for i in range(GENES)]
    ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=names)).write_h5ad(folder / "screen.h5ad")
    dataset: dict[str, object] = {"name": "s", "path": "screen.h5ad", "modality": "drug"}
    dataset["perturbation"] = {"column": "condition", "control": "control"}
    genes = {"reference": "none", "max_unknown": 1.0}
    (folder / "spec.yaml").write_text(yaml.safe_dump({"datasets": [dataset], "genes": genes}))
    sets = ("\t".join([f"S{k}", "", *names[20 * k : 20 * k + 20]]) for k in range(10))
    (folder / "sets.gmt").write_text("\n".join(sets) + "\n")


def measure(n: int) -> dict[str, float]:
    """Plan, convert and train once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_screen(folder, n)
        start = time.process_time()
        plan_store(load_spec(folder / "spec.yaml"))
        planned = time.process_time()
        convert(str(folder / "spec.yaml"), str(folder / "store"))
        converted = time.process_time()
        config = ExperimentConfig.load(None, [f"pathways.file={folder / 'sets.gmt'}", *SETTINGS])
        run = train(str(folder / "store"), str(folder / "run"), config, progress=False)
        trained = time.process_time()
        steps = len(run.steps())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts it in KiB
    return {
        "perturbations": n, "plan, s": planned - start, "train, s": trained - converted,
        "train, ms per step": 1e3 * (trained - converted) / steps, "peak memory, GiB": peak,
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    for n in [int(word) for word in sys.argv[1:]] or [2_000, 8_000]:
        command = [sys.executable, __file__, "--one", str(n)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print("  ".join(f"{key} {value:,.4g}" for key, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
