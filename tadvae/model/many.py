"""Mean profiles under thousands of perturbations at once.

The decoder's last map is linear in h(u), so the mean over control cells can be taken before it: what is
decoded is one row a perturbation, not one a cell.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from tadvae.cells.ragged import Cells
from tadvae.model.move import latents, move_cells, shifts_of

if TYPE_CHECKING:
    from tadvae.model.tadvae import TADVAE

ROWS_AT_ONCE = 16_384
"""Pairs of a perturbation and a control cell that are computed together."""
AT_ONCE = 1_024
"""Perturbations that are computed together by the regression and by the decoder."""

Pairs = Sequence[tuple[int, int]]


def predicted_means(
    model: "TADVAE",
    cells: Cells,
    genes: np.ndarray,
    profile: np.ndarray,
    dataset: int,
    perturbations: Sequence[Pairs],
    context: int = -1,
) -> np.ndarray:
    """Means over cells of :meth:`~tadvae.model.tadvae.TADVAE.counterfactual`, float32, shape (M, G)."""
    known = model.known(perturbations)
    before = cells.dense(genes).mean(axis=0, dtype=np.float64)  # (G,)
    result = np.empty((len(perturbations), len(genes)), np.float32)
    for part, network in _network(model, cells, genes, profile, dataset, known, before):
        result[part] = network
        if model.effects is not None:
            effect = model.effects.predict(dataset, context, perturbations[part], genes)  # (m, G)
            weight = model.regression_weight(dataset, context, perturbations[part])
            result[part] += weight[:, None] * (effect - (network - before))
    return result


def _network(
    model: "TADVAE",
    cells: Cells,
    genes: np.ndarray,
    profile: np.ndarray,
    dataset: int,
    perturbations: Sequence[Pairs],
    before: np.ndarray,
) -> Iterator[tuple[slice, np.ndarray]]:
    """The network's means, some perturbations at a time: which, and their (m, G)."""
    module, on = model.module, torch.from_numpy(genes)
    decoder, causal = module.decoder, module.causal
    temperature = model.config.loss.temperature.high
    if decoder.config.kind == "mlp":  # ends in a LeakyReLU: its mean is not the LeakyReLU of a mean
        each = max(ROWS_AT_ONCE // 16 // max(len(cells), 1), 1)
        for part in _parts(len(perturbations), each):
            asked = perturbations[part]
            found = move_cells(module, model.vocabulary, temperature, cells, genes, profile, dataset, asked)
            yield part, found.mean(axis=1, dtype=np.float64)
        return
    with torch.no_grad():
        u = causal(latents(module, model.vocabulary, cells, genes))  # (n, K)
        centre = decoder.hidden(u).mean(0)  # (d,)
        each = max(ROWS_AT_ONCE // max(len(cells), 1), 1)
        for part in _parts(len(perturbations), AT_ONCE):
            # the causal layer is linear: shifts go through it once, not once a cell
            moved = causal(shifts_of(module, temperature, dataset, perturbations[part]))  # (m, K)
            hidden = torch.cat(
                [decoder.hidden(u + some[:, None]).mean(1) for some in moved.split(each)]
            )  # (m, d)
            if decoder.config.counterfactual == "abduction":
                yield part, before + decoder.change(hidden - centre, on).numpy()
            else:
                yield part, module.decode(hidden, on, torch.from_numpy(profile)).numpy()


def _parts(n: int, each: int) -> Iterator[slice]:
    for start in range(0, n, each):
        yield slice(start, min(start + each, n))
