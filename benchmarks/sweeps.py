"""How long a search for settings takes: the default sweep and ``--paper``, on the screens of the demo.

The store is that of ``make demo`` (5,100 cells of two screens, 600 genes a screen, 24 pathways). ``tadvae
tune run`` trains 20 trials of up to 30 epochs and stops those with worse results early; ``tadvae tune run
--paper`` trains 25 trials of 10 epochs to the end. One trial trains at a time, on one core. The time is that
of the whole sweep, with what is checked before the first trial, and without the start of Ray.

    python benchmarks/sweeps.py [--json FILE] [--folder FOLDER] [--quick]
"""

import shutil
import time
from pathlib import Path
from typing import Any

from claims import Claims, about, parse, scratch

from pipelines.cluster.connection import ray_session
from pipelines.convert import convert
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import simulate_to
from tune.config import DEFAULT_SPACE, PAPER, SweepConfig
from tune.sweep import run_sweep

MINUTES = {"default": 30, "--paper": 60}
SPACES = {"default": DEFAULT_SPACE, "--paper": PAPER}


def sweep(store: Path, out: Path, name: str, pathways: Path, quick: bool) -> dict[str, Any]:
    """Run one sweep; how long it took, and what became of its trials."""
    settings = [f"experiment.pathways.file={pathways}"]
    if quick:
        settings += ["trials=1", "scheduler=null", "experiment.train.epochs=1"]
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    records = run_sweep(str(store), str(out), SweepConfig.load(SPACES[name], settings))
    seconds = time.perf_counter() - begun
    counts = {
        what: sum(each.status == what for each in records) for what in ("finished", "stopped", "failed")
    }
    return {
        "sweep": name,
        "trials": len(records),
        **counts,
        "epochs": sum(len(each.curve) for each in records),
        "longest trial, s": max(each.seconds for each in records),
        "minutes": seconds / 60,
    }


def main() -> None:
    options = parse(__doc__)
    claims = Claims("sweeps", about(__doc__))
    with scratch(options) as folder, ray_session(3):
        screens, store = folder / "demo", folder / "demo-store"
        if not store.exists():
            convert(str(simulate_to(screens, SimulationConfig())), str(store))
        names = ["default"] if options.quick else list(SPACES)
        rows = [
            sweep(store, folder / "sweep", name, screens / "pathways.gmt", options.quick) for name in names
        ]
    claims.table("Sweeps", rows)
    for row in rows:
        name = row["sweep"]
        claims.aim(f"{name}: minutes of {row['trials']} trials", row["minutes"], at_most=MINUTES[name])
    claims.finish(options)


if __name__ == "__main__":
    main()
