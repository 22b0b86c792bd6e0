"""A training step: does it wait for data, what do its phases cost, do two workers halve the time?

Runs of ``tadvae train`` on synthetic cells of 20,000 genes with 1,500 expressed, 200 pathways, one thread per
worker; bags have about 50 cells, as those of a screen with hundreds of cells per target. The default settings
are compared with the encoder ``inducing`` at the default width, in smaller batches because its steps are
long. Phases come from the run's own log; every run prints them at its end. The run with one worker and the
run with two have the same number of bags per step and worker. One worker trains in this process, two are
workers of Ray Train. Once, memory that large arrays leave is returned to the system, as the C library does by
default (``tadvae/base/allocator.py``), and once, errors and distances come from decoded cells, as on a GPU
(``tadvae/nn/linear_cells.py``). "Start" is the time before the training loop of a run begins: that of
Ray Train's processes and their imports. Ray itself was started before; its first training starts more
processes than the later ones.

    python benchmarks/train_step.py [--json FILE] [--folder FOLDER] [--quick]
"""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

from claims import Claims, about, parse, scratch
from synthetic import make_pathways, make_screen, store_of

from pipelines.cluster.connection import ray_session
from pipelines.train.phases import Phases, phases
from pipelines.train.train import train
from tadvae.model.run_folder import RunFolder
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig

COMMON = ["split.kind=none", "effects.weight=0", "stream.threads=1"]
MODELS = {
    "default": ["stream.bags_per_batch=8"],
    # the default masking has no tokens for an encoder
    "inducing": [
        "stream.bags_per_batch=2",
        "model.pathway.masking=members",
        "model.encoder.kind=inducing",
    ],
}
EPOCHS = {"default": 12, "inducing": 1}


def run(folder: Path, store: Path, config: ExperimentConfig, workers: int) -> Phases:
    """Train, and forget all but how long it took."""
    out, called = folder / "run", time.time()
    train(str(store), str(out), config, workers=workers, progress=False)
    found = phases(RunFolder(out), called)
    assert found is not None
    shutil.rmtree(out)
    return found


def main() -> None:
    options = parse(__doc__)
    claims = Claims("train_step", about(__doc__))
    rows = []
    spent: dict[tuple[str, int], Phases] = {}
    with scratch(options) as folder, ray_session(3):
        make_pathways(folder / "pathways.gmt", 2_000, 20 if options.quick else 200)
        screen = folder / "full-bags.h5ad"
        if options.quick:
            make_screen(screen, 200, 2_000, 150, n_targets=2)
        else:
            make_screen(screen, 2_400, n_targets=20)
        store = store_of(folder, [screen])
        experiments = {}
        for model, settings in MODELS.items():
            config = [f"pathways.file={folder / 'pathways.gmt'}", *COMMON, *settings]
            config.append(f"train={{epochs: {1 if options.quick else EPOCHS[model]}, trackers: []}}")
            if options.quick and model != "default":
                config.append("model.pathway={masking: members, d_embed: 16, n_heads: 2}")
            experiments[model] = ExperimentConfig.load(None, config)
        # these first: a process that once keeps memory goes on to keep it
        with patch("tadvae.training.epochs.keep_freed_memory"):
            returned = {name: run(folder, store, config, 1) for name, config in experiments.items()}
        with patch.object(TADVAEModule, "_by_products", False):
            decoding = run(folder, store, experiments["default"], 1)
        for name, config in experiments.items():
            rows.append({"model": f"{name}, freed memory returned", "workers": 1, **asdict(returned[name])})
            if name == "default":
                rows.append({"model": "default, cells decoded", "workers": 1, **asdict(decoding)})
            for workers in (1, 2):
                spent[name, workers] = run(folder, store, config, workers)
                rows.append({"model": name, "workers": workers, **asdict(spent[name, workers])})
    claims.table("Phases, seconds", rows)
    for model in MODELS:
        one, two = spent[model, 1], spent[model, 2]
        claims.aim(f"{model}: share of the steps spent waiting for data, one worker", one.wait, at_most=0.05)
        claims.aim(
            f"{model}: time of a step where memory is kept over returned",
            one.step / returned[model].step,
            at_most=1,
        )
        claims.aim(
            f"{model}: cells/s of two workers over one", two.cells_a_second / one.cells_a_second, at_least=1.6
        )
    claims.aim(
        "default: time of a step without decoding cells over with",
        spent["default", 1].step / decoding.step,
        at_most=1,
    )
    one, two = spent["inducing", 1], spent["inducing", 2]
    claims.aim("start of a run until its loop begins, one worker, s", spent["default", 1].start, at_most=12)
    claims.aim("the same, two workers, second run of a Ray, s", two.start, at_most=12)
    claims.figure("cells/s of a training worker", one.cells_a_second)
    claims.figure("share of waiting", one.wait)
    claims.finish(options)


if __name__ == "__main__":
    main()
