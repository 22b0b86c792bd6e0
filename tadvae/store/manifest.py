"""What a cell store says of itself: ``manifest.json``.

The manifest is written last, so a folder without one is not a store.
"""

import hashlib
from collections.abc import Iterable

from pydantic import ValidationError

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"


class DatasetEntry(Config):
    """One dataset of a store."""

    name: str
    kind: str
    values: str
    n_cells: int
    n_genes: int
    n_unknown_genes: int
    contexts: list[str]
    n_perturbations: int
    has_total_counts: bool
    source: str
    """File name of the source, without its folder."""


class ShardEntry(Config):
    """One Parquet file of cells."""

    path: str
    dataset: int
    rows: int
    tokens: int
    size: int
    sha256: str


class Manifest(Config):
    """Contents of ``manifest.json``."""

    schema_version: int
    tadvae_version: str
    vocabulary_hash: str
    n_genes: int
    n_cells: int
    bag_size: int
    contexts: list[str]
    datasets: list[DatasetEntry]
    shards: list[ShardEntry]

    def write(self, folder: Location) -> None:
        """Write ``manifest.json``, which makes ``folder`` a store."""
        (folder / MANIFEST).write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Location) -> "Manifest":
        """Read and check; not a store, or another schema version, is a UserError."""
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
    """Only the version, whatever else a manifest of another version may hold."""

    model_config = Config.model_config | {"extra": "ignore"}
    schema_version: int


def vocabulary_hash(genes: Iterable[str]) -> str:
    """Fingerprint of an ordered gene vocabulary: two stores or models agree on indices iff equal."""
    return hashlib.sha256("\n".join(genes).encode()).hexdigest()[:16]
