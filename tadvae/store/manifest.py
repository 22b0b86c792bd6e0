"""The description of a cell store: ``manifest.json``.

The manifest is written last, so a folder without a manifest is not a (complete) store.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import Field, ValidationError, model_validator

from tadvae.base.checksums import CheckedFolder, sha256, write_sums
from tadvae.base.config import Config
from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.store.spec import Kind, ValuesAre

GROUP_KEYS = ["dataset", "context", "perturbation"]
"""Columns of store indices that together name a group of cells."""
SCHEMA_VERSION = 2
"""Version of the store's format; a reader accepts only its own version."""
MANIFEST = "manifest.json"
DATASET_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
"""Names of datasets, of which the names of files are made."""
REPAIR = "convert the store again"


def checked(folder: Location) -> CheckedFolder:
    """The files of a store."""
    return CheckedFolder(folder, "store", REPAIR)


LABELS = "labels.parquet"
"""What the labels of every dataset mean; stores of earlier versions do not have it."""
GUIDES = "guides.parquet"
"""Cells by guide and number of guides; only of stores with datasets whose spec names such columns."""


class StoredDataset(Config):
    """One dataset of a store."""

    name: str = Field(pattern=f"^{DATASET_NAME}$")
    """Name of the dataset in the spec."""
    kind: Kind
    """``cells``, ``profiles`` or ``signatures``."""
    values: ValuesAre
    """``counts``, ``log1p``, or ``effects`` for signatures."""
    rounded: bool = False
    """Whether fractional counts were rounded to whole numbers."""
    left_out: dict[str, int] = {}
    """Number of columns of the source that are not genes and were left out, by kind."""
    dropped: dict[str, int] = {}
    """Number of cells that the spec's quality control left out, by reason."""
    n_cells: int = Field(ge=0)
    """Number of stored cells; of signatures, one empty row per context, the control, is among them."""
    n_genes: int = Field(ge=0)
    """Number of measured genes."""
    n_unknown_genes: int = Field(ge=0)
    """Number of measured genes that the gene reference does not know."""
    contexts: list[str]
    """Names of the dataset's contexts."""
    n_perturbations: int = Field(ge=0)
    """Number of perturbations, the control not counted."""
    has_total_counts: bool
    """Whether library sizes come from a column of ``obs`` instead of sums over the measured genes."""
    source: str
    """File name of the source, without its folder."""
    covariates: dict[str, list[str]] = {}
    """Values of dose and time with their unit, and labels of free covariates (at most 50), by name."""


class ShardEntry(Config):
    """One Parquet file of cells."""

    path: str
    """Path within the store."""
    dataset: int = Field(ge=0)
    """Index of the dataset that the cells belong to."""
    rows: int = Field(ge=0)
    """Number of cells."""
    tokens: int = Field(ge=0)
    """Number of stored values (expressed genes) of all cells."""
    size: int = Field(ge=0)
    """Size of the file in bytes."""
    sha256: str
    """Checksum of the file."""


class Manifest(Config):
    """Contents of ``manifest.json``."""

    schema_version: int
    """Version of the store's format."""
    tadvae_version: str
    """Version of tadvae that converted the store."""
    vocabulary_hash: str
    """Hash of the ordered gene vocabulary, :func:`vocabulary_hash`."""
    n_genes: int = Field(ge=0)
    """Number of genes in the vocabulary."""
    n_cells: int = Field(ge=0)
    """Number of cells of all datasets."""
    bag_size: int = Field(ge=1)
    """Largest number of cells in a bag."""
    contexts: list[str]
    """Names of all contexts, in the order of their indices."""
    datasets: list[StoredDataset]
    """The datasets, in the order of their indices."""
    shards: list[ShardEntry]
    """The files of cells, in the order of their indices."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        if len(set(names)) < len(names) or len(set(self.contexts)) < len(self.contexts):
            raise ValueError("two datasets or contexts have one name")
        if not {context for dataset in self.datasets for context in dataset.contexts} <= set(self.contexts):
            raise ValueError("a dataset has an unknown context")
        rows = [0] * len(names)
        for shard in self.shards:
            if shard.dataset >= len(names):
                raise ValueError(f"shard {shard.path} belongs to no dataset")
            rows[shard.dataset] += shard.rows
        if any((each.kind == "signatures") != (each.values == "effects") for each in self.datasets):
            raise ValueError("signatures without effects")
        if rows != [dataset.n_cells for dataset in self.datasets] or sum(rows) != self.n_cells:
            raise ValueError("the shards do not hold the cells of the datasets")
        return self

    def shard_pattern(self, shard: int) -> str:
        """Regular expression of the path of a shard within the store."""
        name = self.datasets[self.shards[shard].dataset].name
        return rf"cells/dataset={re.escape(name)}/part-\d+\.parquet"

    def write(self, folder: Location, sums: Mapping[str, str]) -> None:
        """Write ``manifest.json``, which makes ``folder`` a store; before it the checksums of all files.

        Parameters
        ----------
        sums
            Checksums of the store's tables, by file name.
        """
        text = self.model_dump_json(indent=1)
        shards = {shard.path: shard.sha256 for shard in self.shards}
        write_sums(folder, {**sums, **shards, MANIFEST: sha256(text.encode())})
        (folder / MANIFEST).write_text(text)

    @classmethod
    def read(cls, folder: Location) -> "Manifest":
        """Read and check the manifest; a folder that is no store or has another version is a UserError."""
        place = folder / MANIFEST
        if not place.exists():
            raise UserError(
                f"{folder}: not a cell store (it has no {MANIFEST}); "
                "make one with `tadvae convert SPEC.yaml --out STORE`."
            )
        with place.reachable():
            text = place.read_bytes()
        try:
            data = parse_json(text)
            version = VersionOnly.model_validate(data).schema_version
        except ValueError:
            raise UserError(f"{place}: not a readable manifest; convert the store again.") from None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: a store of schema version {version}, but this tadvae reads version "
                f"{SCHEMA_VERSION}; convert it again with `tadvae convert`."
            )
        try:
            result = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            reason = ".".join(str(part) for part in first["loc"]) or first["msg"].removeprefix(
                "Value error, "
            )
            raise UserError(f"{place}: damaged manifest ({reason}); {REPAIR}.") from None
        checked(folder).compare(MANIFEST, text)
        return result


class VersionOnly(Config):
    """Only the schema version; other fields, which differ between versions, are ignored."""

    model_config = Config.model_config | {"extra": "ignore"}
    schema_version: int
    """Version of the store's format."""


def vocabulary_hash(genes: Iterable[str]) -> str:
    """Hash of an ordered gene vocabulary; equal hashes mean that gene indices have the same meaning."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()[:16]
