"""Two tiny simulated screens with doubles enough to calibrate on, and the settings of a tiny model."""

from pathlib import Path

from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.config import ScreenConfig, SimulationConfig

SCREENS = SimulationConfig(
    seed=3,
    n_genes=70,
    n_factors=3,
    n_pathways=6,
    genes_per_pathway=(6, 10),
    n_targets=8,
    truth_cells=5,
    screens=(
        ScreenConfig(
            name="up",
            contexts=("L1", "L2"),
            n_genes=60,
            n_singles=7,
            n_doubles=15,
            control_cells=30,
            cells_per_condition=10,
        ),
        ScreenConfig(
            name="down",
            modality="CRISPRi",
            n_genes=50,
            n_singles=5,
            n_doubles=4,
            control_cells=30,
            cells_per_condition=10,
        ),
    ),
)
MODEL = [
    "model.pathway={d_embed: 8, n_heads: 2}",
    "model.causal={n_factors: 3, hidden: 8}",
    "model.decoder={d_gene: 8, hidden: 8}",
    "pathways.min_measured=3",
    "train={epochs: 2, learning_rate: 0.01}",
]
SPLITS = {
    "combo": (["split.kind=combo"], {"combo_seen2"}),
    "single": (
        ["split={kind: single, folds: 4}", "effects.pathways=false"],
        {"unseen_single", "combo_seen1", "combo_seen0"},
    ),
    "context": (["split={kind: context, folds: 2, fold: 1, datasets: [up]}"], {"unseen_context"}),
    "dataset": (["split={kind: dataset, folds: 2}"], {"unseen_dataset"}),
    "cells": (["split.kind=cells"], {"cells"}),
    "explicit": (["split={kind: explicit, test: [L2]}"], {"unseen_context"}),
}
"""Settings of every kind of split, and the categories of its held-out groups."""


def small_config(folder: Path, *settings: str) -> ExperimentConfig:
    """Settings of a tiny model on the screens in a folder."""
    return ExperimentConfig.load(None, [f"pathways.file={folder / 'pathways.gmt'}", *MODEL, *settings])
