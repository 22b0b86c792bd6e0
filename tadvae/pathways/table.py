"""Selected pathways as one Parquet file, with their genes under two names and their provenance.

Columns: ``pathway_id``, ``name``, ``symbols`` and ``ensembl`` (one list per pathway each, with the same
genes in the same order; null where a gene has no such name), ``ancestors`` (ids of the same file that are
above the pathway) and ``replicability`` (null where it was not computed). The footer holds the provenance as
JSON.
"""

import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.genes.harmonise import canonical_targets
from tadvae.genes.reference import GeneReference
from tadvae.pathways.sets import PathwaySets

PROVENANCE = b"tadvae.pathways"
"""Key of the provenance in the Parquet footer."""
_SCHEMA = pa.schema(
    [
        pa.field("pathway_id", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("symbols", pa.list_(pa.string()), nullable=False),
        pa.field("ensembl", pa.list_(pa.string()), nullable=False),
        pa.field("ancestors", pa.list_(pa.string()), nullable=False),
        pa.field("replicability", pa.float32()),
    ]
)
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}")


@dataclass(frozen=True, eq=False)
class PathwayTable:
    """Pathways whose genes have a symbol and an Ensembl id.

    Attributes
    ----------
    ids, names
        Identifier and readable name of each of the P pathways.
    symbols, ensembl
        Names of each pathway's genes, None where a gene has no such name.
    ancestors
        Ids of this table that are above each pathway.
    replicability
        Score of a pathway by its id, from 0 to 1; may be empty.
    provenance
        Sources with checksums and releases, settings, the effect of every filter, licence; as plain values.
    source
        Where the table comes from, for messages.
    """

    ids: list[str]
    names: list[str]
    symbols: list[list[str | None]]
    ensembl: list[list[str | None]]
    ancestors: list[list[str]]
    replicability: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    source: str = "the pathway table"

    @classmethod
    def of(
        cls,
        sets: PathwaySets,
        reference: GeneReference,
        ancestry: sparse.csr_matrix | None = None,
        replicability: dict[str, float] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> "PathwayTable":
        """Build the table from sets: look up both names of every gene, and merge synonyms.

        Parameters
        ----------
        ancestry
            Bool, shape (P, P), ``[t, a]``: ``a`` is above ``t``.
        """
        given = list(dict.fromkeys(gene for genes in sets.genes for gene in genes))
        keys = dict(zip(given, canonical_targets(given, reference), strict=True))
        gene_of = {name: _names(name, keys[name], reference) for name in given}
        genes = [list(dict.fromkeys(gene_of[name] for name in names)) for names in sets.genes]
        above: list[list[str]] = [[] for _ in sets.ids]
        if ancestry is not None:
            for row, column in zip(*(part.tolist() for part in ancestry.nonzero()), strict=True):
                above[row].append(sets.ids[column])
        return cls(
            ids=sets.ids,
            names=sets.names,
            symbols=[[symbol for symbol, _ in part] for part in genes],
            ensembl=[[key for _, key in part] for part in genes],
            ancestors=[sorted(part) for part in above],
            replicability=replicability or {},
            provenance=provenance or {},
            source=sets.source,
        )

    def __len__(self) -> int:
        return len(self.ids)

    def sets(self, like: Iterable[str] = ()) -> PathwaySets:
        """The pathways with their genes as Ensembl ids if ``like`` has any such id, else as symbols.

        A gene without the wanted name has its other one.
        """
        by_id = any(_ENSEMBL.fullmatch(name) for name in like)
        wanted, other = (self.ensembl, self.symbols) if by_id else (self.symbols, self.ensembl)
        genes = [
            [str(first or second) for first, second in zip(*pair, strict=True)]
            for pair in zip(wanted, other, strict=True)
        ]
        return PathwaySets(self.ids, self.names, genes, self.source)

    def ancestry(self, terms: Sequence[str]) -> sparse.csr_matrix:
        """Ancestors among some pathways, bool, shape (n, n); ``[t, a]``: ``a`` is an ancestor of ``t``."""
        position = {term: i for i, term in enumerate(terms)}
        above = dict(zip(self.ids, self.ancestors, strict=True))
        pairs = [(i, position[a]) for t, i in position.items() for a in above.get(t, ()) if a in position]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        shape = (len(terms), len(terms))
        return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=shape)

    def write(self, place: str | Path | Location) -> None:
        """Write the Parquet file atomically; its bytes depend only on the table."""
        columns = [
            self.ids,
            self.names,
            self.symbols,
            self.ensembl,
            self.ancestors,
            [self.replicability.get(key) for key in self.ids],
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=_SCHEMA)
        footer = {PROVENANCE: json.dumps(self.provenance, indent=1, ensure_ascii=False).encode()}
        buffer = pa.BufferOutputStream()
        pq.write_table(
            table.replace_schema_metadata(footer), buffer, compression="zstd", compression_level=19
        )
        Location.of(place).write_bytes(buffer.getvalue())


def read_parquet(place: str | Path | Location) -> PathwayTable:
    """Read what :meth:`PathwayTable.write` wrote.

    Raises
    ------
    UserError
        If there is no such file or it is another one.
    """
    location = Location.of(place)
    if not location.exists():
        raise UserError(f"{place}: expected a pathway file, found no such file; give an existing one.")
    with location.reachable():
        data = location.read_bytes()
    return parse_parquet(data, str(place))


def parse_parquet(data: bytes, source: str) -> PathwayTable:
    """Read the bytes of a Parquet file; see :func:`read_parquet`."""
    try:
        table = pq.read_table(io.BytesIO(data))
        missing = [name for name in _SCHEMA.names if name not in table.column_names]
        if missing:
            raise ValueError(f"no column {', '.join(missing)}")
        columns = {name: table[name].to_pylist() for name in _SCHEMA.names}
        provenance = parse_json((table.schema.metadata or {}).get(PROVENANCE, b"{}"))
        scores = zip(columns["pathway_id"], columns["replicability"], strict=True)
        result = PathwayTable(
            ids=columns["pathway_id"],
            names=columns["name"],
            symbols=columns["symbols"],
            ensembl=columns["ensembl"],
            ancestors=columns["ancestors"],
            replicability={key: value for key, value in scores if value is not None},
            provenance=provenance,
            source=source,
        )
        sets = result.sets()
        if not len(sets) or not all(sets.genes):
            raise ValueError("no pathways, or pathways without genes")
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{source}: expected a Parquet file of `tadvae pathways`, found another or a damaged one "
            f"({' '.join(str(error).split())[:120]}); make it again, or give a GMT file."
        ) from None
    return result


def _names(given: str, key: str | None, reference: GeneReference) -> tuple[str | None, str | None]:
    """Symbol and Ensembl id of a gene; a name that is not in the reference is kept as it is."""
    name = key if key is not None else given
    symbol = reference.symbol(name)
    if _ENSEMBL.fullmatch(name):
        return symbol, name
    return symbol or name, None


def is_ancestor(ancestry: sparse.csr_matrix, among: np.ndarray | None = None) -> np.ndarray:
    """Which sets are ancestors of another one, bool, shape (n,).

    Parameters
    ----------
    ancestry
        Bool, shape (n, n), ``[t, a]``: ``a`` is above ``t``.
    among
        Sets that count as descendants, bool, shape (n,); None: all.
    """
    rows = ancestry if among is None else ancestry[np.flatnonzero(among)]
    return np.asarray(rows.sum(axis=0)).ravel() > 0
