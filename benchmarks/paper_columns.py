"""Columns of the paper's table that the trained network of each trial is asked for.

- ``truth``: on simulated screens, the mean absolute correlation over cells of a pathway's activity with the
  true one (``truth.py``).
- ``targets``: on real screens, the share of pairs in which a pathway that a perturbed gene belongs to moves
  more than one that it does not, without the gene's own expression (``peers/pathway_tests.py``; chance 0.5).
- ``replicability``: of trials that differ in nothing but their seed, the correlation over cells of a
  pathway's activity in one with that in the other, mean over pathways, in the pair that agrees least.
- ``panels``: a cell found by its activities through a disjoint panel (MRR, ``panel_transfer.py``; chance
  0.010). These networks are trained with the settings of the trials on two halves of a study of unperturbed
  cells, the seed of the trial being that of the halving.
"""

from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import panel_transfer
from peers import pathway_tests
from scipy import sparse
from studies import DATA
from truth import activity_scores

from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import SimulationConfig
from tadvae.simulation.simulate import simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit

CELLS, CELLS_PER_CONDITION, PANEL_EPOCHS = 500, 100, 3
PERTURBED = {
    "norman_mcfaline": ("screens/norman19_k562_crispra.h5ad", "control"),
    "datlinger": pathway_tests.PERTURBED["datlinger"],
}


class Judge:
    """Scores of the networks of one study, and their activities in the same cells."""

    def __init__(self, study: str, store: Path, work: Path) -> None:
        if study == "simulated":
            self.simulation = simulate(SimulationConfig())
            screen = self.simulation.screens[0]
            every = ad.AnnData(sparse.csr_matrix(screen.X, dtype=np.float32), screen.obs, screen.var)
        else:
            opened, (file, control) = Store.open(str(store)), PERTURBED[study]
            every = ad.read_h5ad(DATA / file)
            panel_transfer.write_pathways(opened, work, 0)
            self.pathways = work / "true.gmt"
            self.targets = pathway_tests.target_cells(
                opened, file, control, self.pathways, CELLS_PER_CONDITION
            )
        self.study = study
        self.cells = every[np.sort(np.random.default_rng(0).permutation(every.n_obs)[:CELLS])].copy()

    def activities(self, model: TADVAE) -> pd.DataFrame:
        """Activities of pathways in the cells that all networks are compared on."""
        return model.activities(self.cells).dropna(axis=1)

    def scores(self, model: TADVAE) -> dict[str, float]:
        """The column that a study's data allow."""
        if self.study == "simulated":
            return {"truth": activity_scores(model, self.simulation)}

        def read(target: str) -> pd.DataFrame:
            X, genes, names, _ = self.targets[target]
            cells = ad.AnnData(X, pd.DataFrame(index=names), pd.DataFrame(index=genes))
            return model.activities(cells, values="log1p", smooth=0).dropna(axis=1)

        perturbed = {target: part[-1] for target, part in self.targets.items()}
        areas = pathway_tests.target_areas(self.pathways, perturbed, read)
        return {"targets": float(np.mean(list(areas.values())))}


def panels(settings: Iterable[str], halving: int, folder: Path) -> float:
    """MRR of a network trained with some settings on the two halves of the genes."""
    store, held = panel_transfer.prepare(halving, folder / f"h{halving}")
    own = [f"pathways.file={folder}/h{halving}/true.gmt", f"seed={halving}", f"train.epochs={PANEL_EPOCHS}"]
    own += [each for each in panel_transfer.FIXED if not each.startswith("model.pathway")]
    model, _ = fit(store, ExperimentConfig.load(None, [*own, *settings]))
    pair = [model.activities(each) for each in held]
    seen = pair[0].notna().all() & pair[1].notna().all()
    first, second = (part.loc[:, seen].to_numpy() for part in pair)
    return panel_transfer.scores(first, second)["MRR centred"]
