"""Files of ours for the checks of :mod:`peers.interchange_checks`, and files of others that we read."""

from pathlib import Path

import anndata as ad
import numpy as np
import yaml

from pipelines.convert import convert
from tadvae.base.filesystem import Location
from tadvae.pathways.gmt import write_gmt
from tadvae.pathways.read import read_pathways
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import simulate_to
from tadvae.store.export import export
from tadvae.store.reader import Store
from tadvae.training.fit import fit

SETTINGS = ["split.kind=none", "train.epochs=1", "model.pathway={d_embed: 8, n_heads: 2}"]


def write_files(folder: Path) -> Path:
    """Observed cells with activities and latent values, predicted cells (log1p, counts), a GMT file.

    And the store as files of its datasets.
    """
    if (folder / "counts.h5ad").exists():
        return folder
    screens = folder / "screens"
    if not screens.exists():
        simulate_to(screens, SimulationConfig())
    if not (folder / "store").exists():
        convert(str(screens / "spec.yaml"), str(folder / "store"))
    gmt = screens / "pathways.gmt"
    write_gmt(read_pathways(gmt), folder / "pathways.gmt")
    store = Store.open(str(folder / "store"))
    if not (folder / "export").exists():
        export(store, Location.of(folder / "export"))
    model, _ = fit(store, ExperimentConfig.load(None, [f"pathways.file={gmt}", *SETTINGS]))
    dataset = store.manifest.datasets[0].name
    adata = ad.read_h5ad(screens / f"{dataset}.h5ad")[:300].copy()
    model.activities(adata)
    model.latent(adata)
    values = np.asarray(adata.X.todense() if not isinstance(adata.X, np.ndarray) else adata.X, np.float32)
    adata.X = np.log1p(values / values.sum(axis=1, keepdims=True) * 1e4)
    adata.write_h5ad(folder / "observed.h5ad")
    target = next(each.name for each in model.vocabulary.targets if each.seen)
    context = model.vocabulary.contexts[0].name
    for units, name in (("log1p", "predicted"), ("counts", "counts")):
        predicted = model.predict(target, context=context, dataset=dataset, units=units)
        predicted.write_h5ad(folder / f"{name}.h5ad")
    return folder


def read_back(folder: Path) -> dict[str, str]:
    """Convert what GEARS made of an exported dataset: as many cells of each perturbation as before."""
    written, store = folder / "gears" / "screen" / "perturb_processed.h5ad", folder / "from-gears"
    perturbation = {"column": "condition", "control": "ctrl", "separator": "+"}
    dataset = {"name": "screen_a", "path": str(written), "counts": "counts", "perturbation": perturbation}
    dataset |= {"context": {"column": "cell_type"}, "modality": "CRISPRa"}
    spec = folder / "from-gears.yaml"
    spec.write_text(yaml.safe_dump({"datasets": [dataset], "genes": {"reference": "none"}}))
    if not store.exists():
        convert(str(spec), str(store))
    found, expected = (
        each.perturbations.assign(n=[_cells_of_first(parts) for parts in each.perturbations["n_cells"]])
        for each in (Store.open(str(store)), Store.open(str(folder / "store")))
    )
    names, others = (dict(zip(each["name"], each["n"], strict=True)) for each in (found, expected))
    missing = {name: n for name, n in others.items() if n and names.get(name) != n}
    return {"`tadvae convert` of the folder that GEARS wrote": f"failed: {missing}" if missing else "passed"}


def _cells_of_first(parts: list[dict[str, int]]) -> int:
    return sum(part["n_cells"] for part in parts if part["dataset"] == 0)
