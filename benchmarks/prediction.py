"""Prediction of 10,000 combinations × 2,000 genes in one call.

A small model is fitted (a screen of 2,000 genes and 200 targets, regression of mean effects included), then
``TADVAE.predict_means`` predicts pairs of targets that no cell had, from 128 control cells, on one thread.
For comparison, ``predict`` in a loop, which makes every cell, is timed on 5 of them.

    python benchmarks/prediction.py [--json FILE] [--folder FOLDER] [--quick]
"""

import itertools
import time

import numpy as np
import torch
from claims import Claims, about, parse, scratch
from synthetic import make_pathways, make_screen, store_of

from pipelines.cluster.connection import ray_session
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit


def main() -> None:
    options = parse(__doc__)
    torch.set_num_threads(1)
    claims = Claims("prediction", about(__doc__))
    n_cells, n_targets, n_asked = (500, 20, 150) if options.quick else (8_000, 200, 10_000)
    with scratch(options) as folder:
        path = folder / f"targets-{n_cells}.h5ad"
        make_screen(path, n_cells, 2_000, 300, n_targets)
        with ray_session():
            store = store_of(folder, [path])
        make_pathways(folder / "pathways.gmt", 2_000, 100)
        settings = [f"pathways.file={folder / 'pathways.gmt'}", "split.kind=none", "train.epochs=1"]
        model, _ = fit(Store.open(str(store)), ExperimentConfig.load(None, settings))
    context = model.vocabulary.contexts[0]
    names = [target.name for target in model.vocabulary.targets if target.seen]
    pairs = list(itertools.combinations(names, 2))
    rng = np.random.default_rng(0)
    asked = [pairs[i] for i in rng.choice(len(pairs), n_asked, replace=False)]
    start = time.perf_counter()
    found = model.predict_means(asked, context=context.name)
    seconds = time.perf_counter() - start
    assert np.isfinite(found.to_numpy()).all()
    start = time.perf_counter()
    for target in asked[:5]:
        model.predict(target, context=context.name)
    one = (time.perf_counter() - start) / 5
    claims.table(
        "Prediction",
        [
            {"how": "predict_means, one call", "perturbations": n_asked, "genes": found.shape[1],
             "s": seconds},
            {"how": "predict, one after another (from 5)", "perturbations": n_asked, "genes": found.shape[1],
             "s": one * n_asked},
        ],
    )  # fmt: skip
    claims.aim(f"{n_asked:,} combinations × {found.shape[1]:,} genes in one call, s", seconds, at_most=30)
    claims.finish(options)


if __name__ == "__main__":
    main()
