"""Where predictions start: the control cells, or the mean control profile, of one context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.build_vocabulary import mean_profile
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.controls import profile_cell
from tadvae.model.new_cells import NewCells, unique_names
from tadvae.model.predictor import Pairs


@dataclass(frozen=True)
class Start:
    """Cells of one context, on the genes of one dataset or of a file of control cells.

    Attributes
    ----------
    dataset
        Index of the dataset.
    context
        Name of the context.
    row
        Row of the vocabulary's contexts; −1: a new one.
    genes
        Sorted vocabulary indices, shape (G,).
    names
        Names of the genes in the file of the cells.
    cells
        n cells to start from.
    profile
        Mean control profile of the context, shape (G,).
    what
        What the cells are.
    obs_names
        Name of each cell.
    depth
        Library size of each cell, shape (n,); NaN where it is not known.
    method
        How the cells were normalised; see :class:`tadvae.data.entries.DatasetEntry`.
    """

    dataset: int
    context: str
    row: int
    genes: np.ndarray
    names: list[str]
    cells: Cells
    profile: np.ndarray
    what: str
    obs_names: list[str]
    depth: np.ndarray
    method: str


@dataclass(frozen=True)
class Means:
    """Mean profiles under M perturbations.

    Attributes
    ----------
    mean
        Shape (M, G).
    spread
        Standard deviation of the means of an ensemble's members, shape (M, G); None: one model.
    low, high
        Ends of the conformal intervals, shape (M, G); None: there are none.
    error
        Standard errors, shape (M, G); None: there are none.
    """

    mean: np.ndarray
    spread: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    error: np.ndarray | None = None


@dataclass(frozen=True)
class MeansAt:
    """Predicts mean profiles in one context; its cells are encoded once.

    Attributes
    ----------
    start
        Where predictions start.
    means
        The mean profiles under M perturbations, in the units of the network.
    level
        Level of the intervals; None: no intervals.
    no_interval
        Why an ensemble has none here.
    members
        The same for each member of an ensemble.
    errors
        Standard errors of these means, (M, G), of one model; see :mod:`tadvae.model.standard_errors`. None:
        there are none.
    no_standard_error
        Why one model has none here.
    """

    start: Start
    means: Callable[[Sequence[Pairs]], Means]
    level: float | None = None
    no_interval: str | None = None
    members: "Sequence[MeansAt]" = ()
    errors: Callable[[Sequence[Pairs], np.ndarray], np.ndarray] | None = None
    no_standard_error: str | None = None


def start_at(row: int, vocabulary: Vocabulary, controls: dict[int, Cells]) -> Start:
    """The kept control cells of a context of training, or else its mean profile."""
    entry = vocabulary.contexts[row]
    dataset = vocabulary.datasets[entry.dataset]
    genes, cells, what = dataset.genes, controls.get(row), "control cells of the run"
    if dataset.has_effects:
        cells, what = profile_cell(entry.profile, genes), "no response"
    elif cells is None:
        cells, what = profile_cell(entry.profile, genes), "mean control profile"
    return Start(
        dataset=entry.dataset,
        context=entry.name,
        row=row,
        genes=genes,
        names=unique_names(vocabulary.names(genes, entry.dataset)),
        cells=cells,
        profile=entry.profile,
        what=what,
        obs_names=["effect"] if dataset.has_effects else [f"control_{i}" for i in range(len(cells))],
        depth=cells.total_counts,
        method=dataset.method,
    )


def start_from(
    controls: ad.AnnData, new: NewCells, dataset: int, context: str, method: str, counted: bool
) -> Start:
    """A user's control cells.

    Parameters
    ----------
    new
        The same cells in the model's terms.
    dataset
        Index of the dataset whose way of perturbing is meant.
    method
        How the cells were normalised.
    counted
        Whether the given values are counts, so that library sizes are known.
    """
    cells = new.cells
    return Start(
        dataset=dataset,
        context=context,
        row=-1,
        genes=new.genes,
        names=new.names,
        cells=cells,
        profile=mean_profile(cells, new.genes),
        what="given control cells",
        obs_names=controls.obs_names.astype(str).tolist(),
        depth=cells.total_counts if counted else np.full(len(cells), np.nan),
        method=method,
    )


def require_cells(dataset: int, vocabulary: Vocabulary) -> None:
    """Raise a UserError for a dataset whose predictions start from no cells."""
    entry = vocabulary.datasets[dataset]
    if entry.has_effects:
        raise UserError(
            f"dataset '{entry.name}' holds signatures, whose predictions are effects and start from no "
            "cells; leave the controls out and name a training context."
        )
