"""Our own activities on the cases of ``targets``: a model per screen, pathways and seed."""

import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import pandas as pd
from panel_transfer import FIXED, KINDS

from peers import pathway_tests
from peers.pathway_tests import PERTURBED
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit

MASKS, SEEDS, EPOCHS = ("members", "linear"), 2, 5
SETTINGS = [f"train.epochs={EPOCHS}", *FIXED]

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
