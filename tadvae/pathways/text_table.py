"""Pathways as a table of text: one row per pathway and gene."""

import csv
from collections.abc import Iterable
from pathlib import Path

from tadvae.base.errors import UserError
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.textfile import format_suffix, read_text

_PATHWAY_COLUMNS = ("pathway", "pathway_id", "pathwayid", "gene_set", "geneset", "go_id", "term", "source")

_NAME_COLUMNS = ("name", "pathway_name", "description", "term")

_GENE_COLUMNS = ("gene", "gene_id", "symbol", "gene_symbol", "genesymbol", "ensembl", "ensembl_id", "target")

DELIMITERS = {".tsv": ("\t", "tab"), ".txt": ("\t", "tab"), ".csv": (",", "comma")}


def read_table(path: str | Path) -> PathwaySets:
    """Read a table of (pathway, gene) rows: tab-separated, or comma-separated for ``.csv``.

    A header is recognised by name, in any case: pathway, gene_set or term, with gene, symbol or
    ensembl (and close variants), or source and target, as in decoupler's networks; further columns are then
    ignored (also weights), except a name column (name, description; term if the id has another column). With
    several gene columns, the first that has a value in a row is used, in the order above (genes without a
    symbol are then named by their Ensembl id). Without a header there are exactly two columns. Rows of a
    pathway need not be neighbours; repeated rows count once.

    Raises
    ------
    UserError
        If there is no such file, it is not UTF-8 text, it holds no rows, the header lacks one of the
        two columns, or a row lacks a value.
    """
    delimiter, word = DELIMITERS.get(format_suffix(path), ("\t", "tab"))
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
            f"{path}, line {number}: expected a header with a pathway column (pathway, gene_set, term or "
            f"source) and a gene column (gene, symbol, ensembl or target), found "
            f"{', '.join(first)}; rename the columns."
        )
    elif len(first) == 2:
        id_columns, gene_columns = [0], [1]
    else:
        raise UserError(
            f"{path}, line {number}: expected two {word}-separated columns (pathway, gene) or a header "
            f"naming them, found {len(first)} columns; correct the separator or add the header."
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


def _table_rows(path: str | Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """Non-blank rows with their line numbers, fields stripped; no field spans lines."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if '"' in line:
            try:
                parts = next(csv.reader([line], delimiter=delimiter, strict=True))
            except csv.Error as error:
                raise UserError(
                    f"{path}, line {number}: expected a well-formed row, found a broken one ({error}); fix "
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
    """The first non-empty value of the row in ``columns``; empty if there is none."""
    return next((row[i] for i in columns if i < len(row) and row[i]), "")
