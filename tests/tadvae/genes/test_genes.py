import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.genes.harmonise import canonical_targets, harmonise
from tadvae.genes.reference import GeneReference

A, B, C = "ENSG00000000001", "ENSG00000000002", "ENSG00000000003"
A_ALT, A_ALT2, UNLISTED = "ENSG00000900001", "ENSG00000900002", "ENSG00000999999"

# AAA has two alternates; NOID no Ensembl id; "shared" is the alias of two genes; "Bbb" the alias of AAA and,
# in another case, the symbol of BBB.
TABLE = pd.DataFrame(
    {
        "symbol": ["AAA", "BBB", "C1orf3", "NOID", "NK3-1"],
        "ensembl_id": [A, B, C, None, "ENSG00000000005"],
        "ensembl_alternates": [[A_ALT, A_ALT2], [], [], [], []],
        "aliases": [["oldA", "olderA", "shared", "Bbb"], ["oldB", "shared", "AAA"], [], ["oldNo"], []],
    }
)


@pytest.fixture(scope="module")
def toy():
    return GeneReference("toy", TABLE)


@pytest.fixture(scope="module")
def human():
    return GeneReference.load("human")


def run(names, reference, **options):
    options = {"where": "screen.h5ad: var_names", "max_unknown": 1.0} | options
    return harmonise(names, reference, **options)


def one(name, reference, **options):
    return run([name], reference, **options).iloc[0].to_dict()


@pytest.mark.parametrize(
    ("name", "gene", "how"),
    [
        (A, A, "ensembl"),
        (f"{A}.14", A, "ensembl"),
        (A_ALT, A, "ensembl_alternate"),
        (f"{A_ALT}.2", A, "ensembl_alternate"),
        (f"{A}.3_PAR_Y", A, "ensembl_alternate"),
        (UNLISTED, UNLISTED, "ensembl"),
        (f"{UNLISTED}.7", UNLISTED, "ensembl"),
        ("AAA", A, "symbol"),
        (" AAA ", A, "symbol"),
        ("aaa", A, "symbol"),
        ("C1ORF3", C, "symbol"),
        ("NOID", "NOID", "symbol"),
        ("noid", "NOID", "symbol"),
        ("oldA", A, "alias"),
        ("oldNo", "NOID", "alias"),
        ("Bbb", B, "symbol"),
        ("AAA-1", A, "symbol"),
        ("NK3-1", "ENSG00000000005", "symbol"),
        ("shared", "shared", "unknown"),
        ("OLDA", "OLDA", "unknown"),
        ("oldA-1", "oldA-1", "unknown"),
        ("RP11-34P13.3", "RP11-34P13.3", "unknown"),
        ("ENSMUSG00000000001.4", "ENSMUSG00000000001", "unknown"),
    ],
)
def test_one_name(toy, name, gene, how):
    row = one(name, toy)
    assert (row["source"], row["gene"], row["how"]) == (name, gene, how)


def test_ensembl_id_and_symbol_are_the_references(toy):
    frame = run([A_ALT, "oldB", "NOID", "nothing", UNLISTED], toy)
    assert frame["ensembl_id"].tolist() == [A, B, None, None, UNLISTED]
    assert frame["symbol"].tolist() == ["AAA", "BBB", "NOID", None, None]
    assert frame.columns.tolist() == ["source", "gene", "ensembl_id", "symbol", "how"]


def test_second_column_names_unlisted_ensembl_ids(toy):
    frame = run([UNLISTED, A, f"{UNLISTED[:-1]}8"], toy, symbols=["NEWGENE", "WRONG", ""])
    assert frame["symbol"].tolist() == ["NEWGENE", "AAA", None]


@pytest.mark.parametrize("blank", ["", None, float("nan"), pd.NA, "nan"])
def test_blank_second_column_says_nothing(toy, blank):
    assert one(UNLISTED, toy, symbols=[blank])["symbol"] is None
    assert one("probe1", toy, symbols=[blank])["how"] == "unknown"


def test_second_column_is_read_where_the_name_is_unknown(toy):
    frame = run(["probe1", "probe2", "probe3", "BBB"], toy, symbols=["AAA", "oldNo", "nothing", "C1orf3"])
    assert frame["gene"].tolist() == [A, "NOID", "probe3", B]
    assert frame["how"].tolist() == ["var_symbol", "var_symbol", "unknown", "symbol"]


def test_second_column_of_another_length_is_a_programming_error(toy):
    with pytest.raises(ValueError, match="2 names, but 1 symbols"):
        run(["AAA", "BBB"], toy, symbols=["AAA"])


@pytest.mark.parametrize(
    ("names", "symbols", "genes"),
    [
        ([A, A_ALT], None, [A, A_ALT]),
        ([A, f"{A}.3_PAR_Y"], None, [A, f"{A}_PAR_Y"]),
        (["AAA", "aaa"], None, [A, "aaa"]),
        (["oldA", "AAA"], None, ["oldA", A]),
        (["AAA-1", "AAA"], None, ["AAA-1", A]),
        (["probe", A], ["AAA", ""], ["probe", A]),
        # indirect against indirect: the weaker one
        (["oldA", "aaa"], None, ["oldA", A]),
        (["oldA", A_ALT], None, ["oldA", A]),
        (["AAA-1", "oldA"], None, ["AAA-1", A]),
        (["probe", "oldA"], ["AAA", ""], ["probe", A]),
        # equally strong: neither
        (["oldA", "olderA"], None, ["oldA", "olderA"]),
        ([A_ALT, A_ALT2], None, [A_ALT, A_ALT2]),
        (["AAA-1", "AAA-2"], None, ["AAA-1", "AAA-2"]),
        (["oldA", "olderA", "AAA-1"], None, ["oldA", "olderA", "AAA-1"]),
        # a gene without an Ensembl id
        (["NOID", "noid", "oldNo"], None, ["NOID", "noid", "oldNo"]),
    ],
)
def test_an_indirect_match_makes_no_duplicate(toy, names, symbols, genes):
    frame = run(names, toy, symbols=symbols)
    assert frame["gene"].tolist() == genes
    kept = frame[frame["gene"] == frame["source"]]
    assert set(kept["how"]) <= {"unknown", "ensembl", "symbol"}


@pytest.mark.parametrize(
    "names",
    [
        [A, f"{A}.2"],
        [f"{UNLISTED}.1", f"{UNLISTED}.2"],
        ["AAA", "AAA"],
        ["AAA", A],
        ["oldA", "oldA"],
        ["nothing", "nothing"],
        [f"{A}.1_PAR_Y", f"{A}.2_PAR_Y"],
    ],
)
def test_true_duplicates_are_refused(toy, names):
    with pytest.raises(UserError, match=r"screen.h5ad: var_names: duplicate genes.*sum or drop") as error:
        run(["BBB", *names], toy)
    assert all(name in str(error.value) for name in names)


def test_at_most_five_duplicates_are_shown(toy):
    names = [f"gene{number}" for number in range(9)]
    with pytest.raises(UserError, match="9 in all") as error:
        run(names * 2, toy)
    assert str(error.value).count(" as ") == 5


def test_too_many_unknown_names_are_refused(toy):
    names = ["AAA", "one", "two", "three"]
    with pytest.raises(UserError) as error:
        run(names, toy, max_unknown=0.5)
    message = str(error.value)
    for part in ("screen.h5ad: var_names", "75%", "one, two, three", "toy", "genes: {reference: none}"):
        assert part in message
    assert len(run(names, toy, max_unknown=0.75)) == 4


def test_a_mouse_panel_is_refused(human):
    symbols = [symbol for symbol in human._symbols[:1500] if symbol.isalnum()]
    mouse = [symbol.capitalize() for symbol in symbols[:500]]
    with pytest.raises(UserError, match=r"spelt as in mouse or rat.*reference: none"):
        harmonise(mouse, human, where="screen.h5ad")
    # Human names in lower case, and a panel with a few such names, are no mouse's.
    assert (harmonise([name.lower() for name in mouse], human, where="screen.h5ad")["how"] == "symbol").all()
    mixed = [*mouse[:100], *symbols[600:1000]]
    assert len(harmonise(mixed, human, where="screen.h5ad")) == len(mixed)


@pytest.mark.parametrize("empty", ["", "  ", None, float("nan")])
@pytest.mark.parametrize("source", ["human", "none"])
def test_an_empty_name_is_refused(source, empty):
    with pytest.raises(UserError, match="gene number 2 has no name"):
        run(["KLF1", empty], GeneReference.load(source))


def test_an_empty_panel_is_an_empty_table(toy):
    assert run([], toy).columns.tolist() == ["source", "gene", "ensembl_id", "symbol", "how"]


def test_reference_none_takes_names_as_they_are():
    none = GeneReference.load("none")
    frame = run(["g1", f"{A}.2", A, "g1-1"], none, symbols=["s1", None, "", "nan"])
    assert frame["gene"].tolist() == ["g1", f"{A}.2", A, "g1-1"]
    assert set(frame["how"]) == {"as_given"}
    assert frame["symbol"].tolist() == ["s1", None, None, None]
    with pytest.raises(UserError, match="duplicate genes"):
        run(["g1", "g1"], none)
    assert canonical_targets(["g1", "", "TCR"], none) == ["g1", None, "TCR"]


def test_symbol_of_a_key(toy):
    assert [toy.symbol(key) for key in (A, "NOID", UNLISTED, "shared")] == ["AAA", "NOID", None, None]
    assert GeneReference.load("none").symbol(A) is None


def test_targets(toy):
    names = ["AAA", A, f"{A}.3", A_ALT, UNLISTED, "oldA", "NOID", "oldNo"]
    assert canonical_targets(names, toy) == [A, A, A, A, UNLISTED, A, "NOID", "NOID"]
    names = ["aaa", "AAA-1", "shared", "Bbb", "drug", "", None, float("nan")]
    assert canonical_targets(names, toy) == [None] * len(names)


def test_human_targets(human):
    genes = {"KLF1": "ENSG00000105610", "IFNB": "ENSG00000171855", "MARCH8": "ENSG00000165406"}
    assert canonical_targets(list(genes), human) == list(genes.values())
    assert canonical_targets(["TCR", "LPS", "control", "ctrl", "DMSO", "klf1"], human) == [None] * 6
    # Stimuli that are symbols of their own gene are genes.
    assert canonical_targets(["BCR", "TNF"], human) == ["ENSG00000186716", "ENSG00000232810"]


# --- references -------------------------------------------------------------------------------------------


def test_packaged_references_are_cached():
    assert GeneReference.load("human") is GeneReference.load("human")
    assert GeneReference.load("none") is GeneReference.load("none")


@pytest.mark.parametrize("name", ["genes.tsv", "genes.csv", "genes.tsv.gz", "genes.parquet"])
def test_a_users_table(tmp_path, name):
    path = tmp_path / name
    table = pd.DataFrame(
        {
            "symbol": ["NA", "b", "twice", "twice"],
            "ensembl_id": ["ENSDARG00000000001.3", "FBgn0000002", "x1", "x2"],
            "aliases": ["old|older", "", "", ""],
        }
    )
    if name.endswith("parquet"):
        table["aliases"] = table["aliases"].str.split("|")
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="," if "csv" in name else "\t", index=False)
    frame = run(["NA", "FBgn0000002", "twice", "x2", "ENSDARG00000000009"], GeneReference.load(path))
    assert frame["gene"].tolist() == [
        "ENSDARG00000000001",
        "FBgn0000002",
        "twice",
        "x2",
        "ENSDARG00000000009",
    ]
    assert frame["how"].tolist() == ["symbol", "ensembl", "unknown", "ensembl", "ensembl"]
    assert one("older", GeneReference.load(str(path)))["gene"] == "ENSDARG00000000001"


def test_repeated_rows_of_a_users_table_are_merged(tmp_path):
    path = tmp_path / "biomart.tsv"
    path.write_text(f"ensembl_id\tsymbol\taliases\n{A}\tAAA\told\n{A}\tAAA\tolder\n\t\t\n{B}\t\t\n")
    reference = GeneReference.load(path)
    assert len(reference) == 2
    assert canonical_targets(["old", "older", B], reference) == [A, A, B]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("genes.tsv", None, "no such gene table"),
        ("genes.tsv", b"gene\tid\nAAA\t1\n", "columns symbol and ensembl_id, found gene, id"),
        ("genes.tsv", b"symbol,ensembl_id\nAAA,1\n", "found symbol,ensembl_id"),
        ("genes.tsv", b"symbol\tensembl_id\n", "has no genes"),
        ("genes.tsv", b"symbol\tensembl_id\nAAA\tE1\nBBB\tE1\n", "E1 two symbols, 'AAA' and 'BBB'"),
        ("genes.tsv", b"", "cannot be read"),
        ("genes.tsv", b"\xff\xfe\x00\x81", "cannot be read"),
        ("genes.tsv", b"symbol\tensembl_id\na\tb\nc\td\te\tf\n", "cannot be read"),
        ("genes.tsv.gz", b"not gzip", "cannot be read"),
        ("genes.parquet", b"not parquet", "cannot be read"),
        ("genes.tsv", "folder", "cannot be read"),
    ],
)
def test_a_bad_table_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        GeneReference.load(path)
    assert name in str(error.value)


def test_an_odd_parquet_table_is_no_crash(tmp_path):
    path = tmp_path / "genes.parquet"
    pq.write_table(pa.table({"symbol": [1, 2], "ensembl_id": [None, "x"], "aliases": [3, None]}), path)
    assert canonical_targets(["1", "2", "3"], GeneReference.load(path)) == ["1", "x", "1"]


# --- properties -------------------------------------------------------------------------------------------

POOL = [
    *(A, B, C, A_ALT, A_ALT2, UNLISTED, "AAA", "aaa", "AAA-1", "AAA-2", "oldA", "olderA", "shared", "Bbb"),
    *("BBB", "bbb", "oldB", "NOID", "noid", "oldNo", "NK3-1", "nk3-1", "one", "two", f"{A}.2", f"{A}_PAR_Y"),
]
ROWS = st.lists(
    st.tuples(st.sampled_from(POOL) | st.text(min_size=1), st.sampled_from(["", *POOL])), max_size=12
)


@given(rows=ROWS, data=st.data())
@settings(deadline=None)
def test_any_panel(rows, data):
    reference = GeneReference("toy", TABLE)
    rows = [row for row in rows if row[0].strip()]
    names, symbols = [row[0] for row in rows], [row[1] for row in rows]
    try:
        frame = run(names, reference, symbols=symbols)
    except UserError as error:
        assert "duplicate genes" in str(error)  # noqa: PT017 (both outcomes are right)
        return
    assert frame["source"].tolist() == names
    assert frame["gene"].is_unique
    assert set(frame["how"]) <= {"ensembl", "ensembl_alternate", "symbol", "alias", "var_symbol", "unknown"}
    order = data.draw(st.permutations(range(len(rows))))
    permuted = run([names[i] for i in order], reference, symbols=[symbols[i] for i in order])
    pd.testing.assert_frame_equal(permuted, frame.iloc[list(order)].reset_index(drop=True))
    # The keys stand for themselves: harmonising them again changes nothing.
    assert run(frame["gene"].tolist(), reference)["gene"].is_unique


@given(names=st.lists(st.text(min_size=1).filter(str.strip), unique_by=str.strip, max_size=12))
def test_reference_none_keeps_any_names(names):
    frame = run(names, GeneReference.load("none"))
    assert frame["gene"].tolist() == [name.strip() for name in names]
