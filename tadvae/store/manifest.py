"""The description of a cell store: ``manifest.json``.

The manifest is written last, so a folder without a manifest is not a (complete) store.
"""

import hashlib
from collections.abc import Iterable

from pydantic import ValidationError

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location

GROUP_KEYS = ["dataset", "context", "perturbation"]
"""Columns of store indices that together name a group of cells."""
SCHEMA_VERSION = 2
"""Version of the store's format; a reader accepts only its own version."""
MANIFEST = "manifest.json"


class StoredDataset(Config):
    """One dataset of a store."""

    name: str
    """Name of the dataset in the spec."""
    kind: str
    """``cells`` or ``profiles``."""
    values: str
    """``counts`` or ``log1p``."""
    rounded: bool = False
    """Whether fractional counts were rounded to whole numbers."""
    left_out: dict[str, int] = {}
    """Number of columns of the source that are not genes and were left out, by kind."""
    n_cells: int
    """Number of stored cells."""
    n_genes: int
    """Number of measured genes."""
    n_unknown_genes: int
    """Number of measured genes that the gene reference does not know."""
    contexts: list[str]
    """Names of the dataset's contexts."""
    n_perturbations: int
    """Number of perturbations, the control not counted."""
    has_total_counts: bool
    """Whether library sizes come from a column of ``obs`` instead of sums over the measured genes."""
    source: str
    """File name of the source, without its folder."""


class ShardEntry(Config):
    """One Parquet file of cells."""

    path: str
    """Path within the store."""
    dataset: int
    """Index of the dataset that the cells belong to."""
    rows: int
    """Number of cells."""
    tokens: int
    """Number of stored values (expressed genes) of all cells."""
    size: int
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
    n_genes: int
    """Number of genes in the vocabulary."""
    n_cells: int
    """Number of cells of all datasets."""
    bag_size: int
    """Largest number of cells in a bag."""
    contexts: list[str]
    """Names of all contexts, in the order of their indices."""
    datasets: list[StoredDataset]
    """The datasets, in the order of their indices."""
    shards: list[ShardEntry]
    """The files of cells, in the order of their indices."""

    def write(self, folder: Location) -> None:
        """Write ``manifest.json``, which makes ``folder`` a store."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=1))

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
            version = VersionOnly.model_validate_json(text).schema_version
        except ValidationError:
            raise UserError(f"{place}: not a readable manifest; convert the store again.") from None
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{folder}: a store of schema version {version}, but this tadvae reads version "
                f"{SCHEMA_VERSION}; convert it again with `tadvae convert`."
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UserError(
                f"{place}: damaged manifest ({error.error_count()} wrong entries); convert the store again."
            ) from None


class VersionOnly(Config):
    """Only the schema version; other fields, which differ between versions, are ignored."""

    model_config = Config.model_config | {"extra": "ignore"}
    schema_version: int
    """Version of the store's format."""


def vocabulary_hash(genes: Iterable[str]) -> str:
    """Hash of an ordered gene vocabulary; equal hashes mean that gene indices have the same meaning."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()[:16]
