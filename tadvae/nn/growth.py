"""The weights of a network whose vocabulary has grown: the former rows keep their weights."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tadvae.base.errors import UserError
from tadvae.nn.edges import EdgeTable
from tadvae.nn.network import TADVAEModule

Kind = Literal["gene", "edge", "target", "modality", "dataset"]
"""What the rows of a weight stand for, where the vocabulary decides how many there are."""


def rows_of(module: TADVAEModule) -> dict[str, tuple[int, Kind]]:
    """Axis of each weight whose size the vocabulary decides, and what it counts, by name."""
    found: dict[str, tuple[int, Kind]] = {
        "decoder.gene": (0, "gene"),
        "decoder.bias": (0, "gene"),
        "log_dispersion": (0, "gene"),
        "pathway.gene": (0, "gene"),
        "pathway.gene_given": (0, "gene"),
        "pathway.mask": (0, "edge"),
        "pathway.weight": (0, "gene" if module.config.pathway.leak else "edge"),
        "causal.size": (0, "target"),
        "causal.own": (0, "target"),
        "causal.curves.own": (1, "target"),
        "causal.modality": (0, "modality"),
        "causal.dataset": (0, "dataset"),
    }
    if module.causal.config.targets == "identity":
        found["causal.assign.0.weight"] = found["causal.free.weight"] = (1, "target")
    return {name: found[name] for name in module.state_dict() if name in found}


@torch.no_grad()
def grow(
    state: Mapping[str, Tensor], module: TADVAEModule, former: Mapping[Kind, Tensor], learned: Tensor
) -> None:
    """Put the weights of a network into one of a larger vocabulary.

    The other rows keep the start of a training, with two exceptions. A gene of which the former network
    learned nothing starts with no change and no bias in the decoder, so that a prediction on it is "no
    change" until training says otherwise. A new dataset starts with the mean strength of the former ones.

    Parameters
    ----------
    state
        Weights of the former network.
    module
        The new network, with the weights of its start.
    former
        Place of the former entries of each kind among the new ones, (n,) int64 each.
    learned : (n_genes,) bool
        Whether the former network learned of a gene.
    """
    rows = rows_of(module)
    for name, value in module.state_dict().items():
        if name not in state:  # curves of doses, which the former screens had not
            continue
        before = state[name]
        if name not in rows:
            value.copy_(before)
            continue
        axis, kind = rows[name]
        places = former[kind]
        if name == "causal.dataset" and len(places):
            value.fill_(float(before[: len(places)].mean()))
        value.index_copy_(axis, places, before.narrow(axis, 0, len(places)).to(value))
    for weight in (module.decoder.gene, module.decoder.bias):
        weight[~learned] = 0.0


def places_of_edges(former: EdgeTable, table: EdgeTable, gene: np.ndarray) -> Tensor:
    """Place of each edge of a former edge table in a new one, (E,).

    Parameters
    ----------
    gene
        New index of each former gene.

    Raises
    ------
    UserError
        If the new table lacks an edge, as candidates are chosen anew.
    """
    P = max(table.n_pathways, 1)
    asked = gene[former.gene.numpy()] * P + former.pathway.numpy()
    known = table.gene.numpy() * P + table.pathway.numpy()
    place = np.searchsorted(known, asked)
    if not np.isin(asked, known).all():
        raise UserError(
            "model.pathway.candidates: the new genes change which genes are candidates, so the weights of "
            "the former candidates cannot be kept; train from scratch, or fine-tune a model with candidates "
            "0 or 'all'."
        )
    return torch.from_numpy(place)
