"""Pathway files and membership: round trips, refusals, and the mask against a dense reference."""

import gzip
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.pathways.gmt import _lacks_descriptions, read_gmt, write_gmt
from tadvae.pathways.membership import Membership, membership
from tadvae.pathways.read import read_pathways
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.text_table import read_table

FIELD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=8).filter(
    lambda text: text == text.strip() and "\ufeff" not in text
)


@st.composite
def pathway_sets(draw):
    ids = draw(st.lists(FIELD, min_size=1, max_size=6, unique=True))
    names = draw(st.lists(FIELD | st.just(""), min_size=len(ids), max_size=len(ids)))
    genes = draw(st.lists(st.lists(FIELD, min_size=1, max_size=6), min_size=len(ids), max_size=len(ids)))
    return PathwaySets(ids, names, genes)


def check_sentence(error, *parts):
    """One sentence that holds ``parts``: the file first, then expectation, finding and fix."""
    text = str(error.value)
    assert text.endswith(".")
    assert not re.search(r"\.\s", text)
    assert "\n" not in text
    for part in (*parts, "; "):
        assert part in text, text
    return text


def reads_as_genes(sets):
    """Names that are genes of the sets would be taken for genes."""
    return _lacks_descriptions(
        [[key, name, *genes] for key, name, genes in zip(sets.ids, sets.names, sets.genes, strict=True)]
    )


@given(pathway_sets(), st.sampled_from(["sets.gmt", "sets.gmt.gz"]))
def test_gmt_round_trip(tmp_path_factory, sets, name):
    path = tmp_path_factory.mktemp("gmt") / name
    if reads_as_genes(sets):
        with pytest.raises(UserError, match="which would be read back as genes"):
            write_gmt(sets, path)
        return
    write_gmt(sets, path)
    read = read_pathways(path)
    assert read == sets
    assert read.source == str(path)
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_gmt_bytes_depend_on_the_sets_alone(tmp_path):
    sets = PathwaySets(["P:1"], [""], [["B", "A", "B"]])
    assert sets.names == ["P:1"]
    assert sets.genes == [["B", "A"]]
    for name in ("a.gmt.gz", "b.gmt.gz"):
        write_gmt(sets, tmp_path / name)
    assert (tmp_path / "a.gmt.gz").read_bytes() == (tmp_path / "b.gmt.gz").read_bytes()


def test_gmt_as_spreadsheets_save_it(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_bytes(b"\xef\xbb\xbfP1\tname one\tA\tB\t\t\r\n\r\nP2\t\tB\tA\tB\r\n")
    assert read_gmt(path) == PathwaySets(["P1", "P2"], ["name one", "P2"], [["A", "B"], ["B", "A"]])


@pytest.mark.parametrize(
    "text",
    [
        "P1\tTP53\tMYC\nP2\tKLF1\n",  # known genes
        "P1\tx1\tx2\tx3\nP2\tx2\tx1\n",  # genes of other lines
        "P1\tTrp53\tMyc\tx1\nP2\tx1\tTrp53\nP3\tMyc\tTrp53\n",
        "HALLMARK_A\tENSG00000141510\tENSG00000136997\nHALLMARK_B\tENSG00000136997\n",
    ],
)
def test_gmt_without_descriptions(tmp_path, text, capsys):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    rows = [line.split("\t") for line in text.splitlines()]
    ids = [row[0] for row in rows]
    assert read_gmt(path) == PathwaySets(ids, [""] * len(rows), [row[1:] for row in rows])
    assert capsys.readouterr().err.count("without descriptions") == 1


@pytest.mark.parametrize(
    "text",
    [
        "P1\tna\tTP53\tMYC\nP2\tna\tMYC\n",
        "P1\tTF\tTP53\tMYC\nP2\tTF\tTF\n",  # the same everywhere, also a gene
        "P1\t\tTP53\tMYC\nP2\t\tMYC\n",
        "STAT1_targets\tSTAT1\tMYC\tMAX\nMYC(D)\tMYC\tSTAT1\n",  # a regulator with its targets
        "P1\tthe first\tMYC\nP2\tMYC\tMAX\n",
        "P1\thttp://a/b\tMYC\tMAX\nP2\thttp://a/c\tMYC\n",
    ],
)
def test_descriptions_stay_descriptions(tmp_path, text, capsys):
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    rows = [line.split("\t") for line in text.splitlines()]
    assert read_gmt(path).genes == [row[2:] for row in rows]
    assert read_gmt(path).names == [row[1] or row[0] for row in rows]
    assert "without descriptions" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("found an empty file",)),
        (b"\n  \n", ("found an empty file",)),
        (b"P1\tx\tA\nP2\tx\n", ("line 2", "at least three tab-separated fields", "found 2")),
        (b"P1\tx\t\t\n", ("line 1", "found 2")),
        (b"P1 x A B\n", ("line 1", "found 1")),
        (b"\tx\tA\n", ("line 1", "found 2")),
        (b"P1\tx\tA\nP2\tx\tA\nP1\tx\tB\n", ("line 3", "'P1' again", "first on line 1")),
        (b"P1\tx\tA\nP2\tx\t\xe9A\n", ("line 2", "UTF-8", "0xe9")),
        (b"\x89HDF\r\n\x1a\n\0\0", ("found binary data",)),
        (gzip.compress(b"P1\tx\tA\n" * 50, mtime=0)[:-9], ("truncated or damaged",)),
        (gzip.compress(b"P1\tx\tA\n", mtime=0)[:12] + b"\xff" * 20, ("truncated or damaged",)),
    ],
)
@pytest.mark.parametrize("read", [read_gmt, read_pathways])
def test_malformed_gmt(tmp_path, content, parts, read):
    path = tmp_path / "sets.gmt"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert check_sentence(error, *parts, "expected").startswith(str(path))


def test_unreadable_paths(tmp_path):
    (tmp_path / "plain.gmt.gz").write_bytes(b"P1\tx\tA\n")
    (tmp_path / "folder.gmt").mkdir()
    for name, part in [
        ("absent.gmt", "no such file"),
        ("folder.gmt", "cannot be read"),
        ("plain.gmt.gz", "expected gzip data"),
        ("sets.xlsx", "'.xlsx'"),
        ("sets", "'no suffix'"),
    ]:
        with pytest.raises(UserError) as error:
            read_pathways(tmp_path / name)
        assert check_sentence(error, part).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("key", "name", "genes"),
    [
        ("P1", "x", []),
        ("P\t1", "x", ["A"]),
        ("P1", "x\ny", ["A"]),
        ("P1", "x\ry", ["A"]),
        ("P1", "x", [" A"]),
        ("P1", "x", ["A", ""]),
        ("", "x", ["A"]),
    ],
)
def test_write_gmt_refuses_what_it_could_not_read_back(tmp_path, key, name, genes):
    with pytest.raises(UserError) as error:
        write_gmt(PathwaySets([key], [name], [genes]), tmp_path / "sets.gmt")
    check_sentence(error, "sets.gmt")
    assert not list(tmp_path.iterdir())


def test_write_gmt_to_an_absent_folder(tmp_path):
    with pytest.raises(UserError) as error:
        write_gmt(PathwaySets(["P"], ["x"], [["A"]]), tmp_path / "absent" / "sets.gmt")
    check_sentence(error, "cannot be written")


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("t.tsv", "P1\tA\nP2\tB\nP1\tC\nP1\tA\n", ["P1", "P2"]),
        ("t.txt", "pathway\tgene\nP1\tA\nP1\tC\n\nP2\tB\n", ["P1", "P2"]),
        ("t.csv", 'Gene,x,Term\nA,1,P1\n"C",2,P1\nB,,P2\n', ["P1", "P2"]),
        ("t.tsv", "gene_set\tterm\tsymbol\nP1\tfirst\tA\nP2\tsecond\tB\nP1\tfirst\tC\n", ["first", "second"]),
        ("t.tsv", "go_id\tsymbol\tensembl\nP1\tA\tE1\nP1\t\tC\nP2\tB\tE2\n", ["P1", "P2"]),
        ("t.csv", ",source,target,weight\n0,P1,A,1.0\n1,P1,C,-0.5\n2,P2,B,1\n", ["P1", "P2"]),  # decoupler
        ("t.tsv", "source\tconfidence\ttarget\nP1\tA\tA\nP2\tB\tB\nP1\tA\tC\n", ["P1", "P2"]),
        ("t.csv", "genesymbol,collection,geneset\nA,h,P1\nC,h,P1\nB,h,P2\n", ["P1", "P2"]),
        ("t.csv", "pathway,source,target,gene\nP1,x,y,A\nP1,x,y,C\nP2,x,y,B\n", ["P1", "P2"]),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_tables(tmp_path, name, text, names, zipped):
    path = tmp_path / (name + ".gz" * zipped)
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    assert read_pathways(path) == PathwaySets(["P1", "P2"], names, [["A", "C"], ["B"]])


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("t.tsv", "", ("empty file",)),
        ("t.tsv", "pathway\tgene\n", ("below the header",)),
        ("t.tsv", "pathway\tweight\nP1\t3\n", ("line 1", "gene column", "found pathway, weight")),
        ("t.tsv", "id\tsymbol\nP1\tA\n", ("line 1", "pathway column")),
        ("t.tsv", "P1,A\n", ("line 1", "two tab-separated columns", "found 1")),
        ("t.csv", "P1,A,B\n", ("line 1", "two comma-separated columns", "found 3")),
        ("t.tsv", "P1\tA\n\nP2\t\n", ("line 3", "a pathway and a gene", "complete the row")),
        ("t.tsv", "pathway\tgene\n\tA\n", ("line 2", "a pathway and a gene")),
        ("t.csv", 'P1,"A\n', ("line 1", "quotation marks")),
    ],
)
def test_malformed_tables(tmp_path, name, text, parts):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_table(path)
    assert check_sentence(error, *parts, "expected").startswith(str(path))


@pytest.mark.parametrize(("ids", "names"), [(["A", "A"], ["", ""]), (["A"], [])])
def test_inconsistent_sets(ids, names):
    with pytest.raises(ValueError, match=r"unique|names"):
        PathwaySets(ids, names, [["x"]] * len(ids))


# --- membership ---------------------------------------------------------------------------------


@st.composite
def masks(draw):
    n_pathways, n_genes = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    bits = draw(st.lists(st.booleans(), min_size=n_pathways * n_genes, max_size=n_pathways * n_genes))
    return np.array(bits).reshape(n_pathways, n_genes)


def of_mask(mask):
    pathway, gene = np.nonzero(mask)
    ids = [f"P{p}" for p in range(len(mask))]
    return Membership(ids, ids, pathway, gene, mask.shape[1])


@given(masks(), st.data())
def test_membership_equals_the_dense_mask(mask, data):
    n_genes = mask.shape[1]
    edges = of_mask(mask)
    panel = np.array(data.draw(st.lists(st.integers(0, n_genes - 1), max_size=15)), dtype=np.int64)
    measured = np.isin(np.arange(n_genes), panel)
    np.testing.assert_array_equal(edges.dense(), mask)
    np.testing.assert_array_equal(edges.size(), mask.sum(axis=1))
    np.testing.assert_array_equal(edges.size(panel), (mask & measured).sum(axis=1))
    for least in (1, 3):
        available = edges.availability(panel, least)
        assert available.dtype == bool
        np.testing.assert_array_equal(available, (mask & measured).sum(axis=1) >= least)


@given(masks(), st.integers(1, 4), st.data())
def test_builder_equals_the_dense_mask(mask, least, data):
    """Genes are known by lower-case aliases; a pathway may name a gene twice and genes nobody knows."""
    n_pathways, n_genes = mask.shape
    vocabulary = [f"G{g}" for g in range(n_genes)]
    sets = PathwaySets(
        [f"P{p}" for p in range(n_pathways)],
        [""] * n_pathways,
        [["?", *(f"g{g}" for g in np.flatnonzero(row)[::-1]), *(f"G{g}" for g in np.flatnonzero(row))]
         for row in mask],
    )  # fmt: skip
    panels = [
        np.array(data.draw(st.lists(st.integers(0, n_genes - 1), max_size=12)), dtype=np.int64)
        for _ in range(2)
    ]
    measured = np.isin(np.arange(n_genes), np.concatenate(panels))
    kept = (mask & measured).sum(axis=1) >= least

    def resolve(names):
        return [None if name == "?" else name.upper() for name in names]

    if not kept.any():
        with pytest.raises(UserError):
            membership(sets, vocabulary, resolve, panels, least)
        return
    built = membership(sets, vocabulary, resolve, panels, least)
    np.testing.assert_array_equal(built.dense(), mask[kept])
    assert built.pathway_ids == [f"P{p}" for p in np.flatnonzero(kept)]
    coverage = built.coverage
    assert (coverage.n_sets, coverage.n_kept, len(built)) == (n_pathways, kept.sum(), kept.sum())
    assert coverage.dropped == tuple(f"P{p}" for p in np.flatnonzero(~kept))
    assert coverage.n_genes_matched == (mask[kept].any(axis=0) & measured).sum()
    assert coverage.n_identifiers == 1 + 2 * mask.any(axis=0).sum()
    assert coverage.n_identifiers_matched == 2 * (mask.any(axis=0) & measured).sum()
    assert coverage.n_edges == mask[kept].sum()


def test_coverage_in_words():
    sets = PathwaySets(["P1", "P2"], ["", ""], [["A", "B", "X"], ["X"]])
    built = membership(sets, ["A", "B", "C"], lambda names: list(names), min_measured=2)
    assert str(built.coverage) == (
        "1 of 2 pathways have 2 or more measured genes; 2 of 3 gene identifiers are measured; "
        "2 genes in 2 memberships"
    )


@pytest.mark.parametrize("panels", [None, [np.array([1, 2])], [np.array([], dtype=np.int64)]])
def test_no_overlap_names_the_file_and_both_sides(tmp_path, panels):
    path = tmp_path / "mouse.gmt"
    path.write_text("P1\tx\tTrp53\tMyc\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        membership(read_gmt(path), ["TP53", "MYC", "KLF1"], lambda names: list(names), panels)
    text = check_sentence(
        error, "none of its 1 pathways has 5 or more measured genes", "0 of its 2", "'Trp53'"
    )
    assert text.startswith(str(path))
    assert ("'TP53'" if panels is None else "'MYC'" if panels[0].size else "(none)") in text


def test_programming_errors():
    edges = of_mask(np.ones((2, 3), dtype=bool))
    for panel in (
        np.array([-1]),
        np.array([3]),
        np.array([0.5]),
        np.ones(3, dtype=bool),
        np.zeros((1, 1), int),
    ):
        with pytest.raises(ValueError, match="panel"):
            edges.availability(panel, 1)
    sets = PathwaySets(["P"], [""], [["A"]])
    with pytest.raises(ValueError, match="repeats"):
        membership(sets, ["A", "A"], lambda names: list(names))
    with pytest.raises(ValueError, match="answers"):
        membership(sets, ["A"], lambda names: [])
    with pytest.raises(ValueError, match="min_measured"):
        membership(sets, ["A"], lambda names: list(names), min_measured=0)


@pytest.mark.parametrize(
    ("pathway", "gene", "problem"),
    [
        ([0, 0], [1, 0], "sorted"),
        ([0, 0], [1, 1], "sorted"),
        ([1, 0], [0, 0], "sorted"),
        ([0], [3], "gene"),
        ([2], [0], "pathway"),
        ([0, 1], [0], "shapes"),
    ],
)
def test_edges_are_checked(pathway, gene, problem):
    with pytest.raises(ValueError, match=problem):
        Membership(["P", "Q"], ["", ""], np.array(pathway), np.array(gene), 3)
    with pytest.raises(ValueError, match="int64"):
        Membership(["P", "Q"], ["", ""], np.array([0], dtype=np.int32), np.array([0]), 3)
