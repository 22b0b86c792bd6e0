"""Three tests of pathway activities, the same for every program: what it reads, and how it is scored.

- ``truth``: simulated screens; mean over pathways and screens of the absolute correlation over cells of an
  activity with the true one (``benchmarks/truth.py``).
- ``panels``: 700 held-out cells of 10x PBMC, each seen through two disjoint halves of the genes; the mean
  reciprocal rank of a cell's other half by the correlation of its activities
  (``benchmarks/panel_transfer.py``; chance 0.010).
- ``targets``: perturbed cells without the target's own gene; the share of pairs in which a pathway that the
  target belongs to moves more than one that it does not (area under the ROC curve; chance 0.5). A pathway's
  move is the difference of its mean activity in perturbed and control cells over its standard deviation in
  the controls.

``panels`` and ``targets`` also run with permuted pathways: same sizes, genes exchanged at random.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from panel_transfer import KINDS, prepare, scores, write_pathways
from replicability import replicability
from scipy import sparse
from scipy.stats import rankdata
from studies import DATA, STUDIES, make_store

from peers.exchange import normalised, read_activity, smoothed, write_case, write_cells
from tadvae.genes.harmonise import canonical_targets
from tadvae.model.encode import AXES
from tadvae.pathways.read import read_pathways
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import Simulation, simulate
from tadvae.store.reader import Store

HALVINGS, SEEDS = 4, 5
VARIANTS = ("cells", "smoothed cells")
CELLS_PER_CONDITION = 250
PERTURBED = {
    "norman_alone": ("screens/norman19_k562_crispra.h5ad", "control"),
    "datlinger": ("screens/datlinger21_jurkat_crispr_tcr.h5ad", "TCR"),
}
"""Screens of ``targets``, each with the condition that its perturbed cells are compared with."""

Reader = Callable[[str], pd.DataFrame]


@cache
def _simulated(seed: int) -> Simulation:
    return simulate(SimulationConfig(seed=seed))


def write_cases(folder: Path, wanted: tuple[str, ...] = ("",)) -> list[Path]:
    """Write what is missing of the cases whose names begin so; returns their folders."""

    def has(start: str) -> bool:
        return any(start.startswith(name) or name.startswith(start) for name in wanted)

    cases = []
    for seed in range(SEEDS):
        if has(f"truth-{seed}"):
            cases.append(_write_truth(folder / f"truth-{seed}", seed))
    for halving in range(HALVINGS):
        if has(f"panels-{halving}-"):
            cases += _write_panels(folder, halving)
    for study in PERTURBED:
        if has(f"targets-{study}-"):
            cases += _write_targets(folder, study)
    return [case for case in cases if case.name.startswith(wanted)]


def score(case: Path, read: Reader) -> dict[str, float]:
    """Scores of one program on one case; ``read`` gives its activities by the name of a file of cells."""
    about = json.loads((case / "case.json").read_text())
    test = {"truth": _score_truth, "panels": _score_panels, "targets": _score_targets}[about["test"]]
    return test(case, about, read)


def replicability_of(case: Path, first: Path, second: Path) -> dict[str, float]:
    """Correlation over cells of the activities of two trainings, mean over pathways and screens."""
    one, two = reader(first), reader(second)
    names = json.loads((case / "case.json").read_text())["cells"]
    found = {variant: [] for variant in VARIANTS}
    for name in names:
        found[name.rpartition(", ")[2]].append(replicability([one(name), two(name)]))
    return {variant: float(np.mean(values)) for variant, values in found.items()}


def took(out: Path) -> dict[str, float]:
    """CPU seconds a file of cells, of a training before, and the largest resident set in bytes."""
    files = []
    for place in sorted(out.glob("*.npz")):
        with np.load(place) as found:
            keys = ("seconds", "training", "peak")
            files.append({key: float(found[key]) for key in keys if key in found})
    table = pd.DataFrame(files)
    mean = table.drop(columns="peak", errors="ignore").mean().to_dict()
    return mean | ({"peak": table["peak"].max()} if "peak" in table else {})


def reader(out: Path) -> Reader:
    """Read activities that a program has written to a folder."""
    return lambda name: read_activity(out / f"{name}.npz")


# ---------------------------------------------------------------- truth


def _write_truth(case: Path, seed: int) -> Path:
    if (case / "case.json").exists():
        return case
    simulation = _simulated(seed)
    write_simulation(simulation, case / "screens")
    cells = {}
    for truth, screen in zip(simulation.truth.screens, simulation.screens, strict=True):
        X = normalised(sparse.csr_matrix(screen.X))
        cells |= _write_variants(case, truth.name, X, screen.var_names.tolist(), screen.obs_names.tolist())
    about = {"test": "truth", "seed": seed, "cells": cells, "pathways": "screens/pathways.gmt"}
    return write_case(case, about)


def _score_truth(case: Path, about: dict, read: Reader) -> dict[str, float]:
    """The same mean as ``truth.activity_scores``."""
    simulation, result = _simulated(about["seed"]), {}
    for variant in VARIANTS:
        found = []
        for truth in simulation.truth.screens:
            activity = read(f"{truth.name}, {variant}")
            for p, name in enumerate(simulation.truth.pathways):
                if name in activity and activity[name].notna().all() and activity[name].std() > 0:
                    found.append(abs(np.corrcoef(activity[name], truth.activity[:, p])[0, 1]))
        result[variant] = float(np.mean(found))
    return result


# ---------------------------------------------------------------- panels


def _write_panels(folder: Path, halving: int) -> list[Path]:
    cases = {kind: folder / f"panels-{halving}-{kind}" for kind in KINDS}
    if all((case / "case.json").exists() for case in cases.values()):
        return list(cases.values())
    work = folder / "work" / f"h{halving}"
    store, held = prepare(halving, work)
    keys, cells = store.genes["gene"].to_numpy(), {}
    for i, (name, adata) in enumerate(zip("ab", held, strict=True)):
        X, genes = _in_vocabulary(normalised(sparse.csr_matrix(adata.X)), adata, store.panel(i), keys)
        cells |= _write_variants(folder / "cells", f"{halving}{name}", X, genes, adata.obs_names.tolist())
    for kind, case in cases.items():
        about = {"test": "panels", "halving": halving, "kind": kind}
        about["cells"] = {name: f"../cells/{place}" for name, place in cells.items()}
        write_case(case, about | {"pathways": f"../work/h{halving}/{kind}.gmt"})
    return list(cases.values())


def _score_panels(case: Path, about: dict, read: Reader) -> dict[str, float]:
    result = {}
    for variant in VARIANTS:
        pair = [read(f"{about['halving']}{name}, {variant}") for name in "ab"]
        common = sorted(set(pair[0]) & set(pair[1]))
        first, second = (np.nan_to_num(part[common].to_numpy(np.float64)) for part in pair)
        result[variant] = scores(first, second)["MRR centred"]
    return result


# ---------------------------------------------------------------- targets


def _write_targets(folder: Path, study: str) -> list[Path]:
    cases = {kind: folder / f"targets-{study}-{kind}" for kind in KINDS}
    if all((case / "case.json").exists() for case in cases.values()):
        return list(cases.values())
    work = folder / "work" / study
    work.mkdir(parents=True, exist_ok=True)
    store = Store.open(str(make_store(STUDIES[study], work)[0]))
    write_pathways(store, work, 0)
    file, control = PERTURBED[study]
    parts, cells, own = target_cells(store, file, control, work / "true.gmt"), {}, {}
    for target, (X, genes, names, perturbed) in parts.items():
        place = Path("cells") / f"{study}-{target}.h5ad"
        write_cells(folder / place, X, genes, names)
        cells[target], own[target] = f"../{place}", perturbed
    for kind, case in cases.items():
        about = {"test": "targets", "study": study, "kind": kind, "cells": cells, "perturbed": own}
        write_case(case, about | {"pathways": f"../work/{study}/{kind}.gmt"})
    return list(cases.values())


def target_cells(
    store: Store, file: str, control: str, pathways: Path, most: int = CELLS_PER_CONDITION
) -> dict[str, tuple[sparse.csr_matrix, list[str], list[str], int]]:
    """Perturbed cells, then controls, of every target in a pathway, without its own gene.

    At most ``most`` cells of a condition. Values by gene of the target: (n, G), genes, names of cells, and
    how many of the first are perturbed.
    """
    adata = ad.read_h5ad(DATA / file)
    keys = store.genes["gene"].to_numpy()
    X, genes = _in_vocabulary(normalised(sparse.csr_matrix(adata.X)), adata, store.panel(0), keys)
    members = {gene for genes in read_pathways(pathways).genes for gene in genes}
    condition, rng = adata.obs["condition"].astype(str).to_numpy(), np.random.default_rng(0)
    suffix = "" if control == "control" else f"+{control}"
    controls, result = _some(np.flatnonzero(condition == control), rng, most), {}
    for name in sorted(set(condition) - {"control", control}):
        target = name.removesuffix(suffix)
        key = canonical_targets([target], store.gene_reference)[0]
        if "+" in target or (suffix and not name.endswith(suffix)) or key not in members:
            continue
        perturbed = _some(np.flatnonzero(condition == name), rng, most)
        rows, kept = np.r_[perturbed, controls], np.flatnonzero(np.array(genes) != key)
        names = adata.obs_names[rows].tolist()
        result[key] = X[rows][:, kept], [genes[g] for g in kept], names, len(perturbed)
    return result


def _some(rows: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    return np.sort(rng.permutation(rows)[:most])


def _score_targets(case: Path, about: dict, read: Reader) -> dict[str, float]:
    """Area under the curve by target; its pathways are the true ones, also where genes are permuted."""
    return target_areas(case / about["pathways"].replace("permuted", "true"), about["perturbed"], read)


def target_areas(pathways: Path, perturbed: dict[str, int], read: Reader) -> dict[str, float]:
    """Area under the curve by target; of its cells, the first ``perturbed`` are not controls."""
    true, result = read_pathways(pathways), {}
    members = {name: set(genes) for name, genes in zip(true.ids, true.genes, strict=True)}
    for target, n in perturbed.items():
        activity = read(target)
        values = np.nan_to_num(activity.to_numpy(np.float64))
        spread = values[n:].std(axis=0)
        move = np.abs(values[:n].mean(axis=0) - values[n:].mean(axis=0))
        move = np.divide(move, spread, out=np.zeros_like(move), where=spread > 0)
        own = np.array([target in members[name] for name in activity.columns])
        if own.any() and not own.all():
            result[target] = roc_area(move, own)
    return result


def roc_area(score: np.ndarray, positive: np.ndarray) -> float:
    """Share of pairs (positive, negative) in which the positive one scores higher; a tie counts one half."""
    n = int(positive.sum())
    rank = rankdata(score)[positive].sum()
    return float((rank - n * (n + 1) / 2) / (n * (len(score) - n)))


# ---------------------------------------------------------------- parts


def _in_vocabulary(
    X: sparse.csr_matrix, adata: ad.AnnData, panel: pd.DataFrame, keys: np.ndarray
) -> tuple[sparse.csr_matrix, list[str]]:
    """The columns of genes that a store knows, by its identifiers; the first of columns for one gene."""
    known = panel[panel["gene_index"] >= 0].drop_duplicates("gene_index")
    columns = adata.var_names.get_indexer(known["var_name"])
    return X[:, columns], keys[known["gene_index"]].tolist()


def _write_variants(
    folder: Path, name: str, X: sparse.csr_matrix, genes: list[str], cells: list[str]
) -> dict[str, str]:
    """Write cells as they are and smoothed; returns the files by name."""
    files = {f"{name}, {variant}": f"{name}-{variant.split()[0]}.h5ad" for variant in VARIANTS}
    write_cells(folder / files[f"{name}, {VARIANTS[0]}"], X, genes, cells)
    write_cells(folder / files[f"{name}, {VARIANTS[1]}"], smoothed(X, AXES), genes, cells)
    return files
