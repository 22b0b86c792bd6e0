"""Peak memory of convert and of train as the data grows tenfold: 20,000 and 200,000 cells of 20,000 genes.

Every size runs in its own process with its own Ray instance. Memory is that of the driver and of all Ray
workers together; shared pages are counted once (proportional set sizes, sampled ten times per second).
Ray's own servers (raylet, GCS, dashboard) are not counted, because they do not see the data. Training is
one epoch over all cells on 500 variable genes with a small network, so that memory that grows with the data
would show.

    python benchmarks/memory.py [--json FILE] [--folder FOLDER] [--quick]
"""

import argparse
import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

from claims import Claims, about, parse, scratch
from measure import Memory
from synthetic import make_pathways, screen, store_of

from pipelines.cluster.connection import is_connected, ray_session
from pipelines.train.train import train
from tadvae.settings.experiment import ExperimentConfig

GIB = 2**30
SETTINGS = [
    "split.kind=none",
    "effects.weight=0",
    "preprocess.n_top_genes=500",
    "pathways.min_measured=1",
    "model.pathway={d_embed: 16, n_heads: 2, masking: linear}",
    "model.causal={n_factors: 8, hidden: 16}",
    "model.decoder={d_gene: 16, hidden: 16}",
    "stream.bags_per_batch=32",
    "train={epochs: 1, trackers: [], checkpoint_every: 50}",
]


def run_convert(folder: Path, path: Path) -> None:
    """Convert one screen."""
    shutil.rmtree(folder / f"{path.stem}-store", ignore_errors=True)
    store_of(folder, [path])


def run_train(folder: Path, path: Path) -> None:
    """Train on its store for one epoch."""
    make_pathways(folder / "pathways.gmt", 2_000, 100)
    run = folder / f"{path.stem}-run"
    config = ExperimentConfig.load(None, [f"pathways.file={folder / 'pathways.gmt'}", *SETTINGS])
    train(str(store_of(folder, [path])), str(run), config, progress=False)
    shutil.rmtree(run)


def peak(what: str, folder: Path, path: Path) -> dict[str, int]:
    """Peak memory of one run, in its own process; of a conversion in this one, if it has a Ray."""
    if what == "convert" and is_connected():
        return measured(what, folder, path)
    command = [sys.executable, __file__, "--run", what, "--path", str(path), "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(what: str, folder: Path, path: Path) -> dict[str, int]:
    """Peak memory of one run, in this process."""
    converts = what == "convert"  # one worker trains without Ray
    with ray_session(2) if converts else nullcontext(), Memory() as memory:
        (run_convert if converts else run_train)(folder, path)
    return {"peak": memory.peak, "largest": memory.largest}


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--run", choices=["convert", "train"], help=argparse.SUPPRESS)
        parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)

    options = parse(__doc__, more)
    if options.run:
        print(json.dumps(measured(options.run, options.folder, options.path)))
        return
    claims = Claims("memory", about(__doc__))
    sizes = (1_000,) if options.quick else (20_000, 200_000)
    rows, peaks = [], {}
    with scratch(options) as folder:
        for what in ("convert", "train"):
            for n_cells in sizes:
                found = peak(what, folder, screen(folder, "cells", n_cells, quick=options.quick))
                peaks[what, n_cells] = found["peak"]
                rows.append(
                    {
                        "run": what,
                        "cells": n_cells,
                        "all processes, GiB": found["peak"] / GIB,
                        "largest process, GiB": found["largest"] / GIB,
                    }
                )
    claims.table("Peak memory", rows)
    small, large = sizes[0], sizes[-1]
    for what in ("convert", "train"):
        growth = peaks[what, large] / peaks[what, small]
        claims.aim(f"{what}: peak memory, {large:,} over {small:,} cells", growth, at_most=1.1)
    claims.aim(f"convert: peak memory at {large:,} cells, GiB", peaks["convert", large] / GIB, at_most=2)
    claims.finish(options)


if __name__ == "__main__":
    main()
