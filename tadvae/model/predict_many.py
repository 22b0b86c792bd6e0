"""Mean profiles under many perturbations as an AnnData, or as Parquet that is written part by part."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.combinations import Combinations
from tadvae.model.mean_table import MeanTable, Part, Predicts, Targets, Units
from tadvae.model.new_cells import unique_names
from tadvae.store.h5ad import write_adata

MOST_VALUES = 2**28
"""Values that a table in memory or an ``.h5ad`` may have: 1 GiB."""


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
