"""Prediction of held-out perturbations: what a program reads, and how its mean profiles are scored.

The held-out groups are those of folds that ``make results`` has stored; the scores there, of our own model
and of the baselines, are for the same groups, cells and genes. A program reads ``cells`` (``.h5ad``: log1p of
counts per ten thousand, ``obs.condition``), the names of the held-out conditions in ``test``, and ``terms``
(gene to GO terms with a direct annotation). It may use every other condition as it likes, and writes
``prediction.npz``: ``mean`` (M, G), ``conditions``, ``genes`` and ``seconds`` of CPU of its training.
"""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from studies import DATA

from peers.exchange import normalised, write_case, write_cells
from tadvae.evaluation.metrics import l2, pearson_delta

RESULTS = Path(__file__).parents[1] / "results"
FOLDS = {"norman_alone": ("combo-fold-0", "single-fold-0")}
FILES = {"norman_alone": "screens/norman19_k562_crispra.h5ad"}
METRICS = {"pearson_delta": pearson_delta, "l2": l2}
_SAME = 1e-3  # relative difference of the stored and the repeated error of no change


def write_cases(folder: Path) -> list[Path]:
    """Write what is missing of all cases; returns their folders. A case has no held-out cell in ``cells``."""
    cases = []
    for study, folds in FOLDS.items():
        for fold in folds:
            case = folder / f"{study}-{fold}"
            cases.append(case)
            if (case / "case.json").exists():
                continue
            adata = _cells(study)
            condition = adata.obs["condition"].astype(str)
            test = list(_held_out(study, fold, condition))
            kept = ~condition.isin(test).to_numpy()
            genes, names = adata.var_names.tolist(), adata.obs_names[kept].tolist()
            write_cells(case / "cells.h5ad", adata.X[kept], genes, names, adata.obs.loc[kept, ["condition"]])
            involved = {gene for name in set(condition) for gene in name.split("+")} | set(genes)
            (case / "terms.json").write_text(json.dumps(_terms(involved)))
            write_case(case, {"test": test, "cells": "cells.h5ad", "terms": "terms.json"})
    return cases


def score(case: Path, place: Path) -> dict[str, dict[str, float]]:
    """Scores by condition and metric of a program's mean profiles; absent where it predicts nothing."""
    study, fold = case.name.split("-", 1)
    adata = _cells(study)
    condition = adata.obs["condition"].astype(str).to_numpy()
    with np.load(place) as found:
        column = {gene: i for i, gene in enumerate(found["genes"].astype(str))}
        order = [column[gene] for gene in adata.var_names]
        predicted = dict(zip(found["conditions"].astype(str), found["mean"][:, order], strict=True))
    control = _mean(adata, condition == "control")
    _require_the_same_truth(study, fold, adata, condition, control)
    return {
        name: {
            metric: float(f"{of(mean, _mean(adata, condition == name), control):.6g}")
            for metric, of in METRICS.items()
        }
        for name, mean in predicted.items()
    }


def stored(study: str, fold: str) -> dict:
    """Scores that ``make results`` has stored of a fold."""
    return json.loads((RESULTS / study / f"{fold}.json").read_text())["scores"]


def _held_out(study: str, fold: str, condition: pd.Series) -> dict[str, int]:
    """Held-out conditions by their name in the file, with their row in the stored scores."""
    row = {frozenset(group[2].split("+")): i for i, group in enumerate(stored(study, fold)["groups"])}
    names = {frozenset(name.split("+")): name for name in sorted(set(condition))}
    return {names[key]: i for key, i in row.items()}


def _require_the_same_truth(
    study: str, fold: str, adata: ad.AnnData, condition: np.ndarray, control: np.ndarray
) -> None:
    """The error of no change, repeated from the file, has to be what is stored."""
    values = stored(study, fold)["values"]["l2"]["no_change"]
    for name, i in _held_out(study, fold, pd.Series(condition)).items():
        again = l2(control, _mean(adata, condition == name), control)
        if abs(again - values[i]) > _SAME * values[i]:
            raise ValueError(f"{study}, {fold}, {name}: L2 of no change {again:.4f}, stored {values[i]:.4f}.")


def _cells(study: str) -> ad.AnnData:
    adata = ad.read_h5ad(DATA / FILES[study])
    X = normalised(sparse.csr_matrix(adata.X))
    return ad.AnnData(X, obs=adata.obs[["condition"]], var=pd.DataFrame(index=adata.var_names))


def _mean(adata: ad.AnnData, rows: np.ndarray) -> np.ndarray:
    return np.asarray(adata.X[np.flatnonzero(rows)].mean(axis=0), dtype=np.float64).ravel()


def _terms(genes: set[str]) -> dict[str, list[str]]:
    """GO terms (biological process) with a direct annotation, by symbol."""
    table = pd.read_csv(DATA / "pathways" / "go_bp_human_2022-07-01_closure.tsv.gz", sep="\t")
    table = table[(table["direct"] == 1) & table["symbol"].isin(genes)]
    return table.groupby("symbol")["go_id"].agg(sorted).to_dict()
