"""The invented batch of the GPU check, with the sizes of a screen; and its toy size."""

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch

from tadvae.cells.ragged import Cells
from tadvae.data.batches import Bag, Batch
from tadvae.data.entries import ContextEntry, DatasetEntry, TargetEntry
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.pack import pack
from tadvae.nn.packed import ModelBatch
from tadvae.pathways.membership import Membership
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.learner import Learner, build_module


@dataclass(frozen=True)
class Sizes:
    """How large the invented batch is."""

    n_genes: int = 20_000
    n_pathways: int = 500
    members: int = 60
    n_bags: int = 8
    n_cells: int = 64
    n_tokens: int = 1_500
    d_embed: int = 128
    square: int = 8_192
    megabytes: int = 512
    rounds: int = 20


TOY = Sizes(60, 6, 8, 4, 3, 12, 16, 64, 1, 2)


class Problem:
    """A vocabulary of two datasets, and a batch of both."""

    def __init__(self, sizes: Sizes, seed: int = 0) -> None:
        self.sizes = sizes
        rng = np.random.default_rng(seed)
        n, P = sizes.n_genes, sizes.n_pathways
        members = [np.sort(rng.choice(n, sizes.members, replace=False)) for _ in range(P)]
        membership = Membership(
            pathway_ids=[f"P{p}" for p in range(P)],
            names=[f"pathway {p}" for p in range(P)],
            pathway=np.repeat(np.arange(P), sizes.members),
            gene=np.concatenate(members),
            n_genes=n,
        )
        genes = pd.DataFrame({"gene": [f"G{g}" for g in range(n)], "ensembl_id": None, "symbol": None})
        panels = [np.arange(n), np.arange(0, n, 2)]
        datasets = [
            DatasetEntry(f"d{i}", panel, "cp10k", "cells", 0, {0: 0, 1: 0}) for i, panel in enumerate(panels)
        ]
        contexts = [
            ContextEntry(i, "c", rng.gamma(0.5, 0.5, len(panel)).astype(np.float32), 100)
            for i, panel in enumerate(panels)
        ]
        targets = [TargetEntry("G0", 0, True), TargetEntry("G2", 2, True)]
        self.vocabulary = Vocabulary(
            genes, membership, 1, datasets, contexts, targets, ["CRISPRi"], [-1], "own"
        )
        bags = []
        for d, panel in enumerate(panels):
            controls = self._cells(rng, panel)
            for i in range(sizes.n_bags // 2):
                bags.append(Bag(10 * d + i, d, 0, 1 + i % 2, self._cells(rng, panel), controls))
        self.batch = Batch(bags)
        self._degrees: WeakKeyDictionary[Learner, np.ndarray] = WeakKeyDictionary()

    def _cells(self, rng: np.random.Generator, panel: np.ndarray) -> Cells:
        n, sizes = self.sizes.n_cells, self.sizes
        lengths = rng.integers(sizes.n_tokens * 3 // 4, sizes.n_tokens * 5 // 4, n)
        ids = [np.sort(rng.choice(panel, min(k, len(panel)), replace=False)) for k in lengths]
        offsets = np.concatenate([[0], np.cumsum([len(each) for each in ids])])
        values = rng.gamma(2.0, 0.7, offsets[-1]).astype(np.float32)
        return Cells(np.concatenate(ids), values, offsets, rng.uniform(1e3, 1e4, n))

    def config(self, masking: str, encoder: str, **train: Any) -> ExperimentConfig:
        heads = max(self.sizes.d_embed // 16, 1)
        pathway = {"masking": masking, "d_embed": self.sizes.d_embed, "n_heads": heads}
        model = {"pathway": pathway, "encoder": {"kind": encoder}}
        return ExperimentConfig.parse({"model": model, "train": train}, "benchmark")

    def pack(
        self,
        learner: Learner,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        bags: list[Bag] | None = None,
    ) -> ModelBatch:
        bags = self.batch.bags if bags is None else bags
        asked = [[], [(0, 0)], [(1, 0)]]
        rows = {(0, 0): 0, (1, 0): 1}
        # a run asks the network for the degrees of its genes once, before the first step: on a GPU that waits
        degree = self._degrees.get(learner)
        if degree is None:
            degree = self._degrees[learner] = learner.module.pathway.edges.degree()
        return pack(Batch(bags), self.vocabulary, rows, asked, device, degree, dtype)

    def share(self, rank: int, n_ranks: int, step: int) -> list[Bag]:
        """The bags of a rank in a step; once they are a bag of controls alone."""
        if (rank, step) == (n_ranks - 1, 1):
            bag = self.batch.bags[0]
            return [replace(bag, perturbation=0, cells=bag.controls, controls=None)]
        return self.batch.bags[rank::n_ranks]

    def learner(self, masking: str, encoder: str, device: torch.device, **train: Any) -> Learner:
        config = self.config(masking, encoder, **train)
        return Learner(config, build_module(config, self.vocabulary).to(device))
