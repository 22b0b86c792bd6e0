"""Pathway files of any supported format."""

from pathlib import Path

from tadvae.base.errors import UserError
from tadvae.pathways.gmt import read_gmt
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.table import read_parquet
from tadvae.pathways.text_table import DELIMITERS, read_table
from tadvae.pathways.textfile import format_suffix


def read_pathways(path: str | Path) -> PathwaySets:
    """Read a pathway file of any supported format, chosen by its suffix.

    Raises
    ------
    UserError
        If the suffix is none of ``.gmt``, ``.tsv``, ``.txt``, ``.csv`` (each also with ``.gz``) and
        ``.parquet``, or the file is malformed.
    """
    suffix = format_suffix(path)
    if suffix == ".parquet":
        return read_parquet(path).sets()
    if suffix == ".gmt":
        return read_gmt(path)
    if suffix in DELIMITERS:
        return read_table(path)
    raise UserError(
        f"{path}: expected a pathway file ending in .gmt, .tsv, .txt, .csv (also with .gz) or .parquet, "
        f"found '{suffix or 'no suffix'}'; give such a file or rename this one after its format."
    )
