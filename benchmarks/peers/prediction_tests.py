"""Prediction of cells that were not seen: what a program reads, and how its mean profiles are scored.

- ``norman_alone``, ``datlinger``: held-out combinations or targets, the groups of folds that ``make results``
  has stored; the scores there, of our own ensembles and of the baselines, are for the same groups, cells and
  genes.
- ``simulated``: the same for one simulated screen; its pathways stand for GO terms.
- ``kang_types``: IFN-β in one of five blood cell types, of which only control cells are given; baselines are
  those that ``contexts.py`` has stored.

``LONGER`` asks some of it again with other budgets of CPU seconds, and with two threads.

A program reads ``cells`` (``.h5ad``: log1p of counts per ten thousand, ``layers["counts"]``, and of ``obs``
``condition`` and ``context``), what is asked in ``test`` (pairs of context and condition), and ``terms``
(gene to GO terms with a direct annotation). It may use all the cells as it likes, for ``budget`` seconds of
CPU where its training has no natural end, on ``threads`` threads. It writes ``prediction.npz``: ``mean``
(M, G), ``contexts``, ``conditions``, ``genes``; and of its training ``seconds`` of CPU and ``wall`` seconds,
``cells`` presented (each as often as it was), ``epochs``, and ``peak``, the largest resident set of the
process in bytes.
"""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from studies import DATA

from peers.exchange import normalised, write_case, write_cells
from tadvae.evaluation.metrics import l2, pearson_delta
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.simulate import Simulation, simulate

RESULTS = Path(__file__).parents[1] / "results"
METRICS = {"pearson_delta": pearson_delta, "l2": l2}
TRAINING = ("seconds", "wall", "cells", "epochs", "peak")
_SCREEN = "screen_a"  # of the simulation; the other has its own context
_SAME = 1e-3  # relative difference of the stored and the repeated error of no change

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Test:
    """Cases that are shown as one table; a case is called ``STUDY-PART``, and by its budget and threads."""

    about: str
    study: str
    file: str | None
    """None: the first screen of the default simulation."""
    parts: tuple[str, ...]
    context: str | None = None
    """Column of ``obs`` of which the parts are held-out values; None: parts are stored folds."""
    budget: float = 60.0
    threads: int = 1

    @property
    def cases(self) -> list[str]:
        more = f"-{self.budget:.0f}s" if self.budget != Test.budget else ""
        more += f"-{self.threads}-threads" if self.threads != 1 else ""
        return [f"{self.study}-{part.replace(' ', '_')}{more}" for part in self.parts]

    def part(self, case: str) -> str:
        """Of a case by its name."""
        return self.parts[self.cases.index(case)]


_NORMAN = ("norman_alone", "screens/norman19_k562_crispra.h5ad")
_TYPES = ("B cells", "CD14+ Monocytes", "CD4 T cells", "CD8 T cells", "FCGR3A+ Monocytes")
TESTS = [
    Test("Norman 2019: combinations", *_NORMAN, tuple(f"combo-fold-{fold}" for fold in range(5))),
    Test("Norman 2019: targets not seen, and combinations with one", *_NORMAN, ("single-fold-0",)),
    Test(
        "Datlinger 2021: knock-outs together with stimulation", "datlinger",
        "screens/datlinger21_jurkat_crispr_tcr.h5ad", ("combo-fold-0", "combo-fold-1"),
    ),
    Test(
        "Kang 2018: IFN-β in a cell type not seen perturbed", "kang_types",
        "screens/kang18_pbmc_ifnb_5celltypes.h5ad", _TYPES, "cell_type",
    ),
    Test(
        "Simulated screen: combinations", "simulated", None, tuple(f"combo-fold-{fold}" for fold in range(3))
    ),
]  # fmt: skip
LONGER = [
    replace(TESTS[0], parts=TESTS[0].parts[:1], budget=budget, threads=threads)
    for budget, threads in ((30.0, 1), (30.0, 2), (240.0, 1))
] + [replace(TESTS[3], parts=("CD4 T cells",), budget=240.0)]
"""Tests again with other budgets and threads; time counts in those of 30 seconds, on an idle machine."""


def write_cases(folder: Path, wanted: tuple[str, ...] = ("",)) -> list[Path]:
    """Write what is missing of the cases whose names begin so. No case has a held-out cell in ``cells``."""
    cases = []
    for test in [*TESTS, *LONGER]:
        for name in test.cases:
            if not name.startswith(wanted):
                continue
            case = folder / name
            cases.append(case)
            if (case / "case.json").exists():
                continue
            adata = _cells(test)
            asked = _asked(test, name, adata)
            pairs = list(zip(adata.obs["context"], adata.obs["condition"], strict=True))
            kept = adata[~np.array([pair in set(asked) for pair in pairs])]
            counts = sparse.csr_matrix(kept.layers["counts"])
            write_cells(
                case / "cells.h5ad", kept.X, kept.var_names.tolist(), kept.obs_names.tolist(), kept.obs,
                counts,
            )  # fmt: skip
            involved = {gene for _, condition in pairs for gene in condition.split("+")}
            terms = _terms(involved | set(kept.var_names)) if test.file else _simulated_terms()
            (case / "terms.json").write_text(json.dumps(terms))
            about = {"test": asked, "cells": "cells.h5ad", "terms": "terms.json"}
            write_case(case, about | {"budget": test.budget, "threads": test.threads})
    return cases


def cells_of(case: str) -> ad.AnnData:
    """All cells of a case, held-out ones too: values, ``layers["counts"]``, condition and context."""
    return _cells(test_of(case))


def test_of(case: str) -> Test:
    """The test that a case belongs to."""
    return next(test for test in [*TESTS, *LONGER] if case in test.cases)


def score(case: Path, place: Path) -> Scores:
    """Scores by condition (or context, where that is held out) and metric; absent without an answer."""
    test = test_of(case.name)
    adata = _cells(test)
    asked = _asked(test, case.name, adata)
    with np.load(place) as found:
        column = {gene: i for i, gene in enumerate(found["genes"].astype(str))}
        pairs = zip(found["contexts"].astype(str), found["conditions"].astype(str), strict=True)
        order = [column[gene] for gene in adata.var_names]
        predicted = dict(zip(pairs, found["mean"][:, order].astype(np.float64), strict=True))
    result = {}
    for context, condition in asked:
        control, true = (_mean(adata, context, name) for name in ("control", condition))
        if test.context is None:
            _require_the_same_truth(test, case.name, condition, true, control)
        if (context, condition) in predicted:
            result[condition if test.context is None else context] = {
                metric: float(f"{of(predicted[context, condition], true, control):.6g}")
                for metric, of in METRICS.items()
            }
    return result


def training_of(place: Path) -> dict[str, float]:
    """What a program says of its training."""
    with np.load(place) as found:
        return {key: float(f"{float(found[key]):.6g}") for key in TRAINING if key in found}


def references(test: Test) -> dict[str, Scores]:
    """Stored scores of baselines and of our own by method, then by condition (or context) and metric."""
    if test.context is not None:
        rows = json.loads((RESULTS / "contexts" / "unseen_types.json").read_text())["types"]
        return {
            method: {
                name: {metric: row[metric]["values"][i] for metric in METRICS}
                for i, name in enumerate(test.parts)
            }
            for method, row in rows.items()
            if not method.startswith("regression")
        }
    result: dict[str, Scores] = {}
    for part in test.parts:
        found = stored(test.study, part)
        for method in found["values"]["l2"]:
            for i, group in enumerate(found["groups"]):
                if test.file is None and group[0] != _SCREEN:
                    continue
                values = {metric: found["values"][metric][method][i] for metric in METRICS}
                result.setdefault(method, {})[group[2]] = values
    return result


def stored(study: str, fold: str) -> dict:
    """Scores that ``make results`` has stored of a fold."""
    return json.loads((RESULTS / study / f"{fold}.json").read_text())["scores"]


def _asked(test: Test, name: str, adata: ad.AnnData) -> list[tuple[str, str]]:
    """Pairs of context and condition that are held out."""
    part = test.part(name)
    if test.context is not None:
        conditions = sorted(set(adata.obs["condition"]) - {"control"})
        return [(part, condition) for condition in conditions]
    names = {frozenset(each.split("+")): each for each in sorted(set(adata.obs["condition"]))}
    context = adata.obs["context"].iloc[0]
    groups = stored(test.study, part)["groups"]
    groups = [group for group in groups if test.file or group[0] == _SCREEN]
    return [(context, names[frozenset(group[2].split("+"))]) for group in groups]


def _require_the_same_truth(
    test: Test, case: str, condition: str, true: np.ndarray, control: np.ndarray
) -> None:
    """The error of no change, repeated from the file, has to be what is stored."""
    found = stored(test.study, test.part(case))
    groups = [frozenset(group[2].split("+")) for group in found["groups"]]
    value = found["values"]["l2"]["no_change"][groups.index(frozenset(condition.split("+")))]
    again = l2(control, true, control)
    if abs(again - value) > _SAME * value:
        raise ValueError(f"{case}, {condition}: L2 of no change {again:.4f}, stored {value:.4f}.")


@cache
def _simulated() -> Simulation:
    return simulate(SimulationConfig())


def _simulated_terms() -> dict[str, list[str]]:
    """Pathways of every gene of the simulation."""
    pathways = _simulated().sets
    return {
        gene: [name for name, members in zip(pathways.ids, pathways.genes, strict=True) if gene in members]
        for gene in sorted({gene for members in pathways.genes for gene in members})
    }


def _cells(test: Test) -> ad.AnnData:
    adata = ad.read_h5ad(DATA / test.file) if test.file else _simulated().screens[0].copy()
    counts = sparse.csr_matrix(adata.X)
    context = "one" if test.context is None else adata.obs[test.context].astype(str).to_numpy()
    obs = pd.DataFrame(
        {"condition": adata.obs["condition"].astype(str), "context": context}, index=adata.obs_names
    )
    var = pd.DataFrame(index=adata.var_names)
    return ad.AnnData(normalised(counts), obs=obs, var=var, layers={"counts": counts})


def _mean(adata: ad.AnnData, context: str, condition: str) -> np.ndarray:
    rows = (adata.obs["context"] == context) & (adata.obs["condition"] == condition)
    return np.asarray(adata.X[np.flatnonzero(rows)].mean(axis=0), dtype=np.float64).ravel()


def _terms(genes: set[str]) -> dict[str, list[str]]:
    """GO terms (biological process) with a direct annotation, by symbol."""
    table = pd.read_csv(DATA / "pathways" / "go_bp_human_2022-07-01_closure.tsv.gz", sep="\t")
    table = table[(table["direct"] == 1) & table["symbol"].isin(genes)]
    return table.groupby("symbol")["go_id"].agg(sorted).to_dict()
