"""Our own activities on the cases of ``targets``: a model per screen, pathways and seed.

Run as a file, it trains a model on the two panels of a case of ``panels`` and reads the held-out cells, for
its time and memory::

    python pathways_of_tadvae.py CASE OUT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))

import json
import time
from collections.abc import Callable

import anndata as ad
import pandas as pd
import torch
from panel_transfer import FIXED, KINDS

from peers import pathway_tests
from peers.pathway_case import save
from peers.pathway_tests import PERTURBED
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit

MASKS, SEEDS, EPOCHS = ("agreement", "members", "linear"), 2, 5
SETTINGS = [f"train.epochs={EPOCHS}", *FIXED]

TIMED, TIMED_EPOCHS = "panels-0-true", 10

Scores = dict[str, float]


def target_scores(folder: Path, short: Callable[[Scores], Scores]) -> dict[str, dict[str, Scores]]:
    """Scores by masking and case: means over seeds of each target's score."""
    result: dict[str, dict[str, Scores]] = {}
    for study in PERTURBED:
        store = Store.open(str(folder / "work" / study / "store"))
        for kind in KINDS:
            case = folder / f"targets-{study}-{kind}"
            for masking in MASKS:
                found = []
                for seed in range(SEEDS):
                    settings = [f"pathways.file={folder}/work/{study}/{kind}.gmt", f"seed={seed}", *SETTINGS]
                    config = ExperimentConfig.load(None, [*settings, f"model.pathway.masking={masking}"])
                    model, _ = fit(store, config)
                    found.append(pathway_tests.score(case, _reader(model, case)))
                mean = pd.DataFrame(found).mean().to_dict()
                result.setdefault(masking, {})[case.name] = short(mean)
                print(f"{case.name}, {masking}: {pd.Series(mean).mean():.3f}", flush=True)
    return result


def _reader(model: TADVAE, case: Path) -> pathway_tests.Reader:
    """Activities of a model, not smoothed, as is right for means of groups."""
    cells = json.loads((case / "case.json").read_text())["cells"]

    def read(name: str) -> pd.DataFrame:
        activity = model.activities(ad.read_h5ad(case / cells[name]), values="log1p", smooth=0)
        return activity.loc[:, activity.notna().all()]

    return read


def main(case: Path, out: Path) -> None:
    torch.set_num_threads(1)
    about = json.loads((case / "case.json").read_text())
    store = Store.open(str(case / about["pathways"]).replace("true.gmt", "store"))
    config = ExperimentConfig.load(
        None, [f"pathways.file={case / about['pathways']}", f"train.epochs={TIMED_EPOCHS}", *FIXED]
    )
    start = time.process_time()
    model, _ = fit(store, config)
    training = time.process_time() - start
    (out / "agreement").mkdir(parents=True, exist_ok=True)
    for name, place in about["cells"].items():
        if not name.endswith("smoothed cells"):  # it smooths cells itself
            adata, start = ad.read_h5ad(case / place), time.process_time()
            activity = model.activities(adata, values="log1p")
            save(out / "agreement" / f"{name}.npz", activity, time.process_time() - start, training)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
