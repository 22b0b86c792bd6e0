"""How the training files spell genes and labels, as two tables of a model folder."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.checksums import CheckedFolder
from tadvae.base.filesystem import Location

NAMES, LABELS = "names.parquet", "labels.parquet"

_NAMES = pa.schema([("dataset", pa.int32()), ("gene", pa.int32()), ("name", pa.string())])
_LABELS = pa.schema([("dataset", pa.int32()), ("label", pa.string()), ("targets", pa.list_(pa.int32()))])


class Spelled(Protocol):
    """What a dataset of a vocabulary has; see :class:`tadvae.data.entries.DatasetEntry`."""

    @property
    def genes(self) -> np.ndarray:
        """Indices of its genes."""

    @property
    def names(self) -> list[str] | None:
        """Their names in its file."""

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """Targets by label."""


def write_spellings(datasets: Sequence[Spelled], folder: Location) -> None:
    """Write the names of genes and the labels of all datasets."""
    names = [
        (i, gene, name)
        for i, entry in enumerate(datasets)
        if entry.names is not None
        for gene, name in zip(entry.genes.tolist(), entry.names, strict=True)
    ]
    labels = [
        (i, label, list(item)) for i, entry in enumerate(datasets) for label, item in entry.labels.items()
    ]
    for rows, schema, file in ((names, _NAMES, NAMES), (labels, _LABELS, LABELS)):
        columns = list(zip(*rows, strict=True)) or [()] * len(schema)
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table([list(each) for each in columns], schema=schema), buffer, compression="zstd")
        (folder / file).write_bytes(buffer.getvalue())


def read_spellings(files: CheckedFolder, genes: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Fields ``names`` and ``labels`` of each dataset; models of earlier versions have none.

    Raises
    ------
    ValueError
        If the names are not those of the datasets' genes, or a table has not its columns.
    """
    result: list[dict[str, Any]] = [{"names": None, "labels": {}} for _ in genes]
    for i, rows in _read(files, NAMES, _NAMES).groupby("dataset"):
        if not 0 <= i < len(genes):
            raise ValueError(f"{NAMES} names a dataset that does not exist")
        if not np.array_equal(rows["gene"].to_numpy(), genes[i]):
            raise ValueError(f"{NAMES} is not about the genes of dataset {i}")
        result[i]["names"] = rows["name"].tolist()
    for row in _read(files, LABELS, _LABELS).itertuples():
        if not 0 <= row.dataset < len(genes):
            raise ValueError(f"{LABELS} names a dataset that does not exist")
        result[row.dataset]["labels"][row.label] = tuple(int(target) for target in row.targets)
    return result


def _read(files: CheckedFolder, name: str, schema: pa.Schema) -> pd.DataFrame:
    """A table; an empty one where the model is of an earlier version."""
    table = files.table(name) if files.has(name) else schema.empty_table()
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise ValueError(f"{name} has other columns")
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{name} has empty fields")
    frame: pd.DataFrame = table.to_pandas()
    return frame
