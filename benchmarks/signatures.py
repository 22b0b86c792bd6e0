"""Signatures: a known drug in another cell type, and screens together with signatures in several units.

- ``drugs``: the four files of ``signatures/neurips2023_*`` as four datasets; the model is trained without 27
  of the 135 drugs in T cells (one fold of five) and compared with the baselines there, also with the
  regression alone.
- ``units``: Norman 2019 as a screen, a fifth of its targets held out in each of five folds, alone and with
  signatures of the same screen times a factor (they share targets, so this shows what units do, not what
  can be predicted), or with signatures of drugs. The regression alone.

    python benchmarks/signatures.py [drugs units] [--data DATA]
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import yaml

from pipelines.convert import convert
from tadvae.data.build_vocabulary import context_rows, interventions
from tadvae.data.group_means import group_means
from tadvae.data.reader import CellReader
from tadvae.data.splits import TEST
from tadvae.data.views import views_of
from tadvae.evaluation.evaluate import evaluate
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit
from tadvae.training.prepare import prepare_training

TYPES = ("b", "myeloid", "nk", "t")
SHOWN = ("no_change", "mean", "linear", "tadvae")


def stored(datasets: list[dict[str, Any]], folder: Path) -> Store:
    """Convert some datasets."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    convert(str(folder / "spec.yaml"), str(folder / "store"))
    return Store.open(str(folder / "store"))


def drugs_of(data: Path, name: str) -> dict[str, Any]:
    """Dataset of the drugs in one cell type."""
    return {
        "name": name,
        "path": str(data / f"signatures/neurips2023_{name}.h5ad"),
        "kind": "signatures",
        "perturbation": {"column": "drug"},
        "context": {"column": "context"},
        "modality": "drug",
    }


def drugs(data: Path, folder: Path) -> None:
    """Print the table of the held-out drugs in T cells."""
    store = stored([drugs_of(data, name) for name in TYPES], folder / "drugs")
    for settings in (["effects.weight=1", "train.epochs=1"], []):
        config = ExperimentConfig.load(None, ["split.kind=single", "split.datasets=[t]", *settings])
        model, groups = fit(store, config)
        summary = evaluate(store, groups, model).summary()
        table = summary[summary["category"] == "all"].pivot(index="method", columns="metric", values="mean")
        print(" ".join(settings) or "defaults")
        print(table.loc[list(SHOWN), ["pearson_delta", "l2", "centroid_accuracy"]].round(3).to_string())


def units(data: Path, folder: Path) -> None:
    """Print r and L2 of held-out targets of a screen, by what it is trained with."""
    screen = {
        "name": "screen",
        "path": str(data / "screens/norman19_k562_crispra.h5ad"),
        "perturbation": {"column": "condition", "control": "control", "separator": "+"},
        "context": {"column": "cell_type"},
        "modality": "CRISPRa",
    }
    cases: dict[str, list[dict[str, Any]]] = {"alone": [], "with drugs": [drugs_of(data, "t")]}
    for factor in (0.1, 1.0, 10.0):
        signatures = ad.read_h5ad(data / "signatures/norman19_k562_lfc.h5ad")
        signatures.X = signatures.X * np.float32(factor)
        signatures.write_h5ad(folder / f"{factor}.h5ad")
        own = {"name": "changes", "path": str(folder / f"{factor}.h5ad"), "kind": "signatures"}
        own |= {"perturbation": {"column": "perturbation", "separator": "+"}, "modality": "CRISPRa"}
        cases[f"with log-fold changes × {factor:g}"] = [own]
    for name, others in cases.items():
        store = stored([screen, *others], folder / name.replace(" ", "-"))
        found = np.concatenate([_scores(store, fold) for fold in range(5)])
        print(f"{name}: r {np.nanmean(found[:, 0]):.3f}, L2 {found[:, 1].mean():.3f}, n {len(found)}")


def _scores(store: Store, fold: int) -> np.ndarray:
    """Correlation and distance of predicted and observed effects of the held-out groups, (n, 2)."""
    settings = ["split.kind=single", "split.datasets=[screen]", f"split.fold={fold}"]
    config = ExperimentConfig.load(None, settings)
    prepared = prepare_training(store, config)
    assert prepared.effects is not None
    vocabulary = prepared.vocabulary
    reader = CellReader(store, views_of(store, vocabulary), config.split)
    means = group_means(reader, store.bags[store.bags["dataset"] == 0]).mean
    pairs, rows = interventions(store, vocabulary), context_rows(store, vocabulary)
    held = prepared.groups[prepared.groups["part"] == TEST]
    scores = []
    for d, c, p in held[["dataset", "context", "perturbation"]].itertuples(index=False):
        effect = means[d, c, p] - means[d, c, store.control]
        (own,) = prepared.effects.predict(d, rows[d, c], [pairs[p]], vocabulary.datasets[d].genes)
        scores.append((np.corrcoef(effect, own)[0, 1], np.linalg.norm(effect - own)))
    return np.array(scores)


STUDIES = {"drugs": drugs, "units": units}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("studies", nargs="*", default=list(STUDIES), choices=[*STUDIES, []])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TADVAE_DATA", "data")))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        for each in options.studies:
            STUDIES[each](options.data.absolute(), Path(place))
