"""OBO and GAF: what is read, what is closed over, and what is refused."""

import gzip
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.pathway_selection.annotations import (
    ALL,
    CURATED,
    EXPERIMENTAL,
    Annotations,
    gene_sets,
    parse_evidence,
    read_gaf,
)
from tadvae.pathway_selection.ontology import GROUPING, Ontology, read_obo, relations

OBO = """\
format-version: 1.2
data-version: releases/2024-01-17
ontology: go

[Term]
id: GO:0000001
name: whole process
namespace: biological_process

[Term]
id: GO:0000002
name: left part
namespace: biological_process
alt_id: GO:0000020
is_a: GO:0000001 {source="x"} ! whole process
[Term]
id: GO:0000003
name: step
namespace: biological_process
! a comment
is_a: GO:0000002 ! left part
relationship: part_of GO:0000004 ! right part

[Term]
id: GO:0000004
name: right part
namespace: biological_process
is_a: GO:0000001

[Term]
id: GO:0000005
name: regulation of step
namespace: biological_process
is_a: GO:0000001
relationship: negatively_regulates GO:0000003 ! step

[Term]
id: GO:0000006
name: an activity
namespace: molecular_function
relationship: part_of GO:0000003 ! step

[Term]
id: GO:0000007
name: obsolete step
namespace: biological_process
is_obsolete: true
replaced_by: GO:0000003

[Term]
id: GO:0000008
name: obsolete, no successor
namespace: biological_process
is_obsolete: true
consider: GO:0000003

[Typedef]
id: part_of
name: part of
is_transitive: true
"""


def gaf_line(symbol="A", term="GO:0000003", code="IDA", qualifier="involved_in", aspect="P", columns=17):
    row = ["UniProtKB", "P1", symbol, qualifier, term, "PMID:1", code, "", aspect, "", "", "protein"]
    row += ["taxon:9606", "20240101", "GO", "", ""]
    return "\t".join(row[:columns])


GAF_HEADER = "!gaf-version: 2.2\n!date-generated: 2024-01-17T00:00\n!\n"


@pytest.fixture
def obo(tmp_path: Path) -> Ontology:
    (tmp_path / "go.obo").write_text(OBO)
    return read_obo(tmp_path / "go.obo")


def above(ontology: Ontology, which=GROUPING) -> set[tuple[str, str]]:
    return {
        (ontology.ids[t], ontology.ids[a]) for t, a in zip(*ontology.closure(which).nonzero(), strict=True)
    }


def test_obo(obo, tmp_path):
    assert obo.ids == [f"GO:000000{i}" for i in (1, 2, 3, 4, 5)]
    assert obo.names["GO:0000003"] == "step"
    assert obo.release == "2024-01-17"
    assert obo.source == str(tmp_path / "go.obo")
    assert dict(obo.alternates) == {"GO:0000020": "GO:0000002", "GO:0000007": "GO:0000003"}
    assert obo.obsolete == {"GO:0000008"}
    grouped = {("2", "1"), ("3", "2"), ("3", "4"), ("3", "1"), ("4", "1"), ("5", "1")}
    assert {(t[-1], a[-1]) for t, a in above(obo)} == grouped
    with_regulation = {("5", "3"), ("5", "2"), ("5", "4")}
    assert {(t[-1], a[-1]) for t, a in above(obo, relations(regulates=True))} == grouped | with_regulation


def test_obo_of_another_aspect_and_gzipped(tmp_path):
    (tmp_path / "go.obo.gz").write_bytes(gzip.compress(OBO.encode()))
    ontology = read_obo(tmp_path / "go.obo.gz", "F")
    assert ontology.ids == ["GO:0000006"]
    assert list(ontology.edges) == []  # its one relation leads to a biological process
    assert ontology.closure().nnz == 0


def test_ancestry_of_some_terms(obo):
    terms = ["GO:0000003", "X:1", "GO:0000001", "GO:0000020"]
    found = obo.ancestry(terms).toarray()
    assert {(terms[t], terms[a]) for t, a in zip(*found.nonzero(), strict=True)} == {
        ("GO:0000003", "GO:0000001"),
        ("GO:0000003", "GO:0000020"),
        ("GO:0000020", "GO:0000001"),
    }
    with pytest.raises(UserError, match=r"none of their ids.*'REACTOME_X'.*'GO:0000001'"):
        obo.ancestry(["REACTOME_X"])
    assert obo.ancestry([]).shape == (0, 0)


@st.composite
def dags(draw):
    """Names of the terms in an order that says nothing, and edges that go up."""
    n = draw(st.integers(1, 12))
    names = draw(st.permutations([f"T:{i:02d}" for i in range(n)]))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=25)) if pairs else []
    kinds = draw(st.lists(st.sampled_from(relations(True)), min_size=len(chosen), max_size=len(chosen)))
    return names, [(names[i], kind, names[j]) for (i, j), kind in zip(chosen, kinds, strict=True)]


@given(dags(), st.booleans())
def test_closure_is_reachability(dag, regulates):
    names, edges = dag
    graph = networkx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from((c, p) for c, kind, p in edges if kind in relations(regulates))
    ontology = Ontology(dict.fromkeys(names, "x"), edges)
    expected = {(t, a) for t in names for a in networkx.descendants(graph, t)}
    assert above(ontology, relations(regulates)) == expected


@given(dags(), st.lists(st.tuples(st.integers(0, 11), st.sampled_from("ABCDE")), min_size=1, max_size=20))
def test_gene_sets_are_the_genes_of_all_terms_below(dag, rows):
    names, edges = dag
    rows = [(names[i % len(names)], gene) for i, gene in rows]
    ontology = Ontology(dict.fromkeys(names, "x"), edges)
    sets = gene_sets(ontology, Annotations([g for _, g in rows], [t for t, _ in rows]))
    upwards = above(ontology) | {(t, t) for t in names}
    expected: dict[str, set] = {}
    for term, gene in rows:
        for t, a in upwards:
            if t == term:
                expected.setdefault(a, set()).add(gene)
    assert sets.ids == sorted(expected)
    assert dict(zip(sets.ids, map(set, sets.genes), strict=True)) == expected
    assert all(genes == sorted(genes) for genes in sets.genes)


def write_gaf(path: Path, *lines: str) -> Path:
    text = GAF_HEADER + "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


LINES = (
    gaf_line("A"),
    gaf_line("B", qualifier="NOT|involved_in"),
    gaf_line("C", code="IEA"),
    gaf_line("D", code="ND"),
    gaf_line("E", term="GO:0000006", aspect="F"),
    gaf_line("F", qualifier="", columns=15),
    gaf_line("A", term="GO:0000005"),
)


@pytest.mark.parametrize("name", ["a.gaf", "a.gaf.gz"])
def test_gaf(tmp_path, name):
    path = write_gaf(tmp_path / name, *LINES)
    found = read_gaf(path)
    assert (found.genes, found.lines) == (["A", "C", "F", "A"], [4, 6, 9, 10])
    assert found.terms == ["GO:0000003"] * 3 + ["GO:0000005"]
    assert found.left_out == {"NOT": 1, "evidence": 1}
    assert found.release == "2024-01-17T00:00"
    assert read_gaf(path, "F").genes == ["E"]
    assert read_gaf(path, evidence=EXPERIMENTAL).genes == ["A", "F", "A"]
    assert read_gaf(path, evidence=frozenset({"ND"})).genes == ["D"]


def test_annotations_follow_the_ontology(tmp_path, obo):
    lines = (*LINES, gaf_line("G", "GO:0000007"), gaf_line("H", "GO:0000020"), gaf_line("I", "GO:0000008"))
    annotations = read_gaf(write_gaf(tmp_path / "a.gaf", *lines))
    sets = gene_sets(obo, annotations)
    expected = {"1": "ACFGH", "2": "ACFGH", "3": "ACFG", "4": "ACFG", "5": "A"}  # I's term has no successor
    assert {i[-1]: "".join(g) for i, g in zip(sets.ids, sets.genes, strict=True)} == expected
    assert sets.names[2] == "step"
    regulated = gene_sets(
        obo, read_gaf(write_gaf(tmp_path / "b.gaf", gaf_line("Z", "GO:0000005"))), relations(True)
    )
    assert [i[-1] for i in regulated.ids] == ["1", "2", "3", "4", "5"]


def test_evidence():
    assert parse_evidence("all") == ALL
    assert "IEA" in ALL - CURATED
    assert "ND" not in ALL
    assert parse_evidence("ida, IMP") == {"IDA", "IMP"}
    for text in ("IDA,XYZ", " , "):
        with pytest.raises(UserError, match="evidence"):
            parse_evidence(text)


TERM = "[Term]\nid: GO:1\nname: x\nnamespace: biological_process\n"
LOOP = (
    TERM + "is_a: GO:2\n\n[Term]\nid: GO:2\nname: y\nnamespace: biological_process\n"
    "relationship: part_of GO:3 ! z\n\n[Term]\nid: GO:3\nname: z\nnamespace: biological_process\nis_a: GO:1\n"
)


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("", None, ("[Term] stanzas", "found none")),
        ("format-version: 1.2\n", None, ("[Term] stanzas", "found none")),
        ("<html>\n", 1, ("tag: value", "<html>")),
        (TERM + "is_a: GO:9 ! gone\n", 5, ("without a term GO:9",)),
        (TERM + "is_a:", 5, ("tag: value", "is_a:")),
        (TERM + "is_", 5, ("tag: value", "is_")),
        (TERM + "relationship: part_of\n", 5, ("relationship: TYPE TERM",)),
        (TERM + "is_a: GO:2 GO:3\n", 5, ("is_a: TERM",)),
        (TERM + "\n[Term]\nid: GO:2\n", 6, ("without name",)),
        (TERM + "\n[Term]\nname: y\n", 6, ("without id",)),
        (TERM + "\n[Ter", 6, ("stanza header", "[Ter")),
        (TERM + "\n" + TERM, 7, ("GO:1 again", "first on line 2")),
        (TERM + "id: GO:2\n", 5, ("second id of GO:1",)),
        ("[Term]\nis_a: GO:2\nid: GO:1\nname: x\n", 2, ("below an id",)),
        (
            TERM.replace("biological_process", "cellular_component"),
            None,
            ("biological_process", "none of them"),
        ),
        (TERM + "is_a: GO:1\n", 5, ("acyclic", "GO:1 → GO:1")),
        (LOOP, 5, ("acyclic", "GO:1 → GO:2 → GO:3 → GO:1")),
    ],
)
def test_malformed_obo(tmp_path, refused, text, line, parts):
    path = tmp_path / "go.obo"
    path.write_text(text)
    sentence = refused(lambda: read_obo(path).closure())
    assert sentence.startswith(f"{path}, line {line}: expected " if line else f"{path}: expected ")
    assert "; " in sentence
    for part in parts:
        assert part in sentence


def test_a_cycle_over_regulates_alone_does_not_matter_without_it(tmp_path, refused):
    text = TERM + "relationship: regulates GO:2\n\n" + TERM.replace("GO:1", "GO:2") + "is_a: GO:1\n"
    (tmp_path / "go.obo").write_text(text)
    ontology = read_obo(tmp_path / "go.obo")
    assert above(ontology) == {("GO:2", "GO:1")}
    assert "line 5" in refused(ontology.closure, relations(True))


def test_a_cycle_reached_from_outside_is_named_without_the_way_to_it(refused):
    edges = [("A", "is_a", "B"), ("B", "is_a", "C"), ("C", "is_a", "D"), ("D", "is_a", "B")]
    sentence = refused(Ontology(dict.fromkeys("ABCD", "x"), edges).closure)
    assert "cycle B → C → D → B;" in sentence


@pytest.mark.parametrize(
    ("lines", "number", "parts"),
    [
        ((), None, ("found none among 0 rows",)),
        ((gaf_line(code="ND"),), None, ("among 1 rows", "1 of other evidence")),
        ((gaf_line(qualifier="NOT|involved_in"),), None, ("1 with NOT",)),
        ((gaf_line(aspect="F"),), None, ("biological_process",)),
        ((gaf_line(), gaf_line()[:40]), 5, ("15 to 17", "found 6")),
        ((gaf_line(), gaf_line() + "\tx"), 5, ("15 to 17", "found 18")),
        (("P1\tA\tB",), 4, ("found 3",)),
        ((gaf_line(symbol=" "),), 4, ("a symbol, a term and an aspect",)),
        ((gaf_line(term="apoptosis"),), 4, ("'apoptosis'",)),
        ((gaf_line(aspect="X"),), 4, ("'X'",)),
        ((gaf_line(code="PMID:1"),), 4, ("evidence code", "'PMID:1'")),
        ((gaf_line(), gaf_line("B", "GO:9999999")), 5, ("GO:9999999 of B", "go.obo", "one release")),
        (
            (gaf_line(), gaf_line("B", "GO:0000006")),
            5,
            ("GO:0000006 of B",),
        ),  # a function, said to be a process
    ],
)
def test_malformed_gaf(tmp_path, refused, obo, lines, number, parts):
    path = write_gaf(tmp_path / "a.gaf", *lines)
    sentence = refused(lambda: gene_sets(obo, read_gaf(path)))
    assert sentence.startswith(f"{path}, line {number}: expected " if number else f"{path}: expected ")
    assert "; " in sentence
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize("read", [read_obo, read_gaf])
def test_unreadable_files(tmp_path, refused, read):
    whole = gzip.compress((OBO if read is read_obo else GAF_HEADER + gaf_line()).encode())
    for name, content, part in (
        ("absent", None, "no such file"),
        ("cut.gz", whole[:-9], "truncated or damaged"),
        ("plain.gz", b"x: y\n", "expected gzip data"),
        ("binary", b"\x89HDF\0\0", "binary data"),
        ("latin", b"x: \xe9\n", "UTF-8"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        sentence = refused(read, tmp_path / name)
        assert sentence.startswith(str(tmp_path / name))
        assert part in sentence


def test_an_edge_of_a_stranger_is_refused():
    with pytest.raises(UserError, match="without a term C"):
        Ontology({"A": "a"}, [("C", "is_a", "A")])


def test_closure_of_a_long_chain():
    n = 400
    names = [f"T:{i:03d}" for i in range(n)]
    closure = Ontology(
        dict.fromkeys(names, "x"), [(names[i + 1], "is_a", names[i]) for i in range(n - 1)]
    ).closure()
    np.testing.assert_array_equal(closure.toarray(), np.tril(np.ones((n, n), bool), -1))
