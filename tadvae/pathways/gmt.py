"""Pathway files: GMT (``.gmt``, ``.gmt.gz``) and plain two-column tables.

GMT is the tab-separated format of the Broad Institute (MSigDB): one line a pathway, its identifier,
a description, then its genes. Identifiers are kept exactly as the file gives them; matching them to a
gene vocabulary is the work of :mod:`tadvae.pathways.membership`.

A file that cannot be trusted is refused with one sentence naming file and line; nothing is skipped.
"""

import csv
import gzip
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tadvae.errors import UserError
from tadvae.pathways.textfile import read_text

_PATHWAY_COLUMNS = ("pathway", "pathway_id", "pathwayid", "gene_set", "geneset", "go_id", "term")
_NAME_COLUMNS = ("name", "pathway_name", "description", "term")
_GENE_COLUMNS = ("gene", "gene_id", "symbol", "gene_symbol", "ensembl", "ensembl_id")
_DELIMITERS = {".tsv": ("\t", "tab"), ".txt": ("\t", "tab"), ".csv": (",", "comma")}


@dataclass(frozen=True)
class PathwaySets:
    """Pathways as a file gives them.

    Parameters
    ----------
    ids
        Unique identifiers, one a pathway.
    names
        Readable names; an empty one falls back to the identifier.
    genes
        Gene identifiers of each pathway as given; repeats are dropped, the order is kept.
    source
        Where the sets come from, for messages; not compared.

    Raises
    ------
    ValueError
        If the lists differ in length or an identifier is repeated.
    """

    ids: list[str]
    names: list[str]
    genes: list[list[str]]
    source: str = field(default="the pathway sets", compare=False)

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.names) == len(self.genes):
            raise ValueError(f"{len(self.ids)} ids, {len(self.names)} names, {len(self.genes)} gene lists")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("pathway ids are not unique")
        named = [name or key for key, name in zip(self.ids, self.names, strict=True)]
        object.__setattr__(self, "names", named)
        object.__setattr__(self, "genes", [list(dict.fromkeys(genes)) for genes in self.genes])

    def __len__(self) -> int:
        return len(self.ids)


def read_pathways(path: str | Path) -> PathwaySets:
    """Read a pathway file of any supported format, chosen by its suffix.

    Raises
    ------
    UserError
        If the suffix is none of ``.gmt``, ``.tsv``, ``.txt``, ``.csv`` (each also with ``.gz``) and
        ``.parquet``, or the file is malformed.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        from tadvae.pathways.table import read_parquet  # which itself builds on this module

        return read_parquet(path).sets()
    if suffix == ".gmt":
        return read_gmt(path)
    if suffix in _DELIMITERS:
        return read_table(path)
    raise UserError(
        f"{path}: expected a pathway file ending in .gmt, .tsv, .txt, .csv (also with .gz) or .parquet, "
        f"found '{suffix or 'no suffix'}'; give such a file or rename this one after its format."
    )


def read_gmt(path: str | Path) -> PathwaySets:
    """Read a GMT file, plain or gzipped.

    Empty gene fields (trailing tabs of spreadsheet programs) and blank lines are ignored.

    Raises
    ------
    UserError
        If there is no such file, it is not UTF-8 text, it is empty, a line has fewer than three
        fields, or an identifier is repeated.
    """
    ids: dict[str, int] = {}  # identifier -> line, to name both lines of a repeat
    names, genes = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        key, name, members = _gmt_fields(line)
        if not key or not members:
            found = len([part for part in line.split("\t") if part.strip()])
            raise UserError(
                f"{path}, line {number}: expected at least three tab-separated fields (pathway id, "
                f"description, one or more genes), found {found}; add the genes or delete the line."
            )
        if key in ids:
            raise UserError(
                f"{path}, line {number}: expected unique pathway ids, found '{key}' again (first on line "
                f"{ids[key]}); rename or delete one of the two."
            )
        ids[key] = number
        names.append(name)
        genes.append(members)
    if not ids:
        raise UserError(f"{path}: expected one pathway a line, found an empty file; give a GMT file.")
    return PathwaySets(list(ids), names, genes, source=str(path))


def write_gmt(sets: PathwaySets, path: str | Path) -> None:
    """Write ``sets`` as GMT, gzipped if the suffix is ``.gz``; :func:`read_gmt` gives them back.

    The file appears whole or not at all, and its bytes depend on ``sets`` alone.

    Raises
    ------
    UserError
        If a pathway has no genes, a field holds a character GMT cannot carry, or the file cannot be
        written.
    """
    target = Path(path)
    lines = []
    for key, name, genes in zip(sets.ids, sets.names, sets.genes, strict=True):
        line = "\t".join([key, name, *genes])
        if (
            not key
            or not genes
            or any(mark in line for mark in "\n\r\0")
            or _gmt_fields(line) != (key, name, genes)
        ):
            raise UserError(
                f"{path}: expected pathways with genes and without tabs, line breaks or outer blanks, found "
                f"{key!r} with {len(genes)} genes; mend that pathway before writing."
            )
        lines.append(line + "\n")
    data = "".join(lines).encode("utf-8")
    if target.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        partial.write_bytes(data)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); give a writable path with free space."
        ) from None


def read_table(path: str | Path) -> PathwaySets:
    """Read a table of (pathway, gene) rows: tab-separated, or comma-separated for ``.csv``.

    A header is recognised by name, in any case: pathway, gene_set or term, with gene, symbol or
    ensembl (and close variants); further columns are then ignored, except a name column (name,
    description; term where the id has a column of its own). Of several gene columns, the first with a
    value counts, in the order above (genes without a symbol have their Ensembl id). Without a header
    there are exactly two columns. Rows of a pathway need not be neighbours; repeated rows count once.

    Raises
    ------
    UserError
        If there is no such file, it is not UTF-8 text, it holds no rows, the header lacks one of the
        two columns, or a row lacks a value.
    """
    delimiter, word = _DELIMITERS.get(_suffix(path), ("\t", "tab"))
    rows = _table_rows(path, delimiter)
    if not rows:
        raise UserError(f"{path}: expected rows of pathway and gene, found an empty file; give a table.")
    number, first = rows[0]
    header = [part.lower() for part in first]
    id_columns, gene_columns = _columns(header, _PATHWAY_COLUMNS), _columns(header, _GENE_COLUMNS)
    name_columns: list[int] = []
    if id_columns and gene_columns:
        id_columns = id_columns[:1]
        name_columns = [i for i in _columns(header, _NAME_COLUMNS) if i not in id_columns]
        rows = rows[1:]
    elif id_columns or gene_columns:
        raise UserError(
            f"{path}, line {number}: expected a header with a pathway column (pathway, gene_set or term) and "
            f"a gene column (gene, symbol or ensembl), found {', '.join(first)}; rename the columns."
        )
    elif len(first) == 2:
        id_columns, gene_columns = [0], [1]
    else:
        raise UserError(
            f"{path}, line {number}: expected two {word}-separated columns (pathway, gene) or a header "
            f"naming them, found {len(first)} columns; mend the separator or add the header."
        )
    if not rows:
        raise UserError(f"{path}: expected rows of pathway and gene below the header, found none; add them.")
    names: dict[str, str] = {}
    genes: dict[str, list[str]] = {}
    for number, row in rows:
        key, gene = _first_value(row, id_columns), _first_value(row, gene_columns)
        if not key or not gene:
            raise UserError(
                f"{path}, line {number}: expected a pathway and a gene, {word}-separated, found "
                f"'{delimiter.join(row)[:60]}'; complete the row or delete it."
            )
        genes.setdefault(key, []).append(gene)
        names[key] = names.get(key) or _first_value(row, name_columns)
    return PathwaySets(list(genes), [names[key] for key in genes], list(genes.values()), str(path))


def _suffix(path: str | Path) -> str:
    """The suffix that tells the format: lower case, a final ``.gz`` set aside."""
    path = Path(path)
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()


def _gmt_fields(line: str) -> tuple[str, str, list[str]]:
    """Split one GMT line into id, description (the id where empty) and unique genes."""
    key, name, *genes = [part.strip().lstrip("\ufeff") for part in line.split("\t")] + [""] * 2
    return key, name or key, list(dict.fromkeys(gene for gene in genes if gene))


def _table_rows(path: str | Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Non-blank rows with their line numbers, fields stripped; no field spans lines."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if '"' in line:
            try:
                parts = next(csv.reader([line], delimiter=delimiter, strict=True))
            except csv.Error as error:
                raise UserError(
                    f"{path}, line {number}: expected a well-formed row, found a broken one ({error}); mend "
                    "its quotation marks."
                ) from None
        else:
            parts = line.split(delimiter)
        parts = [part.strip() for part in parts]
        if any(parts):
            rows.append((number, parts))
    return rows


def _columns(header: list[str], names: Iterable[str]) -> list[int]:
    """Positions of the header's columns called one of ``names``, in the order of ``names``."""
    return [header.index(name) for name in names if name in header]


def _first_value(row: list[str], columns: list[int]) -> str:
    """The first value the row holds in ``columns``; empty if there is none."""
    return next((row[i] for i in columns if i < len(row) and row[i]), "")
