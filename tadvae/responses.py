"""How the pathways of each perturbed gene respond, from the cells of a store."""

import numpy as np
import pandas as pd
import torch

from tadvae.batch import Cells, PackedCells
from tadvae.errors import UserError
from tadvae.evaluation.interpretation import target_response
from tadvae.model import TADVAE
from tadvae.prepare import CellReader, Mapper, load_groups, loop, views_of
from tadvae.reading import CELLS_AT_ONCE
from tadvae.store.reader import Store

CELLS = 512
"""Most cells of a perturbation, and of its controls, that are looked at."""


def pathway_responses(store: Store, model: TADVAE, mapper: Mapper = loop, seed: int = 0) -> pd.DataFrame:
    """Differential activation ratio and Hits@N of every single target that is a measured gene.

    Once with all genes (``target_gene="kept"``) and once with the target's own gene taken out of the cells
    and the panel (``"removed"``), each beside permuted masks.

    Returns
    -------
    One row a (dataset, context, perturbation, target_gene): n_pathways, dar, dar_null, p_value, hits@25,
    hits@100. See :mod:`tadvae.evaluation.interpretation`.

    Raises
    ------
    UserError
        Where no target is a gene of an available pathway.
    """
    vocabulary = model.vocabulary
    # all cells, held out or not: the encoder is asked what it sees, not what would happen
    every = model.config.split.model_copy(update={"kind": "none", "test": []})
    reader = CellReader(store, views_of(store, vocabulary), every)
    masks = vocabulary.membership.dense()  # (P, n_genes)
    single = store.perturbations[store.perturbations["targets"].str.len() == 1]
    gene_of = {
        int(row.perturbation_index): int(row.target_genes[0])
        for row in single.itertuples()
        if row.target_genes[0] >= 0 and masks[:, row.target_genes[0]].any()
    }
    wanted = store.bags["perturbation"].isin([store.control, *gene_of])
    found = load_groups(reader, store.bags[wanted], CELLS, mapper)
    rows = []
    for (dataset, context, p), cells in found.items():
        entry = vocabulary.datasets[dataset]
        controls = found.get((dataset, context, store.control))
        if p == store.control or controls is None or not np.isin(gene_of[p], entry.genes):
            continue
        for how in ("kept", "removed"):
            without = None if how == "kept" else gene_of[p]
            change = _activity(model, cells, entry.genes, without) - _activity(
                model, controls, entry.genes, without
            )
            response = target_response(change, masks, gene_of[p], seed)
            rows.append(
                {
                    "dataset": entry.name,
                    "context": store.manifest.contexts[context],
                    "perturbation": store.perturbations["name"].iloc[p],
                    "target_gene": how,
                    "n_pathways": response.n_pathways,
                    "dar": response.dar,
                    "dar_null": response.dar_null,
                    "p_value": response.p_value,
                    **{f"hits@{n}": value for n, value in response.hits.items()},
                }
            )
    if not rows:
        raise UserError("no single target of this store is a measured gene of a pathway of the model.")
    return pd.DataFrame(rows)


def _activity(model: TADVAE, cells: Cells, genes: np.ndarray, without: int | None) -> np.ndarray:
    """Mean activity over cells, shape (P,); NaN where the panel, less a gene, cannot see a pathway."""
    vocabulary = model.vocabulary
    if without is not None:
        genes, cells = genes[genes != without], without_gene(cells, without)
    available = vocabulary.membership.availability(genes, vocabulary.min_measured)
    total = np.zeros(vocabulary.membership.n_pathways)
    with torch.no_grad():
        for start in range(0, len(cells), CELLS_AT_ONCE):
            part = PackedCells.of(cells[start : start + CELLS_AT_ONCE], panels=[genes])
            expanded = torch.from_numpy(available).expand(part.n_cells, -1)
            total += model.module.encode(part, expanded)[0].double().sum(dim=0).numpy()
    mean = total / max(len(cells), 1)
    mean[~available] = np.nan
    return mean


def without_gene(cells: Cells, gene: int) -> Cells:
    """The cells as if a gene had not been measured."""
    keep = cells.gene_ids != gene
    kept = np.concatenate([[0], np.cumsum(keep)])
    return Cells(cells.gene_ids[keep], cells.values[keep], kept[cells.offsets], cells.total_counts)
