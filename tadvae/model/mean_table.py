"""Tables of mean profiles under many perturbations, computed part by part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import anndata as ad
import numpy as np

from tadvae.base.errors import UserError
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.combinations import Combinations, Question, Questions, rows_of
from tadvae.model.counts import Counts, counts_of
from tadvae.model.new_cells import unique_names
from tadvae.model.start import Means, MeansAt, Start
from tadvae.model.targets import dataset_like
from tadvae.store.covariates import AMOUNTS

PER_PART = 1_024
"""Perturbations that are computed, and written as a row group, at a time; fewer, if there are many genes."""
VALUES_PER_PART = 2**24
"""Values of one kind in a part: 64 MiB."""

Targets = Combinations | Sequence[str | Sequence[str]] | str
Units = Literal["log1p", "counts"]


class Predicts(Protocol):
    """A model or an ensemble."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Names of genes, datasets, contexts and targets."""

    def unknown(self, target: int) -> str | None:
        """Why nothing can be predicted for a target."""

    def means_at(self, row: int) -> MeansAt:
        """What predicts in a context of training."""

    def means_of_cells(
        self, controls: ad.AnnData, dataset: int, context: str, values: Literal["counts", "log1p"]
    ) -> MeansAt:
        """What predicts from given control cells."""


@dataclass(frozen=True)
class Part:
    """Some rows of a table: perturbations of one context.

    Attributes
    ----------
    place
        Number of the context in the table.
    questions
        The m perturbations.
    layers
        ``mean``; of one model ``se``, of an ensemble ``seed_spread``, ``low`` and ``high``: float32, shape
        (m, G_d) on the genes of the context's start; NaN where there is no answer.
    """

    place: int
    questions: list[Question]
    layers: dict[str, np.ndarray]


class MeanTable:
    """Mean profiles under many perturbations in one or several contexts, computed part by part.

    The first row of each context is its control. Values are never outside of what the units allow: neither
    logarithms nor counts are below zero. Signed effects, of datasets of signatures, may be.

    Parameters
    ----------
    model
        A model or an ensemble.
    asked
        The perturbations.
    context, dataset, controls, values, units
        As for :meth:`PredictsMany.predict_many`.
    errors
        Whether standard errors are computed, which takes as long as the means.

    Raises
    ------
    UserError
        If a context is unknown, if the contexts have no common units, or if ``controls`` do not fit.
    """

    def __init__(
        self,
        model: Predicts,
        asked: Combinations,
        *,
        context: str | Sequence[str] | None = None,
        dataset: str | Sequence[str] | None = None,
        controls: ad.AnnData | None = None,
        values: Literal["counts", "log1p"] = "counts",
        units: Units = "log1p",
        errors: bool = True,
    ) -> None:
        vocabulary = self.vocabulary = model.vocabulary
        self._asked = asked
        if controls is None:
            rows = rows_of(vocabulary, context, dataset)
            self.places = [model.means_at(row) for row in rows]
        else:
            d = dataset_like(_all(asked), _one(dataset, "dataset"), vocabulary)
            name = _one(context, "context") or "given"
            self.places = [model.means_of_cells(controls, d, name, values)]
        starts = [place.start for place in self.places]
        effects = {vocabulary.datasets[start.dataset].has_effects for start in starts}
        if len(effects) > 1:
            raise UserError(
                "contexts of signatures and of cells have other units and cannot be in one table; name "
                "datasets of one kind with --dataset."
            )
        self.units = "effects" if effects == {True} else units
        self._counts = [counts_of(start, vocabulary, units) for start in starts]
        by_dataset: dict[int, Questions] = {}
        for start in starts:
            by_dataset.setdefault(start.dataset, asked.at(start.dataset, vocabulary, model.unknown))
        self._questions = [by_dataset[start.dataset] for start in starts]
        self.genes: np.ndarray = np.unique(np.concatenate([start.genes for start in starts]))
        if len(starts) == 1 or all(start.dataset == starts[0].dataset for start in starts):
            self.names = starts[0].names
        else:
            self.names = unique_names(vocabulary.names(self.genes))
        self.layers = ["mean"]
        first = self.places[0].means([[]])
        self.layers += ["se"] * (errors and any(place.errors is not None for place in self.places))
        self.layers += ["seed_spread"] * (first.spread is not None)
        if any(place.level is not None for place in self.places):
            self.layers += ["low", "high"]

    def __len__(self) -> int:
        return sum(1 + len(questions) for questions in self._questions)

    def parts(self) -> Iterator[Part]:
        """The rows, some at a time, in bounded memory."""
        size = max(min(PER_PART, VALUES_PER_PART // max(len(self.genes), 1)), 1)
        for number, questions in enumerate(self._questions):
            yield self._part(number, [Question("control", [])])
            for part in questions.parts(size):
                yield self._part(number, part)

    def _part(self, number: int, questions: list[Question]) -> Part:
        place, counts = self.places[number], self._counts[number]
        n_genes = len(place.start.genes)
        layers = {name: np.full((len(questions), n_genes), np.nan, np.float32) for name in self.layers}
        known = [i for i, question in enumerate(questions) if question.pairs is not None]
        if known:
            asked = [question.pairs or [] for question in questions if question.pairs is not None]
            found = place.means(asked)
            if "se" in layers and place.errors is not None:
                found = replace(found, error=place.errors(asked, found.mean))
            if counts is not None:
                found = _as_counts(found, place.start, counts)
            values = {
                "mean": found.mean,
                "se": found.error,
                "seed_spread": found.spread,
                "low": found.low,
                "high": found.high,
            }
            for name, layer in layers.items():
                value = values[name]
                if value is not None:
                    signed = self.units == "effects" or name in ("se", "seed_spread")
                    layer[known] = value if signed else np.maximum(value, 0.0)
        return Part(number, questions, layers)

    def about(self) -> dict[str, Any]:
        """What the table says of itself."""
        known = self.vocabulary.genes.iloc[self.genes]
        result: dict[str, Any] = {
            "values": self.units,
            "genes": self.names,
            "gene": known["gene"].tolist(),
            "contexts": [self.place_name(i) for i in range(len(self.places))],
            "started_from": [place.start.what for place in self.places],
        }
        said = zip(AMOUNTS, self._asked.amounts, strict=True)
        result |= {name: amount for name, amount in said if amount is not None}
        level = next((place.level for place in self.places if place.level is not None), None)
        if level is not None:
            result["interval_level"] = level
        reasons = [place.no_interval or "" for place in self.places]
        if any(reasons):
            result["no_interval"] = reasons
        reasons = [place.no_standard_error or "" for place in self.places]
        if any(reasons):
            result["no_se"] = reasons
        return result

    def place_name(self, number: int) -> str:
        """``dataset/context`` of a context of the table."""
        start = self.places[number].start
        return f"{self.vocabulary.datasets[start.dataset].name}/{start.context}"

    def labels(self, part: Part) -> dict[str, list[str | None]]:
        """Columns ``perturbation``, ``context``, ``dataset`` and ``reason`` (None: answered) of a part."""
        start, n = self.places[part.place].start, len(part.questions)
        return {
            "perturbation": [question.label for question in part.questions],
            "context": [start.context] * n,
            "dataset": [self.vocabulary.datasets[start.dataset].name] * n,
            "reason": [question.reason or None for question in part.questions],
        }

    def on_genes(self, part: Part, layer: str) -> np.ndarray:
        """A layer on all genes of the table, NaN where the dataset does not measure a gene, (m, G)."""
        values, genes = part.layers[layer], self.places[part.place].start.genes
        if len(genes) == len(self.genes):
            return values
        result = np.full((len(values), len(self.genes)), np.nan, np.float32)
        result[:, np.searchsorted(self.genes, genes)] = values
        return result


def _as_counts(means: Means, start: Start, counts: Counts) -> Means:
    """Means of log1p values as mean counts; of spread and error, half the difference at both ends of it."""
    before = start.cells.dense(start.genes).mean(axis=0, dtype=np.float64)  # (G,)
    # intervals are around the mean of all controls of a context of training, not of those kept
    centre = before if start.row < 0 else start.profile.astype(np.float64)

    def around(width: np.ndarray | None) -> np.ndarray | None:
        if width is None:
            return None
        known = np.nan_to_num(width)
        above, below = (counts.of_changes(means.mean + sign * known - before) for sign in (1, -1))
        return np.where(np.isnan(width), np.nan, (above - below) / 2)

    low, high = (None if end is None else counts.of_changes(end - centre) for end in (means.low, means.high))
    mean = counts.of_changes(means.mean - before)
    return Means(mean, around(means.spread), low, high, around(means.error))


def _one(names: str | Sequence[str] | None, what: str) -> str | None:
    """The one name; several are a UserError, because control cells are of one context."""
    if names is None or isinstance(names, str):
        return names
    if len(names) > 1:
        raise UserError(f"control cells are of one context: name one {what}, not {len(names)}.")
    return names[0] if names else None


def _all(asked: Combinations) -> list[str]:
    """All that is listed, which tells the dataset whose way of perturbing is meant."""
    return [name for each in asked.listed for name in ([each] if isinstance(each, str) else each)] or [
        "control"
    ]
