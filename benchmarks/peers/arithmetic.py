"""Plain arithmetic on the cases of pathways, for what a program adds to it: means of a pathway's genes."""

import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from peers import pathway_tests
from tadvae.pathways.membership import MIN_MEASURED
from tadvae.pathways.read import read_pathways

METHODS = {"mean of members": False, "mean of members minus mean of all genes": True}
"""Whether the cell's mean over all measured genes is subtracted, by method."""

Scores = dict[str, float]


def arithmetic_scores(cases: list[Path], short: Callable[[Scores], Scores]) -> dict[str, dict[str, Scores]]:
    """Scores by method and case."""
    return {
        method: {case.name: short(pathway_tests.score(case, _reader(case, centred))) for case in cases}
        for method, centred in METHODS.items()
    }


def _reader(case: Path, centred: bool) -> pathway_tests.Reader:
    about = json.loads((case / "case.json").read_text())
    sets = read_pathways(case / about["pathways"])

    def read(name: str) -> pd.DataFrame:
        cells = ad.read_h5ad(case / about["cells"][name]).to_df()
        X, column = cells.to_numpy(np.float64), {gene: i for i, gene in enumerate(cells.columns)}
        X = X - X.mean(axis=1, keepdims=True) if centred else X
        members = {
            key: [column[gene] for gene in genes if gene in column]
            for key, genes in zip(sets.ids, sets.genes, strict=True)
        }
        return pd.DataFrame(
            {key: X[:, genes].mean(axis=1) for key, genes in members.items() if len(genes) >= MIN_MEASURED}
        )

    return read
