"""Targets that were never perturbed, from the pathways of which they are members.

    python benchmarks/unseen_targets.py [--json FILE] [--screen NAME]

Single targets are held out in ten folds. The regression of mean effects alone is compared with the mean
effect of the training targets: with the pathways (GO terms of 5 to 300 genes), with permuted pathways (genes
shuffled, three seeds) and without. The data folder is the environment variable TADVAE_DATA, or ../shared/data
next to the repository.
"""

import argparse
import gzip
import json
import os
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from tadvae.cells.normalize import normalize
from tadvae.effects.conditions import Conditions
from tadvae.effects.known_targets import target_similarity
from tadvae.effects.model import EffectModel, EffectsConfig
from tadvae.effects.stage import Observed
from tadvae.evaluation.baselines import Array
from tadvae.evaluation.bootstrap import bootstrap_mean, paired_bootstrap_difference
from tadvae.evaluation.metrics import score_profiles
from tadvae.pathways.membership import Membership

DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("TADVAE_DATA", DEFAULT))
FOLDS, PERMUTATIONS = 10, 3
SMALLEST, LARGEST = 5, 300
Screen = tuple[list[str], Array, Array, Array, float, Array | None]
"""Targets, effects, control, number of cells of each, number of control cells, variance of a cell."""


def go_terms(seed: int | None = None) -> tuple[Membership, dict[str, int]]:
    """GO terms of human genes, and the index of each gene; with a seed, genes are shuffled."""
    sets: dict[str, set[str]] = {}
    with gzip.open(DATA / "pathways" / "go_bp_human_2022-07-01_closure.tsv.gz", "rt") as lines:
        next(lines)
        for line in lines:
            term, symbol, _ = line.split("\t")
            sets.setdefault(term, set()).add(symbol)
    kept = {term: genes for term, genes in sorted(sets.items()) if SMALLEST <= len(genes) <= LARGEST}
    symbols = sorted(set.union(*kept.values()))
    index = {symbol: i for i, symbol in enumerate(symbols)}
    order = np.arange(len(symbols)) if seed is None else np.random.default_rng(seed).permutation(len(symbols))
    edges = [(p, order[index[s]]) for p, genes in enumerate(kept.values()) for s in sorted(genes)]
    pathway, gene = np.array(sorted(edges)).T
    return Membership(list(kept), list(kept), pathway, gene, len(symbols)), index


def of_signatures() -> Screen:
    data = anndata.read_h5ad(DATA / "signatures" / "norman19_k562_lfc.h5ad")
    names = data.obs["perturbation"].astype(str).tolist()
    rows = [i for i, name in enumerate(names) if "+" not in name and "_" not in name]
    effects = np.asarray(data.X, np.float64)[rows]
    return [names[i] for i in rows], effects, np.zeros(effects.shape[1]), np.ones(len(rows)), 1, None


def of_profiles() -> Screen:
    data = anndata.read_h5ad(DATA / "profiles" / "carpool23_thp1_cas13d_means.h5ad")
    names = data.obs["perturbation"].astype(str).tolist()
    values = np.asarray(data.X, np.float64)
    rows = [i for i, name in enumerate(names) if "+" not in name and name != "control"]
    control = values[names.index("control")]
    return [names[i] for i in rows], values[rows] - control, control, np.ones(len(rows)), 1, None


def of_cells(file: str, total: str | None = None, control: str = "control", ending: str = "") -> Screen:
    data = anndata.read_h5ad(DATA / "screens" / file)
    counts = data.X.tocsr()
    library = np.asarray(counts.sum(axis=1)).ravel() if total is None else data.obs[total].to_numpy()
    counts.data = normalize(counts.data, counts.indices, counts.indptr, library, "cp10k").astype(np.float64)
    condition = data.obs["condition"].astype(str).to_numpy()
    before = counts[condition == control].toarray()
    single = [
        name
        for name in sorted(set(condition))
        if name != control and name.endswith(ending) and "+" not in name.removesuffix(ending)
    ]
    if ending:
        single = [name for name in single if name != ending[1:]]
    else:
        single = [name for name in single if name != "TCR"]
    means = np.stack([counts[condition == name].toarray().mean(axis=0) for name in single])
    n_cells = np.array([(condition == name).sum() for name in single], np.float64)
    names = [name.removesuffix(ending) for name in single]
    profile = before.mean(axis=0)
    return names, means - profile, profile, n_cells, len(before), before.var(axis=0)


SCREENS = {
    "norman19, signatures": of_signatures,
    "carpool23": of_profiles,
    "papalexi21": lambda: of_cells("papalexi21_thp1_eccite.h5ad", "cov_response_n_umis"),
    "datlinger21": lambda: of_cells("datlinger21_jurkat_crispr_tcr.h5ad", "ncounts"),
    "datlinger21, stimulated": lambda: of_cells(
        "datlinger21_jurkat_crispr_tcr.h5ad", "ncounts", "TCR", "+TCR"
    ),
}


def cross_validate(screen: Screen, similar: Array | None) -> Array:
    """Predicted effect of every target, from the other folds."""
    names, effects, control, n_cells, n_controls, variance = screen
    predicted = np.zeros_like(effects)
    genes = np.arange(effects.shape[1])
    for test in np.array_split(np.random.default_rng(0).permutation(len(names)), FOLDS):
        train = np.setdiff1d(np.arange(len(names)), test)
        observed = Observed(
            Conditions.of(
                [(0, 0)] * len(train), [[(int(i), 0)] for i in train], len(names), [1], {0: int(n_controls)}
            ),
            list(effects[train]),
            n_cells[train],
            {0: genes},
            {0: variance},
            {0: control},
        )
        model = EffectModel.fit(observed, [1], {0: int(n_controls)}, EffectsConfig(), similar)
        predicted[test] = model.predict(0, 0, [[(int(i), 0)] for i in test], genes)
    return predicted


def study(screen: Screen, knowledge: dict[str, tuple[Membership, dict[str, int]]]) -> dict[str, Any]:
    names, effects, control, *_ = screen
    mean = np.zeros_like(effects)
    for test in np.array_split(np.random.default_rng(0).permutation(len(names)), FOLDS):
        mean[test] = np.delete(effects, test, axis=0).mean(axis=0)
    found = {"mean": [mean], "regression, no pathways": [cross_validate(screen, None)]}
    for label, (membership, index) in knowledge.items():
        similar = target_similarity(membership, [index.get(name, -1) for name in names])
        key = "regression, permuted" if label.startswith("permuted") else "regression, pathways"
        found.setdefault(key, []).append(cross_validate(screen, similar))
    scores: dict[str, dict[str, Array]] = {}
    for method, all_predicted in found.items():
        parts = [score_profiles(control + p, control + effects, control) for p in all_predicted]
        scores[method] = {m: np.mean([part[m] for part in parts], axis=0) for m in ("pearson_delta", "l2")}
    result: dict[str, Any] = {"targets": len(names)}
    for method, metrics in scores.items():
        result[method] = {}
        for metric, values in metrics.items():
            ours = scores["regression, pathways"][metric]
            minus = paired_bootstrap_difference(ours, values)
            result[method][metric] = bootstrap_mean(values)._asdict() | {"pathways_minus": minus._asdict()}
            print(
                f"  {method:<26}{metric:<15}{values.mean():8.4f}  pathways minus it {minus.mean:+.4f} "
                f"[{minus.low:+.4f}, {minus.high:+.4f}]",
                flush=True,
            )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--screen", action="append", choices=list(SCREENS))
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA}: no such folder; set TADVAE_DATA to the data folder.", file=sys.stderr)
        return 2
    knowledge = {"true": go_terms()} | {f"permuted {s}": go_terms(s) for s in range(PERMUTATIONS)}
    about = {"script": "unseen_targets.py", "folds": FOLDS, "seed": 0, "permutations": PERMUTATIONS}
    result: dict[str, Any] = {"about": about | {"terms": [SMALLEST, LARGEST]}}
    for name in options.screen or SCREENS:
        print(name, flush=True)
        result[name] = study(SCREENS[name](), knowledge)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
