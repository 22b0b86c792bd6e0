import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

import tadvae.genes
from tadvae.genes.harmonise import harmonise
from tadvae.genes.reference import GeneReference

PACKAGED = Path(tadvae.__file__).parent / "resources" / "genes_human.parquet"
SCRIPT = Path(__file__).parents[3] / "scripts" / "build_gene_table.py"

A, B, C, A_ALT = "ENSG00000000001", "ENSG00000000002", "ENSG00000000003", "ENSG00000900001"


@pytest.fixture(scope="module")
def human():
    return GeneReference.load("human")


def find(name, reference):
    return harmonise([name], reference, where="test").iloc[0]


def test_packaged_table_invariants():
    table = pd.read_parquet(PACKAGED)
    assert PACKAGED.stat().st_size < 3e6
    assert table["entrez"].is_unique
    assert table["entrez"].is_monotonic_increasing
    assert table["symbol"].is_unique
    assert table["symbol"].str.upper().is_unique
    ids = table["ensembl_id"].dropna()
    alternates = table["ensembl_alternates"].explode().dropna()
    every = pd.concat([ids, alternates])
    assert every.is_unique
    assert every.str.fullmatch(r"ENSG\d{11}").all()
    assert len(ids) > 36_000
    assert (table["gene_type"] == "protein-coding").sum() > 19_000
    assert not any(row.symbol in row.aliases for row in table.itertuples())


@pytest.mark.parametrize(
    ("symbol", "ensembl_id"),
    [
        ("KLF1", "ENSG00000105610"),
        ("TP53", "ENSG00000141510"),
        ("CEBPA", "ENSG00000245848"),
        ("HLA-A", "ENSG00000206503"),
        ("TUBB", "ENSG00000196230"),
        ("ATF6B", "ENSG00000213676"),
        ("MT-ND1", "ENSG00000198888"),
        ("MT-CO1", "ENSG00000198804"),
        ("MT-RNR2", "ENSG00000210082"),
        ("MALAT1", "ENSG00000251562"),
    ],
)
def test_packaged_table_known_pairs(human, symbol, ensembl_id):
    assert find(symbol, human)["gene"] == ensembl_id
    assert find(ensembl_id, human)["symbol"] == symbol


@pytest.mark.parametrize(
    ("old", "symbol"),
    [("GARS", "GARS1"), ("GBA", "GBA1"), ("SEPT2", "SEPTIN2"), ("MARCH1", "MARCHF1"), ("H2AFZ", "H2AZ1")],
)
def test_packaged_table_knows_retired_symbols(human, old, symbol):
    row = find(old, human)
    assert (row["symbol"], row["how"]) == (symbol, "alias")


def test_packaged_table_carries_its_provenance():
    footer = pq.read_schema(PACKAGED).metadata
    assert footer[b"licence"] == b"Artistic-2.0"
    for key in (b"source", b"EGSOURCEDATE", b"ENSOURCEDATE", b"data"):
        assert footer[key]
    readme = (PACKAGED.parent / "README.md").read_text(encoding="utf-8")
    table = pd.read_parquet(PACKAGED)
    assert f"{len(table):,} genes, {table['ensembl_id'].count():,} of them" in readme


def test_the_packaged_table_is_read_once(human, monkeypatch):
    def read_again(source):
        raise AssertionError(f"{source} is read again")

    monkeypatch.setattr(tadvae.genes.reference, "_read_parquet", read_again)
    assert GeneReference.load("human") is human
    names = pd.read_parquet(PACKAGED)["symbol"].tolist()
    found = harmonise(names, GeneReference.load("human"), where="test")
    assert found["source"].tolist() == names
    assert set(found["how"]) == {"symbol"}


# --- the script -------------------------------------------------------------------------------------------

SQL = """
CREATE TABLE genes (_id, gene_id);
CREATE TABLE gene_info (_id, gene_name, symbol);
CREATE TABLE genetype (_id, gene_type);
CREATE TABLE chromosomes (_id, chromosome);
CREATE TABLE alias (_id, alias_symbol);
CREATE TABLE ensembl (_id, ensembl_id);
CREATE TABLE ncbi2ensembl (_id, ensembl_id);
CREATE TABLE ensembl2ncbi (_id, ensembl_id);
CREATE TABLE metadata (name, value);
"""


@pytest.fixture
def source(tmp_path):
    """A source with one gene of each kind, and every renamed symbol claimed by two genes."""
    path = tmp_path / "package" / "extdata" / "org.Hs.eg.sqlite"
    path.parent.mkdir(parents=True)
    (path.parent.parent / "DESCRIPTION").write_text("Package: org.Hs.eg.db\nVersion: 9.9.9\n")
    genes = [  # symbol, type, chromosome, aliases, NCBI's and Ensembl's ids
        ("READTHROUGH", "protein-coding", "1", [], [B], [B]),
        ("BBB", "protein-coding", "1", ["oldB"], [B], [B]),
        ("AAA", "protein-coding", "6", [], [C], [A, C, A_ALT]),
        ("AAA-AS1", "ncRNA", "6", [], [C], [C]),
        ("LOCUS", "unknown", "1", [], [], []),
        ("ND1", "protein-coding", "MT", ["MTND1"], [], []),
        ("RNR2", "rRNA", "MT", ["MTRNR2"], [], []),
        ("TRNF", "tRNA", "MT", [], [], []),
    ]
    renamed = json.loads(
        subprocess.run(
            [sys.executable, "-c", "import json, build_gene_table as b; print(json.dumps(b.RENAMED))"],
            cwd=SCRIPT.parent,
            env={"PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
            capture_output=True,
        ).stdout
    )
    genes += [(new, "protein-coding", "2", [old], [], []) for old, new in renamed.items()]
    genes += [("OTHER", "protein-coding", "2", list(renamed), [], [])]
    connection = sqlite3.connect(path)
    connection.executescript(SQL)
    for key, (symbol, gene_type, chromosome, aliases, ncbi, ensembl) in enumerate(genes, start=1):
        # The read-through gene comes first in the file and last by Entrez number.
        connection.execute("INSERT INTO genes VALUES (?, ?)", (key, str(key if key > 1 else 99_999)))
        connection.execute("INSERT INTO gene_info VALUES (?, '', ?)", (key, symbol))
        connection.execute("INSERT INTO genetype VALUES (?, ?)", (key, gene_type))
        connection.execute("INSERT INTO chromosomes VALUES (?, ?)", (key, chromosome))
        for table, values in [
            ("alias", [symbol, *aliases]),
            ("ncbi2ensembl", ncbi),
            ("ensembl2ncbi", ensembl),
            ("ensembl", sorted({*ncbi, *ensembl})),
        ]:
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", [(key, value) for value in values])
    dates = [("EGSOURCEDATE", "then"), ("ENSOURCEDATE", "now"), ("ORGANISM", "Homo sapiens")]
    connection.executemany("INSERT INTO metadata VALUES (?, ?)", dates)
    connection.commit()
    connection.close()
    return path


def build(source, out):
    command = [sys.executable, str(SCRIPT), "--sqlite", str(source), "--out", str(out)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_script(source, tmp_path):
    done = build(source, tmp_path / "one.parquet")
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet(tmp_path / "one.parquet").set_index("symbol")
    # The id that NCBI gives is primary, though not the lowest; of two claimants the coding one has it.
    assert table.loc["AAA", "ensembl_id"] == C
    assert table.loc["AAA", "ensembl_alternates"].tolist() == [A, A_ALT]
    assert table.loc["AAA-AS1", "ensembl_id"] is None
    assert table.loc["BBB", "ensembl_id"] == B
    assert table.loc["READTHROUGH", "ensembl_id"] is None
    assert "LOCUS" not in table.index
    assert {"MT-ND1", "MT-RNR2", "MT-TF"} <= set(table.index)
    assert table.loc["MT-ND1", "aliases"].tolist() == ["MTND1", "ND1"]
    assert table.loc["MT-RNR2", "ensembl_id"] == "ENSG00000210082"
    assert table.loc["GARS1", "aliases"].tolist() == ["GARS"]
    assert table.loc["OTHER", "aliases"].tolist() == []
    footer = pq.read_schema(tmp_path / "one.parquet").metadata
    assert b"9.9.9" in footer[b"source"]
    assert footer[b"EGSOURCEDATE"] == b"then"
    assert len(GeneReference.load(tmp_path / "one.parquet")) == len(table)


def test_script_is_deterministic(source, tmp_path):
    build(source, tmp_path / "one.parquet")
    build(source, tmp_path / "two.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_script_names_a_missing_source(tmp_path):
    done = build(tmp_path / "none.sqlite", tmp_path / "out.parquet")
    assert done.returncode != 0
    assert "none.sqlite: no such file" in done.stderr
