"""Our default model on a case of prediction, in a process of its own, as the programs of others run.

One model, 30 epochs (and as many more as the budget is larger), settings of the studies in ``make results``;
targets by gene where the case asks for targets that were not seen.

    python prediction_of_tadvae.py CASE OUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import json

import anndata as ad
import torch
import yaml
from prediction_case import SEED, Case, Clock, read, save

from peers.prediction_tests import cells_of
from pipelines.convert import convert
from tadvae.base.errors import UserError
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.files import simulate_to
from tadvae.store.reader import Store
from tadvae.training.fit import fit

EPOCHS = 30  # for 60 seconds of the budget, of which it takes a few
SETTINGS = ["model.pathway={d_embed: 32, n_heads: 2}"]
MODALITIES: dict[str, str | dict[str, str]] = {
    "norman_alone": "CRISPRa",
    "datlinger": {"default": "CRISPRko", "TCR": "stimulation"},
    "kang_types": "ligand",
    "simulated": "CRISPRa",
}


def main(folder: Path, out: Path) -> None:
    case = read(folder)
    torch.set_num_threads(case.threads)
    store = converted(case, out)
    seen = {name for each in case.adata.obs["condition"] for name in each.split("+")}
    asked = {name for _, condition in case.test for name in condition.split("+")}
    epochs = round(EPOCHS * case.budget / 60)
    more = [*SETTINGS, f"train.epochs={epochs}", f"seed={SEED}"]
    more += ["model.causal.targets=gene"] if folder.name.endswith("single-fold-0") else []
    if simulated(folder):
        more.append(f"pathways.file={out / 'screens' / 'pathways.gmt'}")
    clock = Clock(case)
    held = json.dumps(sorted({condition for _, condition in case.test}))
    more.append("split.kind=none" if new_context(folder) else f"split={{kind: explicit, test: {held}}}")
    model, _ = fit(store, ExperimentConfig.load(None, more))
    took, means = clock.took, {}
    for context, condition in case.test:
        try:
            found = model.predict_means([condition], context=context)
        except UserError as error:
            print(f"{condition}: {error} ({sorted(asked - seen)} not seen)")
            continue
        means[context, condition] = found[case.adata.var_names].to_numpy()[0]
    shown = case.adata.n_obs * epochs
    save(out, means, case.adata.var_names.tolist(), took, shown, epochs)


def new_context(folder: Path) -> bool:
    """Whether a context is held out; else conditions are, which the store knows by name as in the studies."""
    return folder.name.startswith("kang_types")


def simulated(folder: Path) -> bool:
    """Whether the cells are simulated: genes without reference, pathways of their own."""
    return folder.name.startswith("simulated")


def converted(case: Case, out: Path) -> Store:
    """Store of the case's cells, with held-out conditions that the split keeps from training; made once."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "store").exists():
        cells = case.adata if new_context(case.folder) else cells_of(case.folder.name)
        counts = ad.AnnData(cells.layers["counts"], obs=cells.obs, var=cells.var)
        counts.write_h5ad(out / "counts.h5ad")
        study = case.folder.name.split("-")[0]
        perturbation = {"column": "condition", "control": "control", "separator": "+"}
        dataset = {"name": study, "path": str(out / "counts.h5ad"), "perturbation": perturbation}
        dataset |= {"context": {"column": "context"}, "modality": MODALITIES[study]}
        spec = out / "spec.yaml"
        genes = {"reference": "none" if simulated(case.folder) else "human"}
        spec.write_text(yaml.safe_dump({"datasets": [dataset], "genes": genes}))
        if simulated(case.folder):
            simulate_to(out / "screens", SimulationConfig())  # for its pathways
        convert(str(spec), str(out / "store"))
    return Store.open(str(out / "store"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
