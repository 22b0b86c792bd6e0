"""What the page of a run shows, as plain values."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.report.verdict import AgainstBaseline


@dataclass(frozen=True)
class Comparison:
    """Predicted and observed change of one held-out group, for its genes that change most.

    Attributes
    ----------
    dataset, context, perturbation
        Their names.
    genes
        Names, n of them: those of the largest change, predicted or observed.
    observed, predicted
        Mean profile less that of control cells, log-normalised units, shape (n,).
    half_width
        Of the predicted change's interval, shape (n,); None where the model gives none.
    pearson_delta
        Of all genes of the dataset.
    """

    dataset: str
    context: str
    perturbation: str
    genes: list[str]
    observed: np.ndarray
    predicted: np.ndarray
    half_width: np.ndarray | None
    pearson_delta: float


@dataclass(frozen=True)
class Graph:
    """Factors and the effects of one on another.

    Attributes
    ----------
    names
        Of K factors, causes first.
    edges
        One row an edge: source, target (rows of ``names``), effect; for an ensemble also ``share`` of seeds
        that have it, and ``same_sign``, the share of those that agree on its sign.
    seeds
        Number of models that the edges are from.
    """

    names: list[str]
    edges: pd.DataFrame
    seeds: int = 1


@dataclass(frozen=True)
class MaskChange:
    """What training did to a soft mask.

    Attributes
    ----------
    n_members, n_candidates
        Edges that it could remove and add.
    edges
        Those that it did: pathway, gene, change, gate, gate_at_start; the furthest moved first.
    """

    n_members: int
    n_candidates: int
    edges: pd.DataFrame


@dataclass(frozen=True)
class Report:
    """All that the page says.

    Attributes
    ----------
    name
        The run's.
    about
        Facts in words, by what they are about.
    commands
        What makes the run and this page again, in order.
    config
        Its settings as YAML.
    datasets
        One row each: cells, genes, contexts, perturbations.
    shared_genes, shared_targets
        In common between datasets, shape (D, D).
    curves
        By run: one row an epoch, the mean of every term of the loss, and scores of validation.
    scores
        category, method, metric, n, mean, low, high; None: not evaluated.
    against
        The model and the best baseline, by metric and category; empty where not evaluated.
    groups
        One row per held-out group, with the model's scores where evaluated.
    comparisons, asked
        Some held-out groups, and of how many.
    activity
        Mean-profile activity: pathways (rows) of control and change under each compared perturbation;
        None without comparisons.
    factors
        The graph that training learned.
    causal
        The graph that effects on pathways show, or why there is none.
    mask
        None where the mask cannot learn.
    calibration
        What the intervals guarantee; None without intervals.
    notes
        What is missing and what makes it.
    """

    name: str
    about: dict[str, str]
    commands: list[str]
    config: str
    datasets: pd.DataFrame
    shared_genes: np.ndarray
    shared_targets: np.ndarray
    curves: dict[str, pd.DataFrame]
    scores: pd.DataFrame | None
    against: list[AgainstBaseline]
    groups: pd.DataFrame
    comparisons: list[Comparison]
    asked: int
    activity: pd.DataFrame | None
    factors: Graph
    causal: Graph | str
    mask: MaskChange | None
    calibration: str | None
    notes: list[str]
