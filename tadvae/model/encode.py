"""What a network reads in cells: activities, latent means, and the genes behind an activity."""

from dataclasses import replace

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


def smoothed_activities(module: TADVAEModule, cells: NewCells, profile: np.ndarray) -> np.ndarray:
    """Activities read from the network's reconstruction of each cell, shape (n_cells, P).

    The reconstruction has a value for every gene of the panel, with what the network knows from all genes of
    the cell, and without the noise of their counts.

    Parameters
    ----------
    profile : (G,)
        Mean profile of the cells on ``cells.genes``, to which the decoder's values are added.
    """
    genes, available = torch.from_numpy(cells.genes), torch.from_numpy(cells.available)
    mean = torch.from_numpy(profile.astype(np.float32))
    parts = []
    with torch.no_grad():
        for start in range(0, len(cells.cells), CELLS_AT_ONCE):
            part = PackedCells.of(cells.cells[start : start + CELLS_AT_ONCE], panels=[cells.genes])
            n = part.n_cells
            _, latent, _ = module.encode(part, available.expand(n, -1))
            hidden = module.decoder.hidden(module.causal(latent))
            values = module.decode(hidden, genes, mean)  # (n, G)
            cell = torch.arange(n).repeat_interleave(len(genes))
            dense = replace(part, gene_ids=genes.repeat(n), values=values.flatten(), cell=cell)
            parts.append(module.pathway(dense).numpy())
    return np.concatenate(parts)


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
