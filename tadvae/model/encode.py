"""What a network reads in cells: activities, latent means, and the genes behind an activity."""

import numpy as np
import torch

from tadvae.model.new_cells import NewCells
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells

CELLS_AT_ONCE = 1024


def encode(module: TADVAEModule, cells: NewCells) -> tuple[np.ndarray, np.ndarray]:
    """Activities, shape (n_cells, P), whatever the panel can see, and latent means, shape (n_cells, K)."""
    available = torch.from_numpy(cells.available)
    activities, latents = [], []
    with torch.no_grad():
        for start in range(0, len(cells.cells), CELLS_AT_ONCE):
            part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], panels=[cells.genes])
            activity, mean, _ = module.encode(part, available.expand(part.n_cells, -1))
            activities.append(activity.numpy())
            latents.append(mean.numpy())
    return np.concatenate(activities), np.concatenate(latents)


def contributions(module: TADVAEModule, cells: NewCells, pathway: int, genes: np.ndarray) -> np.ndarray:
    """What each of some genes (sorted vocabulary indices) adds to a pathway, shape (n_cells, G)."""
    result = np.zeros((len(cells.cells), len(genes)), np.float32)
    for start in range(0, len(cells.cells), CELLS_AT_ONCE):
        part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], panels=[cells.genes])
        with torch.no_grad():
            parts = module.pathway.contributions(part, pathway)
        column = np.searchsorted(genes, parts.gene.numpy())
        result[start + parts.cell.numpy(), column] = parts.value.numpy()
    return result
