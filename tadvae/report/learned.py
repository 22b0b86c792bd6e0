"""What a model learned: its graphs, its mask, the activity of what it predicts."""

import numpy as np
import pandas as pd
import torch

from tadvae.base.errors import UserError
from tadvae.model.controls import profile_cell
from tadvae.model.ensemble import Ensemble, Model
from tadvae.model.tadvae import TADVAE
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.gated import GatedAttention
from tadvae.report.data import Graph, MaskChange

SMALLEST_EFFECT = 0.05
"""Between factors, for an edge of the learned graph."""
NAMED_BY = 2
"""Pathways in a factor's name."""
STABLE = 0.8
"""Share of the seeds that have an effect, with one sign, from which on it is stable."""
FIRST_EDGES = 15
"""Effects of a graph that are shown first, of the stable ones, or of one model, the largest."""


def first_of(model: Model) -> TADVAE:
    """The model itself, or the first member."""
    return model.members[0] if isinstance(model, Ensemble) else model


def learned_graph(model: Model) -> Graph:
    """The graph of the latent factors; of an ensemble over its members, in the factors of the first."""
    first = first_of(model)
    graph = first.graph()
    factors = first.factors(top=NAMED_BY).groupby("factor")["name"].agg(" / ".join)
    names = [f"{k}: {factors.get(k, 'no pathway')}" for k in range(len(graph))]
    if isinstance(model, Ensemble):
        edges = model.graph(SMALLEST_EFFECT)
        edges = edges[["source", "target", "effect", "share", "same_sign"]]
        return Graph(names, edges, len(model.members))
    return Graph(names, _edges(graph))


def causal_graph(model: Model) -> Graph | str:
    """The graph of :meth:`TADVAE.causal_graph` with its factors named, or why there is none."""
    first = first_of(model)
    try:
        found = first.causal_graph()
    except UserError as error:
        return str(error)
    seen = [t.name for t in first.vocabulary.targets if t.seen]
    names = []
    for k in range(len(found.graph)):
        targets = [seen[i] for i in np.flatnonzero(found.target_factor == k)]
        own = np.flatnonzero(found.pathway_factor == k)
        size = np.abs(found.responses[found.target_factor == k][:, own]).mean(axis=0) if len(own) else own
        strongest = found.pathways[own[np.argsort(-size, kind="stable")[:NAMED_BY]]]
        words = " / ".join(first.vocabulary.membership.names[p] for p in strongest) or "no pathway"
        more = f" +{len(targets) - 3}" if len(targets) > 3 else ""
        names.append(f"{k}: {words} ({', '.join(targets[:3])}{more})")
    return Graph(names, _edges(found.graph))


def first_edges(graph: Graph) -> tuple[Graph, str]:
    """The part of a graph that is shown first, and the rule in words.

    Of an ensemble these are the stable effects: at least :data:`STABLE` of its seeds have them with the same
    sign. One model cannot say which are stable. Of either, the :data:`FIRST_EDGES` largest are shown.
    """
    edges, n = graph.edges, len(graph.edges)
    if graph.seeds > 1:
        edges = edges[edges["share"] * edges["same_sign"] >= STABLE]
        found = (
            f"{len(edges)} of {n} effects are stable: at least {STABLE:.0%} of the {graph.seeds} seeds have "
        )
        found += "them with the same sign."
    else:
        found = f"{n} effects of one model, so that it is not known which are stable."
    edges = edges.sort_values("effect", key=lambda values: -values.abs(), kind="stable", ignore_index=True)
    if len(edges) > FIRST_EDGES:
        found += f" The {FIRST_EDGES} largest are drawn."
    return Graph(graph.names, edges.head(FIRST_EDGES), graph.seeds), found


def _edges(graph: np.ndarray) -> pd.DataFrame:
    source, target = np.nonzero(np.abs(graph) >= SMALLEST_EFFECT)
    effect = graph[source, target].astype(np.float64)
    edges = pd.DataFrame({"source": source, "target": target, "effect": effect})
    return edges.sort_values("effect", key=lambda values: -values.abs(), kind="stable", ignore_index=True)


def mask_change(model: Model) -> MaskChange | None:
    """What a soft mask added and removed; None for the other strategies."""
    first = first_of(model)
    layer = first.module.pathway
    if not isinstance(layer, GatedAttention):
        return None
    edges = layer.learned_edges()
    names = np.array(first.vocabulary.membership.names, dtype=object)
    return MaskChange(
        n_members=int(layer.edges.is_member.sum()),
        n_candidates=int((~layer.edges.is_member).sum()),
        edges=edges.assign(
            pathway=names[edges["pathway"].to_numpy()],
            gene=first.vocabulary.names(edges["gene"].to_numpy()),
        ),
    )


def profile_activity(model: Model, profiles: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Activities of mean profiles, each read as one cell.

    A predicted cell has a value for every gene, a measured one only for what was counted, so cells of the two
    kinds do not compare; mean profiles do.

    Parameters
    ----------
    profiles
        Log-normalised, shape (M, G); a value below zero counts as zero.
    genes
        Sorted vocabulary indices, shape (G,).

    Returns
    -------
    Shape (M, P), of the first member of an ensemble; NaN where the genes do not show a pathway.
    """
    first = first_of(model)
    rows = []
    with torch.no_grad():
        for profile in np.maximum(profiles, 0.0):
            packed = PackedCells.of(profile_cell(profile, genes), panels=[genes])
            rows.append(first.module.pathway(packed).numpy()[0])
    activity = np.stack(rows).astype(np.float64)
    available = first.vocabulary.membership.availability(genes, first.vocabulary.min_measured)
    activity[:, ~available] = np.nan
    return activity
