"""A training step: does it wait for data, what do its phases cost, do two workers halve the time?

Runs of ``tadvae train`` on synthetic cells of 20,000 genes with 1,500 expressed, encoder ``inducing`` at
the default width, 200 pathways, one thread per worker. Phases come from the run's own log; every run prints
them at its end. The run with one worker and the run with two have the same number of bags per step and
worker. One worker trains in this process, two are workers of Ray Train. "Start" is the time before the
training loop of a run begins: that of Ray Train's processes and their imports. Ray itself was started before.

    python benchmarks/train_step.py [--json FILE] [--folder FOLDER] [--quick]
"""

import shutil
import time
from dataclasses import asdict

from claims import Claims, about, parse, scratch
from synthetic import make_pathways, screen, store_of

from pipelines.cluster.connection import ray_session
from pipelines.train.phases import Phases, phases
from pipelines.train.train import train
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig

SETTINGS = [
    "split.kind=none",
    "effects.weight=0",
    "model.pathway.masking=members",  # the default has no tokens
    "model.encoder.kind=inducing",
    "stream={bags_per_batch: 2, threads: 1}",
]


def main() -> None:
    options = parse(__doc__)
    claims = Claims("train_step", about(__doc__))
    n_cells = 400
    rows = []
    spent: dict[int, Phases] = {}
    with scratch(options) as folder, ray_session(3):
        make_pathways(folder / "pathways.gmt", 2_000, 20 if options.quick else 200)
        store = store_of(folder, [screen(folder, "cells", n_cells, quick=options.quick)])
        settings = [f"pathways.file={folder / 'pathways.gmt'}", *SETTINGS]
        settings.append("train={epochs: 1, checkpoint_every: 10, trackers: []}")
        if options.quick:
            settings.append("model.pathway={masking: members, d_embed: 16, n_heads: 2}")
        for workers in (1, 2):
            run = folder / f"run-{workers}"
            shutil.rmtree(run, ignore_errors=True)
            called = time.time()
            train(
                str(store), str(run), ExperimentConfig.load(None, settings), workers=workers, progress=False
            )
            found = phases(RunFolder(run), called)
            assert found is not None
            spent[workers] = found
            rows.append({"workers": workers, **asdict(found)})
            shutil.rmtree(run)
    claims.table("Phases, seconds", rows)
    claims.aim("share of the steps spent waiting for data, one worker", spent[1].wait, at_most=0.05)
    claims.aim(
        "cells/s of two workers over one", spent[2].cells_a_second / spent[1].cells_a_second, at_least=1.7
    )
    claims.aim(
        "start of a run until its loop begins, s", max(each.start for each in spent.values()), at_most=30
    )
    claims.figure("cells/s of a training worker", spent[1].cells_a_second)
    claims.figure("share of waiting", spent[1].wait)
    claims.figure("start of a run, s", spent[2].start)
    claims.figure("checkpoint and report, s", spent[2].checkpoint + spent[2].report)
    claims.finish(options)


if __name__ == "__main__":
    main()
