"""What the network does to control cells under perturbations, without the regression of mean effects."""

from collections.abc import Sequence

import numpy as np
import torch

from tadvae.cells.ragged import Cells
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.causal import Intervention
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells


def move_cells(
    module: TADVAEModule,
    vocabulary: Vocabulary,
    temperature: float,
    cells: Cells,
    genes: np.ndarray,
    profile: np.ndarray,
    dataset: int,
    perturbations: Sequence[Sequence[tuple[int, int]]],
) -> np.ndarray:
    """The cells under each of M perturbations, float32, shape (M, n, G).

    Parameters
    ----------
    temperature
        Of the softmax over factors.
    cells, genes, profile, dataset, perturbations
        See :meth:`tadvae.TADVAE.counterfactual`.
    """
    on = torch.from_numpy(genes)
    with torch.no_grad():
        shifts = shifts_of(module, temperature, dataset, perturbations)  # (M, K)
        z = latents(module, vocabulary, cells, genes)  # (n, K)
        before = module.decoder.hidden(module.causal(z))  # (n, d)
        dense, offset = torch.from_numpy(cells.dense(genes)), torch.from_numpy(profile)
        return np.stack(
            [
                module.counterfactual(
                    before, module.decoder.hidden(module.causal(z + shift)), dense, on, offset
                ).numpy()
                for shift in shifts
            ]
        )


def latents(module: TADVAEModule, vocabulary: Vocabulary, cells: Cells, genes: np.ndarray) -> torch.Tensor:
    """Latent means of cells on a gene list, shape (n, K)."""
    available = vocabulary.membership.availability(genes, vocabulary.min_measured)
    packed = PackedCells.of(cells, panels=[genes])
    _, z, _ = module.encode(packed, torch.from_numpy(available).expand(len(cells), -1))
    return z


def shifts_of(
    module: TADVAEModule, temperature: float, dataset: int, perturbations: Sequence[Sequence[tuple[int, int]]]
) -> torch.Tensor:
    """What M perturbations add to the latents, shape (M, K)."""
    flat = [(t, m, i) for i, pairs in enumerate(perturbations) for t, m in pairs]
    target, modality, bag = (torch.tensor([row[j] for row in flat], dtype=torch.int64) for j in range(3))
    where = torch.full_like(target, dataset)
    intervention = Intervention(target, modality, where, bag, n_bags=len(perturbations))
    return module.causal.shifts(intervention, module.decoder.gene, temperature)
