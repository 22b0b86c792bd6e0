"""Reference of gene identifiers: Ensembl ids, official symbols and aliases map to one key per gene.

Screens name their genes differently: Ensembl ids with or without a version, official symbols, retired
symbols, symbols made unique by scanpy. A model over many screens needs one key per gene. A missed match
costs one gene in one screen; a wrong match mixes two genes silently, so every doubtful match is refused.
"""

import functools
import re
import zlib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError

# Ensembl gene id of any species. GENCODE adds a version, and marks the copy on chromosome Y of a gene that X
# has too (_PAR_Y); like an alternate id, that copy matches the gene only where the gene itself is absent.
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(?:\.\d+)?(_PAR_Y)?")

_MADE_UNIQUE = re.compile(r"(.+)-[1-9]\d?")  # scanpy's make_unique: TBCE, TBCE-1, TBCE-2


_DIRECT, _ALTERNATE, _OTHER_CASE, _ALIAS, _SUFFIX, _VAR_SYMBOL = range(6)


class _Match(NamedTuple):
    """The match of a name; a lower rank is stronger evidence."""

    how: str
    rank: int
    key: str
    gene: int | None  # row of the reference; None for an Ensembl id that it does not hold


class GeneReference:
    """Known genes of an organism: Ensembl ids, symbols and aliases.

    Parameters
    ----------
    name
        Name of the reference, shown in messages.
    table
        Columns ``symbol`` and ``ensembl_id`` (either may be empty in a row), and, optionally, the lists
        ``aliases`` and ``ensembl_alternates``. ``None``: no gene is known, and every identifier is used
        as it is.
    """

    def __init__(self, name: str, table: pd.DataFrame | None) -> None:
        self.name = name
        self.as_given = table is None
        genes = [] if table is None else _merge_rows(name, table)
        self._ids = [gene.ensembl_id for gene in genes]
        self._symbols = [gene.symbol for gene in genes]
        rows = range(len(genes))
        self._by_id = {key: row for row, key in enumerate(self._ids) if key}
        self._prefixes = {found[1][:-11] for key in self._by_id if (found := _ENSEMBL.fullmatch(key))}
        self._by_alternate = _unambiguous(
            (other, row) for row in rows for other in genes[row].alternates if other not in self._by_id
        )
        symbols = [(symbol, row) for row, symbol in enumerate(self._symbols) if symbol]
        self._by_symbol = _unambiguous(symbols)
        self._by_upper = _unambiguous((symbol.upper(), row) for symbol, row in symbols)
        # An alias that is another gene's symbol, even in another case (Met of RNMT), means that other gene.
        taken = {symbol.upper() for symbol, _ in symbols}
        self._by_alias = _unambiguous(
            (alias, row)
            for row in rows
            for alias in genes[row].aliases
            if (upper := alias.upper()) not in taken or self._by_upper.get(upper) == row
        )

    def __len__(self) -> int:
        return len(self._ids)

    @classmethod
    def load(cls, source: str | Path) -> "GeneReference":
        """Return the packaged ``"human"`` reference, ``"none"``, or the user's own table.

        A table is Parquet, or text with a header: tab-separated, or comma-separated if its name holds
        ``.csv``. Text separates the entries of ``aliases`` by ``|``. Repeated rows of one gene, as
        BioMart exports them, are merged.
        """
        if source in ("human", "none"):
            return _packaged(str(source))
        return cls(str(source), _read_table(Path(source)))

    def symbol(self, gene: str) -> str | None:
        """Return the official symbol of a gene key, None where the reference has none."""
        row = self._by_id.get(gene, self._by_symbol.get(gene))
        return None if row is None else self._symbols[row] or None

    def is_official(self, name: str) -> bool:
        """Whether a name is an Ensembl id or an official symbol."""
        return self._find_exact(name) is not None

    def _match(self, row: int, how: str, rank: int) -> _Match:
        return _Match(how, rank, self._ids[row] or self._symbols[row], row)

    def _find_exact(self, name: str) -> _Match | None:
        """Find an official name: Ensembl id (any version, or an alternate) or symbol."""
        if (row := self._by_id.get(name)) is not None:
            return self._match(row, "ensembl", _DIRECT)
        if (row := self._by_symbol.get(name)) is not None:
            return self._match(row, "symbol", _DIRECT)
        own = _own_key(name)
        if (row := self._by_id.get(own)) is not None:
            return self._match(row, "ensembl", _DIRECT)
        plain = own.removesuffix("_PAR_Y")
        if (row := self._by_alternate.get(plain, self._by_id.get(plain))) is not None:
            return self._match(row, "ensembl_alternate", _ALTERNATE)
        if plain[:-11] in self._prefixes and _ENSEMBL.fullmatch(plain):
            return _Match("ensembl", _DIRECT, own, None)
        return None

    def _find_alias(self, name: str) -> _Match | None:
        row = self._by_alias.get(name)
        return None if row is None else self._match(row, "alias", _ALIAS)

    def _find(self, name: str) -> _Match | None:
        """Match a name by the strongest available evidence."""
        if match := self._find_exact(name):
            return match
        if (row := self._by_upper.get(name.upper())) is not None:
            return self._match(row, "symbol", _OTHER_CASE)
        return self._find_alias(name)

    def _find_suffixed(self, name: str, panel: set[str]) -> _Match | None:
        """Match a name without the suffix of scanpy's make_unique, unless the panel has that name too."""
        found = _MADE_UNIQUE.fullmatch(name)
        if not found or _own_key(found[1]) in panel:
            return None
        match = self._find_exact(found[1])
        return match._replace(rank=_SUFFIX) if match and match.gene is not None else None


def _own_key(name: str) -> str:
    """Return the key of a name without a match: the name, or an Ensembl id without its version."""
    found = _ENSEMBL.fullmatch(name)
    return found[1] + (found[2] or "") if found else name


def _text(name: Any) -> str:
    """Return a table entry as text; a missing value becomes the empty string."""
    missing = name is None or name is pd.NA or name != name
    return "" if missing else str(name).strip()


def _unambiguous(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Map each name to its row; names that occur in several rows are left out."""
    index: dict[str, int] = {}
    several = {name for name, row in pairs if index.setdefault(name, row) != row}
    return {name: row for name, row in index.items() if name not in several}


class _Gene(NamedTuple):
    ensembl_id: str
    symbol: str
    alternates: list[str]
    aliases: list[str]


def _merge_rows(name: str, table: pd.DataFrame) -> list[_Gene]:
    """Return the genes of the table; repeated rows of a gene are merged."""
    if not {"symbol", "ensembl_id"} <= set(table.columns):
        raise UserError(
            f"{name}: expected a gene table with the columns symbol and ensembl_id, found"
            f" {', '.join(map(str, table.columns))}; rename its columns."
        )
    columns = ("ensembl_id", "symbol", "aliases", "ensembl_alternates")
    values = [table.get(column, [None] * len(table)) for column in columns]
    genes: dict[tuple[str, str], _Gene] = {}
    symbols: dict[str, str] = {}
    for ensembl_id, official, aliases, alternates in zip(*values, strict=True):
        key, symbol = _own_key(_text(ensembl_id)), _text(official)
        if key and symbols.setdefault(key, symbol) != symbol:
            raise UserError(
                f"{name}: the gene table gives {key} two symbols, {symbols[key]!r} and {symbol!r}; keep one"
                " and write the other as an alias."
            )
        if key or symbol:
            gene = genes.setdefault((key, symbol), _Gene(key, symbol, [], []))
            gene.aliases.extend(_entries(aliases))
            gene.alternates.extend(_entries(alternates))
    if not genes:
        raise UserError(f"{name}: the gene table has no genes; give one row per gene.")
    return list(genes.values())


def _entries(value: Any) -> Iterable[str]:
    """Return the entries of a list column, which is text with ``|`` in a text file."""
    if not isinstance(value, list | tuple | np.ndarray):
        value = _text(value).split("|")
    return [text for entry in value if (text := _text(entry))]


@functools.cache
def _packaged(name: str) -> GeneReference:
    if name == "none":
        return GeneReference(name, None)
    path = resources.files("tadvae").joinpath("resources", f"genes_{name}.parquet")
    with path.open("rb") as file:
        return GeneReference(name, _read_parquet(file))


def _read_parquet(source: Path | IO[bytes]) -> pd.DataFrame:
    # Python lists are faster than pandas' conversion of list columns, and keep missing values as None.
    return pd.DataFrame(pq.read_table(source).to_pydict(), dtype=object)


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        separator = "," if ".csv" in path.suffixes else "\t"
        # No default missing values: NA may be a symbol. No index: a row too long would shift the columns.
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, index_col=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such gene table; give human, none or an existing file.") from None
    except (OSError, ValueError, EOFError, pa.ArrowException, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as a gene table ({reason}); give Parquet or TSV.") from None
