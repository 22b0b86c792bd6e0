"""A vocabulary that one can overlook, a batch with every kind of bag in it, and models of small screens."""

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from local_conversion import convert_locally
from small_screens import SCREENS, small_config

from tadvae.base.filesystem import Location
from tadvae.cells.ragged import Cells
from tadvae.data.batches import Bag, Batch
from tadvae.data.entries import ContextEntry, DatasetEntry, TargetEntry
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.tadvae import TADVAE
from tadvae.nn.network import TADVAEModule
from tadvae.nn.pack import pack
from tadvae.nn.packed import ModelBatch
from tadvae.pathways.membership import Membership
from tadvae.settings.experiment import ExperimentConfig
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.store.reader import Store
from tadvae.training.fit import fit
from tadvae.training.prepare import prepare_training

N_GENES = 12
"""Gene 3 is in no pathway; gene 11 is measured nowhere."""
PATHWAYS = [
    [0, 1, 4, 5],
    [2, 6, 8],
    [8, 9, 10],  # not measured in "screen"
    [5, 6, 7, 9, 11],
    [],
    [0, 1, 7],  # not measured in "means"
]
PANELS = [[0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 8, 9, 10]]
CONTEXT_ROW = {(0, 0): 0, (0, 2): 1, (1, 0): 2}
"""Model row by the store's (dataset, context)."""
INTERVENTIONS = [[], [(1, 0)], [(1, 1), (2, 1)], [(3, 2)]]
"""(target, modality) pairs by the store's perturbation: control, G0 up, G0+G9 down, a ligand."""


@pytest.fixture(autouse=True, scope="module")
def always_one_thread(one_thread: None) -> None:
    """Tensors are tiny here; on a busy machine threads would only wait for each other."""


@pytest.fixture(scope="session")
def small_vocabulary() -> Vocabulary:
    """Two datasets with different panels, one of cells and one of profiles; three contexts."""
    rng = np.random.default_rng(1)
    symbols = [f"S{g}" if g % 3 else None for g in range(N_GENES)]
    genes = pd.DataFrame({"gene": [f"G{g}" for g in range(N_GENES)], "ensembl_id": None, "symbol": symbols})
    membership = Membership(
        pathway_ids=[f"P:{p}" for p in range(len(PATHWAYS))],
        names=[f"pathway {p}" for p in range(len(PATHWAYS))],
        pathway=np.repeat(np.arange(len(PATHWAYS)), [len(genes) for genes in PATHWAYS]),
        gene=np.concatenate([np.array(genes, np.int64) for genes in PATHWAYS]),
        n_genes=N_GENES,
        logit=np.random.default_rng(2).normal(size=sum(map(len, PATHWAYS))).astype(np.float32),
    )
    panels = [np.array(panel) for panel in PANELS]
    datasets = [
        DatasetEntry("screen", panels[0], "cp10k", "cells", 1, {1: 0, 2: 1, 3: 2}),
        DatasetEntry("means", panels[1], "none", "profiles", 0, {1: 0}),
    ]
    contexts = [
        ContextEntry(d, name, rng.gamma(2.0, 0.5, len(panels[d])).astype(np.float32), n)
        for d, name, n in ((0, "K562", 20), (0, "A549", 10), (1, "K562", 1))
    ]
    targets = [
        TargetEntry("G11", 11, False),
        TargetEntry("G0", 0, True),
        TargetEntry("G9", 9, True),
        TargetEntry("ligand", -1, True),
    ]
    modalities, signs = ["CRISPRa", "CRISPRi", "ligand"], [1, -1, 0]
    return Vocabulary(genes, membership, 2, datasets, contexts, targets, modalities, signs, "own")


def random_cells(rng: np.random.Generator, panel: list[int], sizes: list[int]) -> Cells:
    """Cells with so many expressed genes each."""
    genes = [np.sort(rng.choice(panel, size, replace=False)) for size in sizes]
    return Cells(
        np.concatenate([*genes, np.empty(0, np.int64)]).astype(np.int64),
        rng.gamma(2.0, 1.0, sum(sizes)).astype(np.float32),
        np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
        rng.uniform(1e3, 1e4, len(sizes)),
    )


@pytest.fixture(scope="session")
def small_batch() -> Batch:
    """Bags of cells, of controls and of profiles, with an empty cell and bags of one row."""
    rng = np.random.default_rng(2)
    bags = []
    for number, d, context, perturbation, sizes in (
        (3, 0, 0, 2, [5, 0, 1, 8]),
        (5, 0, 0, 0, [3, 6, 0]),
        (1, 0, 2, 3, [4, 2]),
        (2, 0, 2, 1, [7]),
        (7, 1, 0, 1, [6]),
        (8, 1, 0, 2, [5]),
        (9, 1, 0, 0, [6]),
    ):
        controls = random_cells(rng, PANELS[d], sizes[::-1]) if perturbation else None
        bags.append(Bag(number, d, context, perturbation, random_cells(rng, PANELS[d], sizes), controls))
    return Batch(bags)


@pytest.fixture(scope="session")
def pack_small(small_vocabulary: Vocabulary) -> Callable[..., ModelBatch]:
    """Bring a batch into the terms of the small vocabulary, in float64 unless said otherwise."""

    def pack_small(batch: Batch, dtype: torch.dtype = torch.float64) -> ModelBatch:
        return pack(batch, small_vocabulary, CONTEXT_ROW, INTERVENTIONS, dtype=dtype)

    return pack_small


@pytest.fixture(scope="session")
def small_interventions() -> tuple[list[list[tuple[int, int]]], dict[tuple[int, int], int]]:
    """(target, modality) pairs by perturbation, and model rows by (dataset, context), of the batch."""
    return INTERVENTIONS, CONTEXT_ROW


OLD_NAMES = ["H2AFZ", "SEPT2", "GNB2L1", "KLF1", "JUN", "FOS", "GATA1", "CEBPA", "TBX1.gfp", "MAP2K6"]
"""Genes of the screen "old": three retired symbols, and a construct that no reference knows."""
SPELT_LABELS = {"old": ["ctrl", "H2AFZ", "JUN+H2AFZ", "g1"], "new": ["ctrl", "H2AZ1", "ctrl+FOS", "(+)-JQ1"]}


@pytest.fixture(scope="session")
def spelt_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two screens of the same genes: one with older symbols, one with versioned Ensembl ids; and a spec."""
    folder = tmp_path_factory.mktemp("spelt")
    ids = ["ENSG00000164032.11", "ENSG00000168385.17", "ENSG00000204628.11", *OLD_NAMES[3:]]
    rng = np.random.default_rng(7)
    datasets = []
    for (name, labels), genes in zip(SPELT_LABELS.items(), (OLD_NAMES, ids), strict=True):
        counts = rng.poisson(rng.gamma(2.0, 2.0, 10), (48, 10)).astype(np.float32)
        obs = pd.DataFrame({"condition": np.tile(labels, 12)}, index=[f"{name}{i}" for i in range(48)])
        ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(folder / f"{name}.h5ad")
        perturbation = {"column": "condition", "control": "ctrl", "separator": "+"}
        datasets.append({"name": name, "path": f"{name}.h5ad", "perturbation": perturbation})
        datasets[-1]["context"] = {"value": name.upper()}
    (folder / "spec.yaml").write_text(yaml.safe_dump({"datasets": datasets}))
    (folder / "p.gmt").write_text("SET\tmade up\tH2AFZ\tSEPT2\tTBX1.gfp\tKLF1\tENSG00000177606\tFOS\n")
    return str(folder)


@pytest.fixture(scope="session")
def spelt_store(spelt_folder: str) -> Store:
    """The two screens as a store; tests only read it."""
    return convert_locally(f"{spelt_folder}/spec.yaml", Location.of(f"{spelt_folder}/store"))


@pytest.fixture(scope="session")
def spelt_model(spelt_store: Store, spelt_folder: str) -> TADVAE:
    """A model of the two screens before its first step: it knows the names, and predicts something."""
    settings = [
        "model.pathway={d_embed: 8, n_heads: 2}",
        "model.causal={n_factors: 3, hidden: 6, targets: gene}",
        "model.decoder={d_gene: 5, hidden: 6}",
        "split.kind=none",
    ]
    torch.manual_seed(0)
    config = ExperimentConfig.load(None, [*settings, f"pathways.file={spelt_folder}/p.gmt"])
    ready = prepare_training(spelt_store, config)
    module = TADVAEModule(config.model, config.loss, ready.vocabulary)
    with torch.no_grad():
        module.decoder.gene.add_(torch.randn_like(module.decoder.gene))
    return TADVAE(module, ready.vocabulary, config, ready.controls, ready.effects)


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two tiny screens as files; tests only read them."""
    folder = tmp_path_factory.mktemp("small") / "screens"
    write_simulation(simulate(SCREENS), folder)
    return folder


@pytest.fixture(scope="session")
def small_store(small_folder: Path) -> Store:
    """The two tiny screens as a store; tests only read it."""
    return convert_locally(small_folder / "spec.yaml", Location.of(small_folder.parent / "store"))


@pytest.fixture(scope="session")
def small_run(small_folder: Path, small_store: Store) -> tuple[TADVAE, pd.DataFrame]:
    """A model of the two tiny screens and its split; tests only read them."""
    config = small_config(small_folder, "split={kind: combo, folds: 3}", "preprocess.n_top_genes=20")
    return fit(small_store, config)
