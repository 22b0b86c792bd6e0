"""What a predicted perturbation changes: genes with their uncertainty, and pathways with an enrichment."""

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.evaluation.enrichment import rank_biserial
from tadvae.model.ensemble import Model
from tadvae.model.targets import find_target
from tadvae.report.learned import profile_activity

MEMBERS_NAMED = 3
"""Genes that are named for each pathway."""


@dataclass(frozen=True)
class Prediction:
    """One predicted perturbation in one context.

    Attributes
    ----------
    perturbation, context, dataset, started_from
        What was predicted, and the control cells that it starts from.
    members
        Models that predicted.
    level
        Of the intervals of an ensemble; None where it gives none.
    genes
        One row per gene, the largest change first: ``gene``, ``control`` and ``predicted`` (mean, log1p),
        ``change``; of an ensemble ``seed_spread``, the standard deviation of its members' means, and with
        intervals ``half_width``; ``standard_error``, where it is known; ``targeted``, whether
        the perturbation acts on the gene itself.
    pathways
        One row per measured pathway, the largest enrichment first: ``pathway``, ``genes`` (measured),
        ``mean_change``, ``enrichment`` (see :func:`tadvae.evaluation.enrichment.rank_biserial`), ``activity``
        (change of the activity that the model reads from the mean profile; not for signatures),
        ``most_changed``, some of its genes.
    """

    perturbation: str
    context: str
    dataset: str
    started_from: str
    members: int
    level: float | None
    genes: pd.DataFrame
    pathways: pd.DataFrame


def prediction_of(model: Model, adata: ad.AnnData) -> Prediction:
    """Collect what the page of a prediction shows.

    Parameters
    ----------
    adata
        From ``predict`` of this model, log1p values or signed effects.

    Raises
    ------
    UserError
        For predicted counts, whose changes are those of library sizes too.
    """
    about = adata.uns["tadvae"]
    if about["values"] == "counts":
        raise UserError("the page of a prediction shows log1p values; leave out --as counts.")
    vocabulary, var = model.vocabulary, adata.var
    genes = np.array([vocabulary.gene_index[gene] for gene in var["gene"]])
    order = np.argsort(genes, kind="stable")
    genes, names = genes[order], var.index.to_numpy(dtype=object)[order]
    before, after = (var[name].to_numpy(np.float64)[order] for name in ("control_mean", "predicted_mean"))
    change = after - before
    frame = pd.DataFrame({"gene": names, "control": before, "predicted": after, "change": change})
    members = int(about.get("members", 1))
    if members > 1:
        frame["seed_spread"] = var["seed_spread"].to_numpy(np.float64)[order]
    if "se" in var and np.isfinite(var["se"]).any():
        frame["standard_error"] = var["se"].to_numpy(np.float64)[order]
    level = about.get("interval_level")
    if level is not None:
        low, high = adata.varm["interval"][order].T
        frame["half_width"] = (high - low) / 2.0
    dataset = [entry.name for entry in vocabulary.datasets].index(about["dataset"])
    parts = vocabulary.lookup.find(about["perturbation"], dataset).parts
    targets = [find_target(part, dataset, vocabulary, model.unknown)[0] for part in parts]
    n = len(vocabulary.targets)  # genes that are no targets come after the targets
    frame["targeted"] = np.isin(genes, [vocabulary.targets[t].gene if t < n else t - n for t in targets])
    activity = None
    if about["values"] != "effects":  # the network reads expression
        profiles = profile_activity(model, np.vstack([before, after]), genes)
        activity = profiles[1] - profiles[0]
    return Prediction(
        perturbation=str(about["perturbation"]),
        context=str(about["context"]),
        dataset=str(about["dataset"]),
        started_from=str(about["started_from"]),
        members=members,
        level=None if level is None else float(level),
        genes=_largest(frame, "change"),
        pathways=_pathways(model, change, genes, names, activity),
    )


def _pathways(
    model: Model, change: np.ndarray, genes: np.ndarray, names: np.ndarray, activity: np.ndarray | None
) -> pd.DataFrame:
    membership = model.vocabulary.membership
    enrichment = rank_biserial(change, genes, membership)
    available = membership.availability(genes, model.vocabulary.min_measured) & ~np.isnan(enrichment)
    at = np.searchsorted(genes, membership.gene)
    measured = (at < len(genes)) & (genes[np.minimum(at, len(genes) - 1)] == membership.gene)
    rows = []
    for p in np.flatnonzero(available):
        own = at[measured & (membership.pathway == p)]
        most = own[np.argsort(-np.abs(change[own]), kind="stable")[:MEMBERS_NAMED]]
        row = {
            "pathway": membership.names[p] or membership.pathway_ids[p],
            "genes": len(own),
            "mean_change": float(change[own].mean()),
            "enrichment": float(enrichment[p]),
        }
        if activity is not None:
            row["activity"] = float(activity[p])
        rows.append(row | {"most_changed": ", ".join(f"{names[g]} {change[g]:+.2f}" for g in most)})
    columns = ["pathway", "genes", "mean_change", "enrichment", "activity", "most_changed"]
    found = pd.DataFrame(rows, columns=[c for c in columns if c != "activity" or activity is not None])
    return _largest(found, "enrichment")


def _largest(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with the largest absolute value first."""
    return frame.sort_values(column, key=lambda v: -v.abs(), kind="stable", ignore_index=True)
