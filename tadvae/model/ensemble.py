"""Several models of one store that differ by their seed: one prediction, its spread, and intervals."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Self

import anndata as ad
import numpy as np
import pandas as pd
import torch

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.amounts import Pair
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.conformal import Calibration
from tadvae.model.counts import Counts
from tadvae.model.device import to_numpy
from tadvae.model.factor_graph import edge_stability
from tadvae.model.predict_many import PredictsMany
from tadvae.model.predictor import Pairs
from tadvae.model.run_folder import RunFolder
from tadvae.model.start import Means, MeansAt
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig


class Ensemble(PredictsMany):
    """Models of one store, split and config; only their seeds differ.

    Attributes
    ----------
    members
    calibration
        What turns their spread into intervals; None: no intervals.
    """

    def __init__(self, members: Sequence[TADVAE], calibration: Calibration | None = None) -> None:
        if not members:
            raise ValueError("an ensemble needs a member.")
        self.members = list(members)
        self.calibration = calibration

    @classmethod
    def from_pretrained(cls, place: str | os.PathLike[str]) -> Self:
        """Load an ensemble's folder; one that is damaged or unfinished is a UserError."""
        folder = RunFolder(place)
        folder.ensemble()  # an unfinished or damaged one is refused
        members = [TADVAE.from_pretrained(str(member)) for member in folder.members().values()]
        calibration = folder.calibration()
        _require_one_vocabulary(members, calibration, folder)
        return cls(members, calibration)

    def to(self, device: str | torch.device) -> Self:
        """Move the networks of all members, see :meth:`TADVAE.to`."""
        for member in self.members:
            member.to(device)
        return self

    @property
    def vocabulary(self) -> Vocabulary:
        """The names, the same for all members."""
        return self.members[0].vocabulary

    @property
    def config(self) -> ExperimentConfig:
        """The config of the first member; the others differ by their seed."""
        return self.members[0].config

    def unknown(self, target: int) -> str | None:
        """Why the ensemble cannot answer for a target, None if it can; see :meth:`TADVAE.unknown`."""
        return self.members[0].unknown(target)

    def counterfactual(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Sequence[Pair]],
        context: int = -1,
    ) -> np.ndarray:
        """Mean over members of the cells under each of M perturbations, float32, shape (M, n, G).

        See :meth:`TADVAE.counterfactual`.
        """
        parts = [
            member.counterfactual(cells, genes, profile, dataset, perturbations, context)
            for member in self.members
        ]
        mean: np.ndarray = np.stack(parts).mean(axis=0, dtype=np.float64)
        return mean.astype(np.float32)

    def predict(
        self,
        target: str | Sequence[str],
        *,
        context: str,
        dataset: str | None = None,
        controls: ad.AnnData | None = None,
        values: Literal["counts", "log1p"] = "counts",
        units: Literal["log1p", "counts"] = "log1p",
        dose: float | None = None,
        time: float | None = None,
    ) -> ad.AnnData:
        """Predict cells under a perturbation, with the uncertainty of their mean; see :meth:`TADVAE.predict`.

        Returns
        -------
        ``X``: mean of the members' cells, and ``layers["seed_spread"]`` their standard deviation.
        ``var["predicted_mean"]``; ``var["seed_spread"]``, the standard deviation of the members' means;
        ``varm["interval"]``, shape (G, 2): a conformal interval of the mean profile of such cells, NaN where
        none can be guaranteed. ``uns["tadvae"]`` says at which level, or why there is none. Without
        calibration also ``var["se"]``, as :meth:`TADVAE.predict` has it.

        Raises
        ------
        UserError
            Where the members do not know: an unknown target or context.
        """
        options: dict[str, Any] = {
            "context": context,
            "dataset": dataset,
            "controls": controls,
            "values": values,
            "dose": dose,
            "time": time,
        }
        logs = self._parts(target, options)
        parts = logs if units == "log1p" else self._parts(target, options | {"units": units}, quiet=True)
        logged = np.stack([part.var["predicted_mean"].to_numpy(np.float64) for part in logs])  # (S, G)
        result = parts[0]
        cells = np.stack([part.X for part in parts])  # (S, n, G)
        means = np.stack([part.var["predicted_mean"].to_numpy(np.float64) for part in parts])  # (S, G)
        result.X = cells.mean(axis=0, dtype=np.float64).astype(np.float32)
        result.layers["seed_spread"] = seed_spread(cells).astype(np.float32)
        result.var["predicted_mean"] = means.mean(axis=0)
        result.var["seed_spread"] = seed_spread(means)
        about = result.uns["tadvae"]
        about["members"] = len(self.members)
        reason = self._no_interval(about["dataset"], context)
        interval = np.full((result.n_vars, 2), np.nan)
        if reason is None and self.calibration is not None:
            before = logs[0].var["control_mean"].to_numpy()
            centre = logged.mean(axis=0)
            d = [entry.name for entry in self.vocabulary.datasets].index(about["dataset"])
            genes = np.array([self.vocabulary.gene_index[gene] for gene in result.var["gene"]])
            half = self._half_width(d, genes, seed_spread(logged)[None])[0]
            row = self.vocabulary.context(context, dataset) if controls is None else -1
            if units == "counts":
                first = self.members[0]
                given = None if controls is None else first.start_from(controls, d, context, values)
                counts = Counts(given or first.means_at(row).start, self.vocabulary)
                interval = counts.of_changes(np.stack([centre - half, centre + half]) - before).T
            else:
                if controls is None:  # around the mean of all controls of the context, not of those kept
                    centre = centre + self.vocabulary.contexts[row].profile - before
                interval = np.column_stack([centre - half, centre + half])
            about["interval_level"] = self.calibration.level
        else:
            about["no_interval"] = reason or "this ensemble was not calibrated"
        result.varm["interval"] = interval
        if self.calibration is None and units == "log1p":
            with _quiet():
                table = self.predict_many([target], **options)
            if "se" in table.layers:
                result.var["se"] = table.layers["se"][1]
            else:
                about["no_se"] = table.uns["tadvae"]["no_se"][0]
        return result

    def _parts(
        self, target: str | Sequence[str], options: dict[str, Any], quiet: bool = False
    ) -> list[ad.AnnData]:
        """The prediction of each member; what is said about the given cells is the same for all of them."""
        options = options | {"errors": False}  # those of one member are of another mean
        with _quiet() if quiet else nullcontext():
            first = self.members[0].predict(target, **options)
        with _quiet():
            return [first, *(member.predict(target, **options) for member in self.members[1:])]

    def _half_width(self, dataset: int, genes: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Half-widths of intervals, (M, G); NaN for genes (vocabulary indices) that the dataset lacks."""
        assert self.calibration is not None
        entry = self.vocabulary.datasets[dataset]
        at = pd.Index(entry.genes).get_indexer(genes)  # own controls may lack genes, and have others
        every = np.zeros((len(spread), len(entry.genes)))
        every[:, at[at >= 0]] = spread[:, at >= 0]
        width = self.calibration.half_width(entry.name, every)
        result: np.ndarray = np.where(at >= 0, width[:, at], np.nan)
        return result

    def means_at(self, row: int) -> MeansAt:
        """What predicts mean profiles in a context of training, see :meth:`TADVAE.means_at`."""
        return self._means_of([member.means_at(row) for member in self.members])

    def means_of_cells(
        self, controls: ad.AnnData, dataset: int, context: str, values: Literal["counts", "log1p"]
    ) -> MeansAt:
        """What predicts mean profiles from a user's control cells, see :meth:`TADVAE.means_of_cells`."""
        each = [self.members[0].means_of_cells(controls, dataset, context, values)]
        with _quiet():
            each += [member.means_of_cells(controls, dataset, context, values) for member in self.members[1:]]
        return self._means_of(each)

    def _means_of(self, members: list[MeansAt]) -> MeansAt:
        start = members[0].start
        reason = self._no_interval(self.vocabulary.datasets[start.dataset].name, start.context)
        shift = np.zeros(len(start.genes))
        if start.row >= 0:  # around the mean of all controls of the context, not of those kept
            shift = start.profile - start.cells.dense(start.genes).mean(axis=0)

        def means(perturbations: Sequence[Pairs]) -> Means:
            each = np.stack([member.means(perturbations).mean for member in members])  # (S, M, G)
            mean, spread = each.mean(axis=0, dtype=np.float64), seed_spread(each)
            if reason is not None:
                return Means(mean, spread)
            half = self._half_width(start.dataset, start.genes, spread)
            return Means(mean, spread, mean + shift - half, mean + shift + half)

        level = None if self.calibration is None or reason is not None else self.calibration.level
        first = members[0]
        if self.calibration is None:  # the regression is the same for all members
            return MeansAt(start, means, level, reason, members, first.errors, first.no_standard_error)
        return MeansAt(start, means, level, reason, members)

    def _no_interval(self, dataset: str, context: str) -> str | None:
        calibration = self.calibration
        if calibration is None:
            return "this ensemble was not calibrated"
        if not np.isfinite(calibration.factor):
            return f"{calibration.n} calibration perturbations are too few for {calibration.level:.0%}"
        if dataset not in calibration.scale:
            return f"dataset '{dataset}' has no calibration perturbations"
        if context not in {entry.name for entry in self.vocabulary.contexts}:
            return f"context '{context}' was not in training"
        return None

    def graph(self, threshold: float = 0.05) -> pd.DataFrame:
        """Edges between the first's factors, one row each, with the share of members that have them.

        See :func:`tadvae.model.factor_graph.edge_stability`; besides, ``source_name`` and
        ``target_name``, the pathway that each factor reads most.
        """
        loadings = [to_numpy(m.module.factors.loadings) for m in self.members]
        edges = edge_stability([m.graph() for m in self.members], loadings, threshold)
        name = self.members[0].factors(top=1).set_index("factor")["name"]
        return edges.assign(source_name=edges["source"].map(name), target_name=edges["target"].map(name))


Model = TADVAE | Ensemble
"""Whatever can be asked for predictions."""


def description(model: "Model") -> str:
    """What a model is, in a few words, with its seeds: for pages and tables."""
    members = model.members if isinstance(model, Ensemble) else [model]
    seeds = ", ".join(str(member.config.seed) for member in members)
    return f"{model.config.summary}; seed{'s' if len(members) > 1 else ''} {seeds}"


def load_model(place: str | os.PathLike[str], device: str | torch.device = "cpu") -> Model:
    """Load a run or an ensemble, whose networks compute on a device."""
    ensemble = RunFolder(place).is_ensemble
    model: Model = Ensemble.from_pretrained(place) if ensemble else TADVAE.from_pretrained(place)
    return model.to(device)


def _require_one_vocabulary(
    members: Sequence[TADVAE], calibration: Calibration | None, folder: RunFolder
) -> None:
    """Raise a UserError for members or a calibration of other genes than those of the first member."""
    genes = [{d.name: d.genes for d in member.vocabulary.datasets} for member in members]
    same = all(
        each.keys() == genes[0].keys() and all(np.array_equal(each[name], genes[0][name]) for name in each)
        for each in genes
    )
    scale = {} if calibration is None else calibration.scale
    if not same or any(
        values.shape != genes[0].get(name, np.empty(0)).shape for name, values in scale.items()
    ):
        raise UserError(
            f"{folder}: its members or its calibration are of different stores; copy the ensemble again, or "
            "train it again."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is said inside the block."""
    log = logging.getLogger("tadvae")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def seed_spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation over members (first axis); zero for a single one."""
    if len(values) < 2:
        return np.zeros(values.shape[1:])
    result: np.ndarray = values.std(axis=0, ddof=1, dtype=np.float64)
    return result
