"""The registry of public screens: one small YAML file each, in ``tadvae/datasets/entries``.

Column names and labels are those that the processing scripts of scPerturb write. Checksums come from public
repositories that use the files. Neither was tested on the files themselves. For a file without a checksum
here, :mod:`tadvae.datasets.fetch` saves the checksum of the first download.
"""

import re
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tadvae.base.config import Config, read_yaml
from tadvae.base.errors import UserError
from tadvae.store.spec import DatasetSpec


class Entry(Config):
    """One public screen."""

    about: str
    """One line about the screen: cells, perturbations, readout."""
    url: str
    """Address of the file, ``https://…``."""
    size: int | None = Field(None, gt=0)
    """Size of the file in bytes; None: not known."""
    checksum: str | None = None
    """``md5:…`` or ``sha256:…`` of the publisher; None: not known, saved at the first download."""
    licence: str
    """Licence of the data."""
    citation: str
    """Publication of the screen."""
    source: str
    """Who prepared the file."""
    dataset: DatasetSpec
    """Entry of the screen in a spec for ``tadvae convert``; ``path`` is the file's name."""

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: str) -> str:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("expected an address that begins with https:// or http://")
        return url

    @field_validator("checksum")
    @classmethod
    def _is_checksum(cls, checksum: str | None) -> str | None:
        if checksum is not None and not re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", checksum):
            raise ValueError("expected md5: and 32, or sha256: and 64 hexadecimal digits")
        return checksum

    @field_validator("dataset")
    @classmethod
    def _path_is_a_name(cls, dataset: DatasetSpec) -> DatasetSpec:
        if Path(dataset.path).name != dataset.path:
            raise ValueError("expected 'path' to be the file's name alone")
        return dataset


def registered() -> dict[str, Entry]:
    """The packaged entries by name, sorted."""
    files = sorted(resources.files("tadvae.datasets").joinpath("entries").iterdir(), key=lambda f: f.name)
    texts = {file.name: file.read_text("utf-8") for file in files if file.name.endswith(".yaml")}
    return {name.removesuffix(".yaml"): Entry.load_text(text, name) for name, text in texts.items()}


def find_entry(name: str) -> Entry:
    """Return a packaged entry by its name, or your own entry by the path of its YAML file.

    Raises
    ------
    UserError
        If there is no such entry.
    """
    if name.endswith((".yaml", ".yml")):
        return Entry.parse(read_yaml(name), name)
    entries = registered()
    if name not in entries:
        raise UserError(
            f"dataset '{name}': not in the registry (known: {', '.join(entries)}); give one of these, or the "
            "path of a YAML file of the same form."
        )
    return entries[name]
