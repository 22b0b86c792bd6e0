"""Scores of cell-eval on small fixed cells, for the test that our metrics of its names equal its own.

Reads counts and writes ``scores`` (perturbation to metric) and ``versions`` into the same file::

    build/peers/cell_eval/bin/python benchmarks/peers/run_cell_eval.py tests/golden/cell_eval.json
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["cell-eval==0.8.2", "pdex==0.3.0"]
# [tool.tadvae-peer]
# python = "3.11"
# job = "fixture"
# ///

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from cell_eval import MetricsEvaluator

LEFT_OUT = ["clustering_agreement"]  # needs more perturbations than there are


def cells(groups: dict[str, list[list[int]]], genes: list[str]) -> ad.AnnData:
    """Cells as log1p of counts per ten thousand."""
    counts = np.concatenate([np.array(each, np.float64) for each in groups.values()])
    X = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
    labels = [name for name, each in groups.items() for _ in each]
    obs = pd.DataFrame({"perturbation": labels}, index=[f"cell{i}" for i in range(len(labels))])
    return ad.AnnData(X, obs=obs, var=pd.DataFrame(index=genes))


def main(place: Path) -> None:
    fixture = json.loads(place.read_text())
    genes = [f"G{g}" for g in range(len(fixture["real"]["control"][0]))]
    pair = {which: cells(fixture[which], genes) for which in ("pred", "real")}
    with tempfile.TemporaryDirectory() as folder:
        evaluator = MetricsEvaluator(
            adata_pred=pair["pred"], adata_real=pair["real"], control_pert="control",
            pert_col="perturbation", outdir=folder, num_threads=1,
        )  # fmt: skip
        found, _ = evaluator.compute(profile="full", skip_metrics=LEFT_OUT, write_csv=False)
    rows = found.to_dicts()
    fixture["scores"] = {
        row.pop("perturbation"): {key: value for key, value in row.items() if value is not None}
        for row in rows
    }
    fixture["versions"] = {name: version(name) for name in ("cell-eval", "pdex", "numpy", "polars")}
    place.write_text(json.dumps(fixture) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
