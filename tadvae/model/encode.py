"""What a network reads in cells: activities, latent means, and the genes behind an activity."""

import numpy as np
import torch

from tadvae.model.device import device_of, to_numpy
from tadvae.model.new_cells import NewCells
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells

CELLS_AT_ONCE = 1024
SMOOTHED_AT_ONCE = 128
"""Cells with a value for every gene of the panel that are read together."""


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


def principal_axes(values: np.ndarray, n: int) -> np.ndarray:
    """The n leading principal axes of cells (n_cells, G), orthonormal rows, shape (n, G) or fewer rows."""
    centred = values - values.mean(axis=0)
    axes: np.ndarray = np.linalg.svd(centred, full_matrices=False)[2][:n]
    return axes


def smoothed_activities(module: TADVAEModule, cells: NewCells, axes: np.ndarray) -> np.ndarray:
    """Activities read from cells that are projected onto principal axes, shape (n_cells, P).

    ``x̃ = m + (x − m) AᵀA`` with the mean m of the cells has a value for every measured gene: what the axes
    know of it from all genes of the cell, without most of the noise of counts. The activity is then read as
    usual, so that it remains a sum over the pathway's own genes, of x̃ in place of x.

    Parameters
    ----------
    axes : (n, G)
        Orthonormal rows on ``cells.genes``.
    """
    device = device_of(module)
    genes = torch.from_numpy(cells.genes).to(device)
    values = cells.cells.dense(cells.genes)  # (n_cells, G)
    mean = values.mean(axis=0)
    values = (mean + (values - mean) @ axes.T @ axes).astype(np.float32)
    parts = []
    with torch.no_grad():
        for start in range(0, len(values), SMOOTHED_AT_ONCE):
            part = torch.from_numpy(values[start : start + SMOOTHED_AT_ONCE]).to(device)
            n = len(part)
            cell = torch.arange(n, device=device).repeat_interleave(len(genes))
            panel = torch.zeros(n, dtype=torch.int64, device=device)
            packed = PackedCells(genes.repeat(n), part.flatten(), cell, n, (genes,), panel)
            parts.append(to_numpy(module.pathway(packed)))
    return np.concatenate(parts)


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
