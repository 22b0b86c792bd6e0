"""Do cells that are seen through two disjoint panels find themselves by their pathway activities?

10x PBMC (4k), genes counted in 2% or more of the training cells, cut at random into two halves. Half of the
training cells are a dataset with one half of the genes, the others a dataset with the other half: no cell is
seen through both, and a model is trained on the two datasets together. Then each of 700 held-out cells is
seen through both halves, and looks for itself among the 700 in the other half: the reciprocal rank of the
right cell by the correlation of activities over pathways, mean over cells and both directions (MRR; chance
.010). Within each panel, activities are centred per pathway before (columns "centred"), or also divided by
their standard deviation ("standardised"). ``r`` is the correlation over cells of the two activities of a
pathway, mean over pathways that both panels can see.

- ``smoothed``: activities as :meth:`TADVAE.activities` gives them: where the pathway layer is linear in
  expression, the held-out cells of one panel are projected onto their 20 principal axes before;
- ``read``: the same without (``smooth=0``);
- ``plain``: the sum of the members' expression over the root of their number, without a model, both ways.

Every pathway set is used as it is and permuted: the genes of each panel change places at random, so that
every pathway keeps its sizes in both panels. Every row is one JSON file and is not made again::

    python benchmarks/panel_transfer.py --halvings 3 --seeds 2 --epochs 10
    python benchmarks/panel_transfer.py --only-show
"""

import argparse
import itertools
import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
import yaml
from scipy import sparse
from studies import DATA

from pipelines.convert import convert
from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference
from tadvae.model.encode import AXES, project
from tadvae.model.new_cells import cells_of
from tadvae.pathways.default import default_pathways
from tadvae.pathways.membership import membership
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit

HELD_OUT, SHARE = 700, 0.02
MASKS, KINDS = ("agreement", "linear", "members"), ("true", "permuted")
FIXED = ["split.kind=none", "effects.weight=0", "stream.bags_per_batch=2", "model.pathway.d_embed=32"]
FIXED += ["model.pathway.n_heads=2"]


def make(halving: int, folder: Path) -> tuple[Path, list[ad.AnnData]]:
    """Spec of the two training datasets, and the held-out cells seen through both panels."""
    every = ad.read_h5ad(DATA / "cells" / "pbmc4k_10x.h5ad")
    every.var_names_make_unique()
    counts, rng = sparse.csr_matrix(every.X).astype(np.float32), np.random.default_rng(halving)
    order = rng.permutation(every.n_obs)
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    seen = np.asarray((counts[train] > 0).sum(0)).ravel() >= SHARE * len(train)
    genes = rng.permutation(np.flatnonzero(seen))

    def part(cells: np.ndarray, panel: np.ndarray) -> ad.AnnData:
        obs = pd.DataFrame({"condition": ["control"] * len(cells)}, index=every.obs_names[cells])
        return ad.AnnData(counts[cells][:, panel], obs=obs, var=pd.DataFrame(index=every.var_names[panel]))

    panels, datasets = [np.sort(half) for half in np.array_split(genes, 2)], []
    for name, cells, panel in zip("ab", np.array_split(train, 2), panels, strict=True):
        part(cells, panel).write_h5ad(folder / f"{name}.h5ad")
        by_condition = {"column": "condition", "control": "control"}
        dataset = {"name": f"panel_{name}", "path": str(folder / f"{name}.h5ad"), "modality": "none"}
        datasets.append(dataset | {"perturbation": by_condition, "context": {"value": "pbmc"}})
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump({"datasets": datasets, "genes": {"reference": "human"}}))
    return spec, [part(held, panel) for panel in panels]


def prepare(halving: int, folder: Path) -> tuple[Store, list[ad.AnnData]]:
    """Store of the two training datasets, with pathways next to it, made once; and the held-out cells."""
    folder.mkdir(parents=True, exist_ok=True)
    spec, held = make(halving, folder)
    if not (folder / "store").exists():
        convert(str(spec), str(folder / "store"))
    store = Store.open(str(folder / "store"))
    write_pathways(store, folder, halving)
    return store, held


def write_pathways(store: Store, folder: Path, halving: int) -> None:
    """The packaged pathways of a store's panels as GMT files, true and permuted."""
    keys, reference = store.genes["gene"].tolist(), GeneReference.load("human")
    panels = [
        np.sort(store.panel(i).query("gene_index >= 0")["gene_index"].to_numpy())
        for i in range(len(store.manifest.datasets))
    ]
    sets = default_pathways(keys, panels, reference)
    found = membership(sets, keys, lambda names: canonical_targets(names, reference), panels)
    place, rng = np.arange(len(keys)), np.random.default_rng([halving, 1])
    for kind in KINDS:
        if kind == "permuted":
            for panel in panels:
                place[panel] = rng.permutation(panel)
        gene = place[found.gene]
        rows = [
            "\t".join([found.pathway_ids[p], found.names[p], *(keys[g] for g in gene[found.pathway == p])])
            for p in range(found.n_pathways)
        ]
        (folder / f"{kind}.gmt").write_text("\n".join(rows) + "\n")


def scores(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """MRR and median rank of activities (n, P), and their mean correlation over cells."""
    moves = (first.std(0) > 1e-8) & (second.std(0) > 1e-8)
    pair = [part[:, moves] - part[:, moves].mean(0) for part in (first, second)]
    scaled = [part / part.std(0) for part in pair]
    result = {"r": float((scaled[0] * scaled[1]).mean())}
    for name, (a, b) in (("centred", pair), ("standardised", scaled)):
        a, b = (part - part.mean(1, keepdims=True) for part in (a, b))
        a, b = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (a, b))
        similarity = a @ b.T
        own = np.diag(similarity)
        rank = np.r_[(similarity >= own[:, None]).sum(1), (similarity >= own).sum(0)]
        result[f"MRR {name}"], result[f"rank {name}"] = float((1 / rank).mean()), float(np.median(rank))
    return result


def run(store: Store, config: ExperimentConfig, held: list[ad.AnnData]) -> dict[str, dict[str, float]]:
    """Train on both datasets and score the held-out cells."""
    model, _ = fit(store, config)
    mask = model.vocabulary.membership
    edges = sparse.csr_matrix((np.ones(len(mask.gene)), (mask.pathway, mask.gene)), (len(mask), mask.n_genes))
    found: dict[str, list[np.ndarray]] = {}
    available = np.ones(len(mask), bool)
    for adata in held:
        cells = cells_of(adata, model.vocabulary, model.config.preprocess, layer=None, values="counts")
        available &= cells.available
        X, projected = cells.cells.dense(cells.genes), project(cells, AXES)
        members = edges[:, cells.genes]
        scale = np.sqrt(np.maximum(np.asarray(members.sum(1)).ravel(), 1))
        smooth = projected.mean + projected.scores @ projected.axes
        for name, activity in {
            "read": model.activities(adata, smooth=0).to_numpy(),
            "smoothed": model.activities(adata).to_numpy(),
            "plain": (members @ X.T).T / scale,
            "plain, smoothed": (members @ smooth.T).T / scale,
        }.items():
            found.setdefault(name, []).append(activity)
    return {name: scores(*(part[:, available] for part in parts)) for name, parts in found.items()}


def show(out: Path) -> None:
    """Means over halvings and seeds, with 95% intervals of the mean over halvings."""
    rows = []
    for place in sorted(out.glob("*.json")):
        row = json.loads(place.read_text())
        about = row["about"]
        for how, values in row["scores"].items():
            method = how if how.startswith("plain") else f"{about['masking']}, {how}"
            rows.append(
                {"method": method, "pathways": about["pathways"], "halving": about["halving"]} | values
            )
    table = pd.DataFrame(rows).groupby(["method", "pathways", "halving"]).mean()
    grouped = table.groupby(["method", "pathways"])
    mean, error = grouped.mean(), 1.96 * grouped.std() / np.sqrt(grouped.count())
    text = mean.map("{:.3f}".format) + " ± " + error.map("{:.3f}".format)
    print(text.assign(halvings=grouped.size()).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--halvings", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--masking", nargs="*", default=list(MASKS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "panel_transfer")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work" / "panel_transfer")
    parser.add_argument("--only-show", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = range(0 if arguments.only_show else arguments.seeds)
    for seed, halving in itertools.product(seeds, range(arguments.halvings)):
        folder = arguments.work / f"h{halving}"
        store, held = prepare(halving, folder)
        for masking, kind in itertools.product(arguments.masking, KINDS):
            place = arguments.out / f"halving-{halving}-seed-{seed}-{masking}-{kind}.json"
            about = {"halving": halving, "seed": seed, "masking": masking, "pathways": kind}
            about |= {"epochs": arguments.epochs, "settings": FIXED}
            if place.exists() and json.loads(place.read_text())["about"] == about:
                continue
            settings = [f"pathways.file={folder / kind}.gmt", f"model.pathway.masking={masking}"]
            settings += [f"seed={seed}", f"train.epochs={arguments.epochs}", *FIXED]
            found = run(store, ExperimentConfig.load(None, settings), held)
            place.write_text(json.dumps({"about": about, "scores": found}, indent=1) + "\n")
            print(f"{place}: written", flush=True)
    show(arguments.out)


if __name__ == "__main__":
    main()
