"""Tables of mean profiles under many perturbations, in memory or as Parquet that is written part by part."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.combinations import Combinations, Question, Questions, rows_of
from tadvae.model.counts import Counts, counts_of
from tadvae.model.new_cells import unique_names
from tadvae.model.start import Means, MeansAt, Start
from tadvae.model.targets import dataset_like
from tadvae.store.covariates import AMOUNTS
from tadvae.store.h5ad import write_adata

PER_PART = 1_024
"""Perturbations that are computed, and written as a row group, at a time; fewer, if there are many genes."""
VALUES_PER_PART = 2**24
"""Values of one kind in a part: 64 MiB."""
MOST_VALUES = 2**28
"""Values that a table in memory or an ``.h5ad`` may have: 1 GiB."""

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


@dataclass
class Written:
    """What became of a table.

    Attributes
    ----------
    n
        Perturbations, over all contexts.
    n_contexts, n_genes
        Size of the table.
    reasons
        Number of perturbations without an answer, by reason.
    """

    n: int
    n_contexts: int
    n_genes: int
    reasons: Counter[str] = field(default_factory=Counter)


class PredictsMany:
    """What gives :meth:`predict_many` to a model and to an ensemble."""

    def predict_many(
        self: Predicts,
        targets: Targets,
        *,
        context: str | Sequence[str] | None = None,
        dataset: str | Sequence[str] | None = None,
        controls: ad.AnnData | None = None,
        values: Literal["counts", "log1p"] = "counts",
        units: Units = "log1p",
        dose: float | None = None,
        time: float | None = None,
    ) -> ad.AnnData:
        """Mean profiles under many perturbations in one or several contexts.

        Parameters
        ----------
        targets
            A list of perturbations, each as for :meth:`tadvae.model.tadvae.TADVAE.predict`; or

            - ``"singles"``: every single target of the context's dataset, and those that other datasets
              perturb in its most frequent way;
            - ``"pairs"``: every pair of these;
            - ``"singles+pairs"``: both.
        context, dataset
            Names of training contexts and datasets, one or several; None: all.
        controls
            Control cells to start from, of one context; the dataset then says which screen's way of
            perturbing is meant.
        values
            Whether the control cells hold counts or log1p values.
        units
            - ``log1p``: mean log-normalised expression; the usual choice.
            - ``counts``: mean counts of the control cells, if the mean change is added to each of them.
        dose, time
            Of all perturbations, see :meth:`tadvae.model.tadvae.TADVAE.predict`.

        Returns
        -------
        One row per perturbation and context, the first of each context is its control. ``X``: the mean;
        for one model ``layers["se"]``, the standard error (:mod:`tadvae.model.standard_errors`); for
        ensembles ``layers["seed_spread"]``, ``["low"]`` and ``["high"]``. ``obs``: ``perturbation``,
        ``context``, ``dataset`` and ``reason``: why there is no answer, and the row is NaN; else empty.

        Raises
        ------
        UserError
            If a context is unknown, or the table is too large for the memory: use :func:`write_many`.
        """
        asked = Combinations.of(targets)
        if dose is not None or time is not None:
            asked = replace(asked, amounts=(dose, time))
        table = MeanTable(
            self, asked, context=context, dataset=dataset, controls=controls, values=values, units=units
        )
        return in_memory(table)


def in_memory(table: MeanTable, advance: Callable[[int], object] = lambda n: None) -> ad.AnnData:
    """The whole table; one that is too large is a UserError."""
    n = len(table) * len(table.genes) * len(table.layers)
    if n > MOST_VALUES:
        raise UserError(
            f"{len(table):,} predictions × {len(table.genes):,} genes are too many for one AnnData (at most "
            f"{MOST_VALUES:,} values, here {n:,}); write them to a file whose name ends in .parquet."
        )
    layers = {name: np.empty((len(table), len(table.genes)), np.float32) for name in table.layers}
    labels: dict[str, list[str | None]] = {}
    row = 0
    for part in table.parts():
        for name, layer in layers.items():
            layer[row : row + len(part.questions)] = table.on_genes(part, name)
        for name, column in table.labels(part).items():
            labels.setdefault(name, []).extend(column)
        row += len(part.questions)
        advance(len(part.questions))
    obs = pd.DataFrame(labels)
    obs["reason"] = obs["reason"].fillna("").astype("category")
    obs = obs.astype({"context": "category", "dataset": "category"})
    where = obs["dataset"].astype(str) + "/" + obs["context"].astype(str) + "/" + obs["perturbation"]
    obs.index = pd.Index(unique_names(where.tolist()))
    known = table.vocabulary.genes.iloc[table.genes]
    var = known[["gene", "symbol", "ensembl_id"]].fillna("").set_axis(pd.Index(table.names))
    about = {key: value for key, value in table.about().items() if key not in ("genes", "gene")}
    return ad.AnnData(layers.pop("mean"), obs=obs, var=var, layers=layers, uns={"tadvae": about})


def write_many(table: MeanTable, out: str, advance: Callable[[int], object] = lambda n: None) -> Written:
    """Write a table to an ``.h5ad`` file, or part by part, in bounded memory, to a ``.parquet`` file.

    In Parquet, ``mean`` (and ``se``, ``seed_spread``, ``low``, ``high``) is a list with one value per gene,
    null where there is no answer; the genes are in the metadata of the schema, as JSON under ``tadvae``.

    Raises
    ------
    UserError
        If the name ends in neither, or the table is too large for an ``.h5ad`` file.
    """
    place = Location.of(out)
    written = Written(len(table) - len(table.places), len(table.places), len(table.genes))

    def count(part: Part) -> None:
        written.reasons.update(question.reason for question in part.questions if question.reason)
        advance(len(part.questions))

    if place.name.endswith(".h5ad"):
        adata = in_memory(table, advance)
        written.reasons.update(reason for reason in adata.obs["reason"] if reason)
        write_adata(adata, place)
    elif place.name.endswith(".parquet"):
        _write_parquet(table, place, count)
    else:
        raise UserError(f"{place}: expected a file name that ends in .h5ad or .parquet.")
    return written


def _write_parquet(table: MeanTable, place: Location, count: Callable[[Part], None]) -> None:
    n_genes = len(table.genes)
    kinds = {name: pa.list_(pa.float32(), n_genes) for name in table.layers}
    names = ["perturbation", "context", "dataset", "reason"]
    schema = pa.schema(
        [*((name, pa.string()) for name in names), *kinds.items()],
        metadata={"tadvae": json.dumps(table.about(), ensure_ascii=False)},
    )
    try:
        with (
            place.replacing() as partial,
            partial.filesystem.open_output_stream(partial.path) as file,
            pq.ParquetWriter(
                file, schema, compression="zstd", use_dictionary=names, write_statistics=names
            ) as writer,
        ):
            for part in table.parts():
                columns: dict[str, Any] = {
                    name: pa.array(column, pa.string()) for name, column in table.labels(part).items()
                }
                missing = pa.array([question.pairs is None for question in part.questions])
                for name, kind in kinds.items():
                    values = pa.array(table.on_genes(part, name).ravel())
                    columns[name] = pa.FixedSizeListArray.from_arrays(values, type=kind, mask=missing)
                writer.write_table(pa.table(columns, schema=schema), row_group_size=len(part.questions))
                count(part)
    except BaseException:
        if not place.is_local:  # an object store keeps what was sent until a stream is closed
            place.delete()
        raise


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
