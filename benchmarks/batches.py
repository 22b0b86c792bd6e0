"""Correction of batches in what ``tadvae embed`` writes, judged by scib-metrics.

    python benchmarks/batches.py [--out FILE]

Two studies: lung cancer lines by two techniques (a file each; not all lines are in both), and blood cells of
two donors with and without IFN-beta. A model is trained on the cells, which ``tadvae embed`` then embeds,
with and without ``--batch``. Compared are principal components of the 2,000 most variable genes, the model's
activities (their 30 principal components) and its latent means; each as it is, with the control cells of all
batches at one mean, and by Harmony. scib-metrics and Harmony get an environment of their own. The data folder
is the environment variable TADVAE_DATA, or ../shared/data next to the repository.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
import torch
import yaml
from peers.environment import Peer, python_of, run_script
from sklearn.decomposition import PCA
from studies import DATA

from pipelines.cluster.connection import ray_session
from pipelines.convert import convert
from tadvae.model.embed_batches import Batches, BatchMeans
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "batches.json", HERE.parent / "docs" / "batches.md"
HEADING = "## Measured"
SCRIPT = HERE / "batches_judge.py"
JUDGE = Peer.of(SCRIPT)
SETTINGS = ["split.kind=none", "train={epochs: 20, trackers: []}"]
COLUMNS = ("Batch correction", "Bio conservation", "Total", "KMeans NMI", "cLISI", "iLISI", "PCR comparison")


@dataclass(frozen=True)
class Study:
    """Screens of one store, and which cells are alike."""

    about: str
    screens: dict[str, dict[str, Any]]
    batch: str
    label: tuple[str, ...]
    controls: str | None = None


LUNG = {"context": {"value": "lung"}}
KANG = {
    "context": {"value": "PBMC"}, "modality": "ligand",
    "perturbation": {"column": "condition", "control": "control"},
}  # fmt: skip
STUDIES = {
    "lung": Study(
        "909 cells of five lines (CEL-seq2) and 225 of three of them (Drop-seq); batch: the file, label: the "
        "line; no control cells are named",
        {"cells/lung_lines_celseq2_ensembl.h5ad": LUNG, "cells/lung_lines_dropseq_ensembl.h5ad": LUNG},
        "tadvae_file",
        ("cell_line_demuxlet",),
    ),
    "kang": Study(
        "1,556 cells of five types; batch: the donor, label: type and IFN-beta; controls are those without",
        {"screens/kang18_pbmc_ifnb_5celltypes.h5ad": KANG},
        "donor",
        ("cell_type", "condition"),
        "condition=control",
    ),
}


def embedded(study: Study, folder: Path) -> ad.AnnData:
    """Cells with all embeddings, the first of them the principal components of genes."""
    files = []
    for place in study.screens:
        cells = ad.read_h5ad(DATA / place)
        if "sample" in cells.obs:
            cells.obs["donor"] = cells.obs["sample"].astype(str).str[-3:]
        files.append(str(folder / Path(place).name))
        cells.write_h5ad(files[-1])
    screens = [
        {"name": Path(file).stem, "path": file, **more}
        for file, more in zip(files, study.screens.values(), strict=True)
    ]
    spec = {"datasets": screens, "genes": {"reference": "human"}}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    with ray_session():
        convert(str(folder / "spec.yaml"), str(folder / "store"))
    model, _ = fit(Store.open(str(folder / "store")), ExperimentConfig.load(None, SETTINGS))
    model.embed(files, str(folder / "none.h5ad"))
    model.embed(files, str(folder / "moved.h5ad"), batch=study.batch, controls=study.controls)
    plain, moved = ad.read_h5ad(folder / "none.h5ad"), ad.read_h5ad(folder / "moved.h5ad")
    result = ad.AnnData(obs=plain.obs.astype(str))
    result.obs["batch"] = result.obs[study.batch]
    result.obs["label"] = result.obs[list(study.label)].agg(" ".join, axis=1)
    genes = components_of_genes(files)
    batches = Batches.of(plain.obs, study.batch, study.controls)
    result.obsm["genes, none"] = genes
    result.obsm["genes, --batch"] = shifted(genes, batches)
    for name, cells in (("none", plain), ("--batch", moved)):
        activities = np.nan_to_num(np.asarray(cells.obsm["X_tadvae_activity"]))
        result.obsm[f"activities, {name}"] = components(activities)
        result.obsm[f"latent means, {name}"] = np.asarray(cells.obsm["X_tadvae"])
    return result


def components(values: np.ndarray) -> np.ndarray:
    return PCA(30, random_state=0).fit_transform(values).astype(np.float32)


def components_of_genes(files: list[str]) -> np.ndarray:
    """Principal components of the most variable genes that all files have."""
    cells = ad.concat([ad.read_h5ad(file) for file in files], join="inner", index_unique="-")
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    values = cells.X.toarray()
    return components(values[:, np.argsort(values.var(axis=0))[-2_000:]])


def shifted(values: np.ndarray, batches: Batches) -> np.ndarray:
    """What ``--batch`` does to the model's values, done to others."""
    means = BatchMeans(batches)
    means.add(0, {"X_tadvae": values, "X_tadvae_activity": values})
    return (values + means.shift("X_tadvae")[batches.of_cell]).astype(np.float32)


def write_page(results: Path = RESULTS, page: Path = PAGE) -> None:
    """Write the measured part of the page from the stored scores."""
    stored = json.loads(results.read_text())
    judge = JUDGE.requirements[0].replace("==", " ")
    lines = [
        HEADING,
        "",
        f"Written by `python benchmarks/batches.py`, which has the settings; do not edit. Scores of {judge},",
        "from 0 to 1, larger is better. *genes*: 30 principal components of the most variable genes;",
        "*activities*: of the pathway activities; *Harmony*: harmonypy.",
    ]
    for name, scores in stored["scores"].items():
        lines += ["", f"**{name}**: {STUDIES[name].about}.", ""]
        lines += [f"| embedding, correction | {' | '.join(COLUMNS)} |", "|---|" + "---|" * len(COLUMNS)]
        for row in sorted(scores, key=lambda each: (each.partition(",")[0], list(scores).index(each))):
            lines.append(f"| {row} | {' | '.join(f'{scores[row][column]:.2f}' for column in COLUMNS)} |")
    text = page.read_text(encoding="utf-8").split(HEADING)[0]
    page.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA}: no such folder; set TADVAE_DATA to the data folder.", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    judge = python_of(JUDGE, HERE.parent / "build")
    scores = {}
    for name, study in STUDIES.items():
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            embedded(study, place).write_h5ad(place / "embedded.h5ad")
            run_script(judge, SCRIPT, place / "embedded.h5ad", place, limit=3600.0)
            scores[name] = json.loads((place / "scores.json").read_text())
    about = {"script": "batches.py", "settings": SETTINGS, "judge": JUDGE.requirements}
    options.out.write_text(json.dumps({"about": about, "scores": scores}, indent=1) + "\n")
    if options.out.resolve() == RESULTS.resolve():
        write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
