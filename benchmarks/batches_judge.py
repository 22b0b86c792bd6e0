"""Scores of embeddings by scib-metrics, in an environment of its own; used by ``batches.py``.

    python batches_judge.py FILE.h5ad OUT

FILE has ``obs["batch"]``, ``obs["label"]`` and the embeddings in ``obsm``, ``genes, none`` among them, with
which the variance between batches is compared; those whose name ends in ``, none`` are corrected by Harmony
too. The scores are written to ``OUT/scores.json``.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["scib-metrics==0.5.10", "harmonypy==2.1.0"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "judge"
# ///

import json
import logging
import sys
import warnings
from pathlib import Path

import anndata as ad
import harmonypy
import numpy as np
from scib_metrics.benchmark import Benchmarker


def main(path: str, out: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    cells = ad.read_h5ad(path)
    names = list(cells.obsm)
    for name in [each for each in names if each.endswith(", none")]:
        found = harmonypy.run_harmony(
            np.asarray(cells.obsm[name], dtype=np.float64), cells.obs, ["batch"], random_state=0
        ).Z_corr
        found = np.asarray(found)
        key = name.replace(", none", ", Harmony")
        cells.obsm[key] = (found if len(found) == cells.n_obs else found.T).astype(np.float32)
    judge = Benchmarker(
        cells, "batch", "label", list(cells.obsm),
        pre_integrated_embedding_obsm_key="genes, none", n_jobs=1, progress_bar=False,
    )  # fmt: skip
    judge.benchmark()
    table = judge.get_results(min_max_scale=False).drop(index="Metric Type").astype(float)
    (Path(out) / "scores.json").write_text(json.dumps(table.round(4).to_dict("index")))


if __name__ == "__main__":
    main(*sys.argv[1:])
