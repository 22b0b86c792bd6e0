"""Small ragged problems for the attention core, with every corner that real screens have."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

from tadvae.nn.candidates import candidate_edges
from tadvae.nn.edges import EdgeTable
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import pathway_layer
from tadvae.pathways.membership import Membership


@dataclass
class Problem:
    """Ragged cells over a mask.

    Attributes
    ----------
    mask : (P, G) bool
    panels
        Measured genes of each dataset, sorted.
    cells
        Dataset and (gene, value) pairs of every cell.
    """

    mask: np.ndarray
    panels: list[list[int]]
    cells: list[tuple[int, list[tuple[int, float]]]]
    seed: int

    @property
    def membership(self):
        pathway, gene = np.nonzero(self.mask)
        ids = [f"P{p}" for p in range(len(self.mask))]
        return Membership(ids, ids, pathway, gene, self.mask.shape[1])

    def layer(self, config, encoder=None, given=None):
        """A layer in which nothing is left at a special value."""
        torch.manual_seed(self.seed)
        membership = self.membership
        if config.masking == "agreement":
            logit = np.random.default_rng(self.seed).normal(size=len(membership.gene))
            membership = replace(membership, logit=logit.astype(np.float32))
        candidates = candidate_edges(self.membership, config.candidates)
        layer = pathway_layer(config, EdgeTable(membership, self.mask.shape[1], candidates), encoder, given)
        for name, parameter in layer.named_parameters():
            if parameter.requires_grad and (parameter.dim() < 2 or "values." in name):
                with torch.no_grad():
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return layer

    def packed(self, dtype=torch.float64):
        tokens = [(g, x, i) for i, (_, cell) in enumerate(self.cells) for g, x in cell]
        gene, value, cell = (list(column) for column in zip(*tokens, strict=True)) if tokens else ([],) * 3
        return PackedCells(
            torch.tensor(gene, dtype=torch.int64),
            torch.tensor(value, dtype=dtype, requires_grad=True),
            torch.tensor(cell, dtype=torch.int64),
            len(self.cells),
            tuple(torch.tensor(panel) for panel in self.panels),
            torch.tensor([dataset for dataset, _ in self.cells]),
        )


@st.composite
def problems(draw):
    """Masks with empty pathways and orphan genes; panels that miss pathways; empty and one-gene cells."""
    n_genes, n_pathways = draw(st.integers(1, 10)), draw(st.integers(1, 5))
    genes = st.integers(0, n_genes - 1)
    members = draw(st.lists(st.sets(genes), min_size=n_pathways, max_size=n_pathways))
    mask = np.zeros((n_pathways, n_genes), bool)
    for pathway, chosen in zip(mask, members, strict=True):
        pathway[list(chosen)] = True
    panels = [sorted(panel) for panel in draw(st.lists(st.sets(genes, min_size=1), min_size=1, max_size=2))]
    value = st.floats(0.015625, 9, width=32)  # off the knots, where bins have a kink
    cells = []
    for _ in range(draw(st.integers(1, 5))):
        dataset = draw(st.integers(0, len(panels) - 1))
        cell = draw(st.dictionaries(st.sampled_from(panels[dataset]), value))
        cells.append((dataset, sorted(cell.items())))
    return Problem(mask, panels, cells, draw(st.integers(0, 1000)))


CORNERS = Problem(
    mask=np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]], bool),
    panels=[[0, 1, 2, 3, 4, 5], [0, 1, 2, 5]],
    cells=[
        (0, [(0, 1.5), (1, 2.0), (3, 0.5)]),
        (0, []),
        (0, [(1, 3.0)]),
        (1, [(5, 4.0)]),
        (0, [(0, 1.0), (2, 1.0), (4, 8.8)]),
    ],
    seed=0,
)
"""No gene in pathway 2; gene 5 in no pathway; an empty cell, a cell of one gene, one of the orphan alone; a
dataset that measures no gene of pathway 1."""
