"""Weights of pathway members, learned from control cells: two halves of a panel should tell the same cells.

No gene is measured alone: the members of a pathway rise and fall together, and some follow the others better
than most. The panel of a dataset is cut at random into two halves, again in every step. The activities of a
cell through one half should find the same cell among others through the other half. The only parameters are
one logit for each (pathway, member) edge; the weights are their softmax over the measured members. It uses
what two panels do to the same cell, but needs no cell that was measured through both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from tadvae.cells.ragged import Cells
from tadvae.model.encode import AXES, axes_of
from tadvae.nn.adam import Adam
from tadvae.pathways.membership import Membership

STEPS = 50
"""Steps of Adam. With more, weights fit the noise of the cells: docs/experiments.md, section 18."""
LEARNING_RATE = 0.02
BATCH = 256
TEMPERATURE = 0.1
MIN_CELLS = 100
"""With fewer control cells a dataset teaches nothing about single cells."""
MAX_CELLS = 5000
"""Control cells of a dataset that are used."""
AT_ONCE = 4
"""Datasets of a step, drawn at random; the time of a step does not grow with their number."""


@dataclass(frozen=True)
class Sample:
    """Control cells of one dataset on their principal axes, less each cell's mean over its genes.

    Attributes
    ----------
    edges : (e,) int64
        The edges of the membership whose genes are measured.
    loads : (e, k)
        The k axes at the gene of each edge, less each axis' mean over genes.
    scores : (n, k)
        Position of each cell on the axes.
    """

    edges: Tensor
    loads: Tensor
    scores: Tensor


def learn_agreement(mask: Membership, samples: Sequence[Sample], seed: int) -> Membership:
    """The membership with a logit for every edge; as it was where no dataset has enough control cells."""
    if not samples:
        return mask
    logit = torch.zeros(len(mask.gene), dtype=torch.float64, requires_grad=True)
    rng = np.random.default_rng([seed, 14])
    optimizer = Adam([logit], lr=LEARNING_RATE)
    for _ in range(STEPS):
        loss = logit.new_zeros(())
        for i in rng.choice(len(samples), min(AT_ONCE, len(samples)), replace=False).tolist():
            sample = samples[i]
            chosen = rng.permutation(len(sample.scores))[:BATCH]
            first = torch.from_numpy(rng.random(mask.n_genes) < 0.5)[torch.from_numpy(mask.gene)]  # (E,)
            loss = loss + disagreement(logit, mask, sample, first, sample.scores[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # rounded, so that the sums of another number of threads give the same
    learned: np.ndarray = logit.detach().numpy().round(4).astype(np.float32)
    return replace(mask, logit=learned)


def disagreement(logit: Tensor, mask: Membership, sample: Sample, first: Tensor, scores: Tensor) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) of the activities of cells through two halves of a panel.

    ``a = √m_p Σ_g α_pg x_g`` with ``α_p = softmax(l_p)`` over the m_p members in a half, less the cells' mean
    and then each cell's mean over pathways; similarity is the cosine. Pathways without members in one of the
    halves are left out. As activities are linear in the k scores of a cell, cosines come from k × k matrices.

    Parameters
    ----------
    logit : (E,)
    first : (E,) bool
        Whether the gene of the edge is in the first half.
    scores : (n, k)
        Scores of the cells.
    """
    pathway = torch.from_numpy(mask.pathway)[sample.edges]  # (e,)
    weight = torch.exp(logit[sample.edges] - logit.detach().max())
    inside = first[sample.edges].to(weight)
    parts = [_half(weight * half, half, pathway, sample.loads, len(mask)) for half in (inside, 1 - inside)]
    both = ((parts[0][1] > 0) & (parts[1][1] > 0))[:, None].to(weight)  # (P, 1)
    maps = [activity * both for activity, _ in parts]
    maps = [(a - a.sum(0) / both.sum().clamp(min=1)) * both for a in maps]  # (P, k)
    cells = scores - scores.mean(0)
    lengths = [((cells @ (a.T @ a)) * cells).sum(1).clamp(min=1e-12).sqrt() for a in maps]  # (n,)
    cosine = cells @ (maps[0].T @ maps[1]) @ cells.T / (lengths[0][:, None] * lengths[1])  # (n, n)
    own = torch.arange(len(cells))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(cosine / TEMPERATURE, own) + entropy(cosine.T / TEMPERATURE, own)) / 2


def _half(
    weight: Tensor, inside: Tensor, pathway: Tensor, loads: Tensor, n_pathways: int
) -> tuple[Tensor, Tensor]:
    """Activities (P, k) of the axes through some genes, and the members of each pathway among them (P,)."""
    zeros = weight.new_zeros(n_pathways)
    size, total = zeros.index_add(0, pathway, inside), zeros.index_add(0, pathway, weight)
    sums = weight.new_zeros(n_pathways, loads.shape[1]).index_add(0, pathway, weight[:, None] * loads)
    return sums / total.clamp(min=1e-30)[:, None] * size.sqrt()[:, None], size


def control_samples(
    mask: Membership, panels: Sequence[np.ndarray], controls: Mapping[tuple[int, int], Cells], seed: int
) -> list[Sample]:
    """The control cells of every dataset that has enough of them, on their principal axes.

    Parameters
    ----------
    panels
        Sorted vocabulary indices of the genes of each dataset.
    controls
        Control cells by (dataset, context).
    """
    samples = []
    for i, genes in enumerate(panels):
        parts = [
            cells.to_csr(genes).astype(np.float64) for (dataset, _), cells in controls.items() if dataset == i
        ]
        if sum(part.shape[0] for part in parts) < MIN_CELLS:
            continue
        X = sparse.vstack(parts, format="csr")
        X = X[np.sort(np.random.default_rng(seed).permutation(X.shape[0])[:MAX_CELLS])]
        mean, axes = axes_of(X, AXES)
        column = np.full(mask.n_genes, -1)
        column[genes] = np.arange(len(genes))
        edges = np.flatnonzero(column[mask.gene] >= 0)
        loads = (axes - axes.mean(axis=1, keepdims=True))[:, column[mask.gene[edges]]].T
        scores = X @ axes.T - mean @ axes.T
        samples.append(Sample(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (edges, loads, scores))))
    return samples
