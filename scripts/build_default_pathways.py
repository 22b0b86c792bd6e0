"""Build ``tadvae/resources/pathways_human_go_bp.parquet``, the packaged default pathways.

The sources are the SQLite files of Bioconductor's packages GO.db and org.Hs.eg.db, as Debian ships them: the
Gene Ontology of 2022-07-01. On a Debian system, without installing anything::

    apt-get download r-bioc-go.db r-bioc-org.hs.eg.db
    for file in r-bioc-*.deb; do dpkg-deb -x "$file" extracted; done
    python scripts/build_default_pathways.py \
        --go extracted/usr/lib/R/site-library/GO.db/extdata/GO.sqlite \
        --genes extracted/usr/lib/R/site-library/org.Hs.eg.db/extdata/org.Hs.eg.sqlite \
        --out tadvae/resources/pathways_human_go_bp.parquet

Annotations of protein-coding genes are closed over is_a and part_of and filtered by the project's own
selection, preset ``packaged``: what ``tadvae pathways build`` does with GO's own files. The same input gives
the same file, byte for byte. Provenance goes into the footer.
"""

import argparse
import sqlite3
import sys
from functools import partial
from importlib import resources
from pathlib import Path

import pandas as pd

from tadvae.genes.reference import GeneReference
from tadvae.pathway_selection.annotations import Annotations, gene_sets
from tadvae.pathway_selection.ontology import Ontology, relations
from tadvae.pathway_selection.provenance import GO_LICENCE, provenance, source
from tadvae.pathway_selection.selection import PRESETS, select
from tadvae.pathways.table import PathwayTable

PRESET = "packaged"


def read_ontology(connection: sqlite3.Connection, name: str) -> Ontology:
    """Return the biological processes of GO.db."""
    terms = pd.read_sql("SELECT _id, go_id, term FROM go_term WHERE ontology = 'BP'", connection)
    edges = pd.read_sql(
        "SELECT _id, _parent_id, relationship_type AS relation FROM go_bp_parents", connection
    )
    go_id = terms.set_index("_id")["go_id"]
    # the root's parent is a node 'all' of the package's own, no term of GO
    edges = edges[edges["_parent_id"].isin(go_id.index)]
    relation = edges["relation"].replace("isa", "is_a").str.replace(" ", "_")
    ends = (edges["_id"].map(go_id), relation, edges["_parent_id"].map(go_id))
    return Ontology(
        names=dict(zip(terms["go_id"], terms["term"], strict=True)),
        edges=sorted(zip(*ends, strict=True)),
        source=name,
        release=_metadata(connection)["GOSOURCEDATE"],
    )


def read_annotations(connection: sqlite3.Connection, name: str) -> Annotations:
    """Return the direct annotations of protein-coding genes, under their symbols in the packaged gene table.

    The evidence code ND ("no data") is left out. The package keeps no qualifiers.
    """
    rows = pd.read_sql(
        "SELECT DISTINCT CAST(gene_id AS INTEGER) AS entrez, go_id FROM go_bp JOIN genes USING (_id)"
        " JOIN genetype USING (_id) WHERE evidence <> 'ND' AND gene_type = 'protein-coding'"
        " ORDER BY go_id, entrez",
        connection,
    )
    with resources.files("tadvae").joinpath("resources", "genes_human.parquet").open("rb") as file:
        symbol = pd.read_parquet(file, columns=["entrez", "symbol"]).set_index("entrez")["symbol"]
    rows = rows[rows["entrez"].isin(symbol.index)]
    return Annotations(
        genes=rows["entrez"].map(symbol).tolist(),
        terms=rows["go_id"].tolist(),
        source=name,
        release=_metadata(connection)["GOSOURCEDATE"],
    )


def _metadata(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM metadata"))


def _package(sqlite: Path) -> str:
    """Name and version of the R package, whose description is one folder above the SQLite file's."""
    lines = (sqlite.resolve().parent.parent / "DESCRIPTION").read_text(encoding="utf-8").splitlines()
    field = dict(line.split(": ", 1) for line in lines if ": " in line)
    name = field["Package"]
    return f"{name} {field['Version']} (Bioconductor; Debian package r-bioc-{name.lower()})"


def build(go: Path, genes: Path) -> PathwayTable:
    """Read, close, select, name."""
    with sqlite3.connect(f"file:{go}?mode=ro", uri=True) as connection:
        ontology = read_ontology(connection, go.name)
    with sqlite3.connect(f"file:{genes}?mode=ro", uri=True) as connection:
        annotations = read_annotations(connection, genes.name)
    config = PRESETS[PRESET]
    closed = relations(config.regulates)
    ancestry = partial(ontology.ancestry, relations=closed)
    selection = select(gene_sets(ontology, annotations, closed), config, ancestry=ancestry)
    for report in selection.reports:
        print(report)
    settings = {
        "preset": PRESET,
        "aspect": "P",
        "evidence": "all but ND",
        "relations": list(closed),
        "genes": "protein-coding",
    }
    sources = [
        {**source(path, each.release), "package": _package(path)}
        for path, each in ((go, ontology), (genes, annotations))
    ]
    about = provenance(sources, config, selection.reports, settings, GO_LICENCE)
    return PathwayTable.of(
        selection.sets, GeneReference.load("human"), ancestry(selection.sets.ids), provenance=about
    )


def main() -> None:
    """Read the arguments, build the table, write it."""
    parser = argparse.ArgumentParser(description="Build the packaged default pathways.")
    parser.add_argument("--go", type=Path, required=True, help="GO.sqlite")
    parser.add_argument("--genes", type=Path, required=True, help="org.Hs.eg.sqlite")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    arguments = parser.parse_args()
    for path in (arguments.go, arguments.genes):
        if not path.is_file():
            sys.exit(f"{path}: no such file")
    table = build(arguments.go, arguments.genes)
    table.write(arguments.out)
    edges = sum(map(len, table.symbols))
    genes = {gene for part in table.symbols for gene in part}
    print(
        f"{arguments.out}: {len(table)} pathways, {len(genes)} genes, {edges} memberships, "
        f"{arguments.out.stat().st_size / 1e3:.0f} kB"
    )


if __name__ == "__main__":
    main()
