"""Build ``tadvae/resources/genes_human.parquet``, the packaged human gene table.

The source is the SQLite file of Bioconductor's annotation package org.Hs.eg.db, as Debian ships it.
On a Debian system, without installing anything::

    apt-get download r-bioc-org.hs.eg.db
    dpkg-deb -x r-bioc-org.hs.eg.db_*.deb extracted
    python scripts/build_gene_table.py \
        --sqlite extracted/usr/lib/R/site-library/org.Hs.eg.db/extdata/org.Hs.eg.sqlite \
        --out tadvae/resources/genes_human.parquet

The same input gives the same table, row for row. Provenance goes into the file's footer.
"""

import argparse
import sqlite3
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

LICENCE = "Artistic-2.0"

# Types kept even without an Ensembl id. The rest (loci without a sequence, nuclear tRNAs, disease
# loci) is no gene of a single-cell panel, and its symbols (HBD, TEC, MEMO1) would clash with real genes.
KEPT_TYPES = ("protein-coding", "ncRNA", "pseudo", "rRNA", "snRNA", "snoRNA", "scRNA")

# NCBI maps no Ensembl id to the two mitochondrial rRNAs, yet they are among the most abundant
# transcripts of many panels; these are Ensembl's ids for them.
MITOCHONDRIAL_RRNA = {"MT-RNR1": "ENSG00000211459", "MT-RNR2": "ENSG00000210082"}

# Symbols that HGNC has retired and that NCBI lists as a synonym of another gene too. A panel older than the
# renaming means the gene that bore the symbol officially, so the other gene loses the synonym.
RENAMED = {
    "AGPAT9": "GPAT3",
    "AIM1": "CRYBG1",
    "APITD1": "CENPS",
    "C10orf2": "TWNK",
    "C2orf47": "MAIP1",
    "C7orf55": "FMC1",
    "CD97": "ADGRE5",
    "CSRP2BP": "KAT14",
    "DUSP27": "STYXL2",
    "EFTUD1": "EFL1",
    "GARS": "GARS1",
    "GBA": "GBA1",
    "GIF": "CBLIF",
    "HIST1H2BC": "H2BC4",
    "HIST1H2BE": "H2BC6",
    "HIST1H2BF": "H2BC7",
    "HIST1H2BG": "H2BC8",
    "HIST1H2BI": "H2BC10",
    "HN1": "JPT1",
    "HN1L": "JPT2",
    "LOR": "LORICRIN",
    "MARS": "MARS1",
    "MPP6": "PALS2",
    "MUM1": "PWWP3A",
    "NAT6": "NAA80",
    "NOV": "CCN3",
    "QARS": "QARS1",
    "SARS": "SARS1",
    "SEPT2": "SEPTIN2",
    "SHFM1": "SEM1",
    "STRA13": "CENPX",
}

SCHEMA = pa.schema(
    [
        pa.field("entrez", pa.int32(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("ensembl_id", pa.string()),
        pa.field("ensembl_alternates", pa.list_(pa.string()), nullable=False),
        pa.field("aliases", pa.list_(pa.string()), nullable=False),
        pa.field("gene_type", pa.string(), nullable=False),
    ]
)


def build(connection: sqlite3.Connection) -> pd.DataFrame:
    """Return the table, one row per gene, sorted by Entrez id."""
    genes = pd.read_sql(
        "SELECT _id, CAST(gene_id AS INTEGER) AS entrez, symbol, gene_type FROM genes"
        " JOIN gene_info USING (_id) JOIN genetype USING (_id)",
        connection,
    )
    mitochondrial = pd.read_sql("SELECT _id FROM chromosomes WHERE chromosome = 'MT'", connection)["_id"]
    aliases = pd.read_sql("SELECT _id, alias_symbol AS alias FROM alias", connection)
    genes, aliases = _name_mitochondrial(genes, aliases, genes["_id"].isin(mitochondrial))

    pairs = _ensembl_pairs(connection, genes)
    has_id = genes["_id"].isin(pairs["_id"])
    kept = has_id | genes["gene_type"].isin(KEPT_TYPES) | genes["_id"].isin(mitochondrial)
    genes = genes[kept].sort_values("entrez").reset_index(drop=True)
    if genes["symbol"].duplicated().any():
        sys.exit(f"symbols occur twice: {sorted(genes.loc[genes['symbol'].duplicated(), 'symbol'])}")

    genes["ensembl_id"] = genes["_id"].map(pairs.drop_duplicates("_id").set_index("_id")["ensembl_id"])
    rrna = genes["symbol"].map(MITOCHONDRIAL_RRNA)
    genes["ensembl_id"] = genes["ensembl_id"].where(rrna.isna(), rrna)
    genes["ensembl_alternates"] = _lists(genes, pairs[pairs.duplicated("_id")], "ensembl_id")
    own = aliases["_id"].map(genes.set_index("_id")["symbol"])
    heir = aliases["alias"].map(RENAMED)
    kept = (aliases["alias"] != own) & (heir.isna() | (heir == own))
    genes["aliases"] = _lists(genes, aliases[kept], "alias")
    lost = RENAMED.keys() - set(aliases.loc[kept, "alias"])
    if lost:
        sys.exit(f"renamed symbols that the source no longer lists: {sorted(lost)}")
    return genes[SCHEMA.names]


def _ensembl_pairs(connection: sqlite3.Connection, genes: pd.DataFrame) -> pd.DataFrame:
    """Return (gene, Ensembl id) pairs, each id once, a gene's primary id first.

    A gene has several Ensembl ids where Ensembl annotates it on alternative haplotypes and patches too
    (the MHC, KIR), and panels hold only the id on the primary assembly. That is the one that NCBI's own
    gene-to-Ensembl mapping gives; so NCBI's pairs come first, those that Ensembl confirms before the
    others, then the lowest number. The lowest number alone is wrong for the MHC (TUBB, HLA-B, C4A): of
    505 such genes in NetActivity's table it names 462 as they do, this rule 502.

    An id that several genes claim (a gene and its antisense or readthrough transcript) belongs to one
    only, or a panel that holds both genes would have duplicates: by the same order, then the
    protein-coding gene, then the lowest Entrez number (readthrough loci are the newer records).
    """
    pairs = pd.read_sql(
        "SELECT _id, ensembl_id,"
        " EXISTS (SELECT 1 FROM ncbi2ensembl n WHERE n._id = e._id AND n.ensembl_id = e.ensembl_id) AS ncbi,"
        " EXISTS (SELECT 1 FROM ensembl2ncbi n WHERE n._id = e._id AND n.ensembl_id = e.ensembl_id) AS ens"
        " FROM ensembl e",
        connection,
    ).merge(genes, on="_id")
    pairs["coding"] = pairs["gene_type"] == "protein-coding"
    owner = pairs.sort_values(
        ["ncbi", "ens", "coding", "entrez", "ensembl_id"], ascending=[False, False, False, True, True]
    ).drop_duplicates("ensembl_id")
    return owner.sort_values(["entrez", "ncbi", "ens", "ensembl_id"], ascending=[True, False, False, True])


def _name_mitochondrial(
    genes: pd.DataFrame, aliases: pd.DataFrame, mitochondrial: pd.Series
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Give the mitochondrial genes the names that panels use (MT-ND1), NCBI's own (ND1) as an alias.

    NCBI holds the panels' names without the hyphen, as an alias (MTND1, MTCO1).
    """
    chosen = aliases[aliases["_id"].isin(genes.loc[mitochondrial, "_id"]) & aliases["alias"].str.match("MT")]
    official = chosen.set_index("_id")["alias"].str.replace("MT", "MT-", n=1)
    ncbi = genes.loc[mitochondrial, "symbol"]
    # The one without such an alias is a tRNA: TRNF is MT-TF.
    named = genes.loc[mitochondrial, "_id"].map(official).fillna("MT-T" + ncbi.str.removeprefix("TRN"))
    genes = genes.assign(symbol=genes["symbol"].where(~mitochondrial, named))
    return genes, aliases


def _lists(genes: pd.DataFrame, rows: pd.DataFrame, column: str) -> pd.Series:
    """Return, for each gene, the sorted distinct values of ``rows[column]``."""
    grouped = rows.groupby("_id")[column].agg(lambda values: sorted(set(values))).to_dict()
    return genes["_id"].map(lambda key: grouped.get(key, []))


def provenance(connection: sqlite3.Connection, sqlite: Path) -> dict[str, str]:
    """Return what the footer says about the source."""
    metadata = dict(connection.execute("SELECT name, value FROM metadata"))
    # The R package's own description lies one folder above the SQLite file's.
    description = (sqlite.resolve().parent.parent / "DESCRIPTION").read_text(encoding="utf-8")
    version = next(line.split()[1] for line in description.splitlines() if line.startswith("Version:"))
    return {
        "source": f"org.Hs.eg.db {version} (Bioconductor; Debian package r-bioc-org.hs.eg.db)",
        "EGSOURCEDATE": metadata["EGSOURCEDATE"],
        "ENSOURCEDATE": metadata["ENSOURCEDATE"],
        "organism": metadata["ORGANISM"],
        "licence": LICENCE,
        "data": "NCBI Gene and Ensembl",
        "changes": "selected and renamed by scripts/build_gene_table.py",
    }


def main() -> None:
    """Read the arguments, build the table, write it."""
    parser = argparse.ArgumentParser(description="Build the packaged human gene table.")
    parser.add_argument("--sqlite", type=Path, required=True, help="org.Hs.eg.sqlite")
    parser.add_argument("--out", type=Path, required=True, help="the Parquet file to write")
    arguments = parser.parse_args()
    if not arguments.sqlite.is_file():
        sys.exit(f"{arguments.sqlite}: no such file")
    with sqlite3.connect(f"file:{arguments.sqlite}?mode=ro", uri=True) as connection:
        table = pa.Table.from_pandas(build(connection), schema=SCHEMA, preserve_index=False)
        footer = provenance(connection, arguments.sqlite)
    pq.write_table(
        table.replace_schema_metadata(footer), arguments.out, compression="zstd", compression_level=19
    )
    print(f"{arguments.out}: {table.num_rows} genes, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
