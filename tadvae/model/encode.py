"""What a network reads in cells: activities, latent means, and the genes behind an activity."""

import numpy as np
import torch

from tadvae.model.device import device_of, to_numpy
from tadvae.model.new_cells import NewCells
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells

CELLS_AT_ONCE = 1024


def encode(module: TADVAEModule, cells: NewCells) -> tuple[np.ndarray, np.ndarray]:
    """Activities, shape (n_cells, P), whatever the panel can see, and latent means, shape (n_cells, K)."""
    device = device_of(module)
    available = torch.from_numpy(cells.available).to(device)
    activities, latents = [], []
    with torch.no_grad():
        for start in range(0, len(cells.cells), CELLS_AT_ONCE):
            part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], device, panels=[cells.genes])
            activity, mean, _ = module.encode(part, available.expand(part.n_cells, -1))
            activities.append(to_numpy(activity))
            latents.append(to_numpy(mean))
    return np.concatenate(activities), np.concatenate(latents)


def contributions(module: TADVAEModule, cells: NewCells, pathway: int, genes: np.ndarray) -> np.ndarray:
    """What each of some genes (sorted vocabulary indices) adds to a pathway, shape (n_cells, G)."""
    result = np.zeros((len(cells.cells), len(genes)), np.float32)
    device = device_of(module)
    for start in range(0, len(cells.cells), CELLS_AT_ONCE):
        part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], device, panels=[cells.genes])
        with torch.no_grad():
            parts = module.pathway.contributions(part, pathway)
        column = np.searchsorted(genes, to_numpy(parts.gene))
        result[start + to_numpy(parts.cell), column] = to_numpy(parts.value)
    return result
