"""Filters of pathways: what they promise, on random sets and random ontologies."""

import json
from itertools import combinations

import networkx
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.genes.reference import GeneReference
from tadvae.pathway_selection import redundancy
from tadvae.pathway_selection.annotations import Annotations, gene_sets
from tadvae.pathway_selection.ontology import Ontology, relations
from tadvae.pathway_selection.provenance import provenance, source
from tadvae.pathway_selection.redundancy import jaccard_survivors, overlap_survivors
from tadvae.pathway_selection.selection import PRESETS, SelectionConfig, member_matrix, select
from tadvae.pathways.measured import Measured
from tadvae.pathways.read import read_pathways
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.table import PROVENANCE, PathwayTable, read_parquet

GENES = "ABCDEFGHIJKL"


@st.composite
def cases(draw):
    """Random ontology, annotations, panels and config."""
    n = draw(st.integers(2, 14))
    names = draw(st.permutations([f"T:{i:02d}" for i in range(n)]))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=20))
    kinds = draw(st.lists(st.sampled_from(relations(True)), min_size=len(chosen), max_size=len(chosen)))
    edges = [(names[i], kind, names[j]) for (i, j), kind in zip(chosen, kinds, strict=True)]
    rows = draw(st.lists(st.tuples(st.sampled_from(names), st.sampled_from(GENES)), min_size=4, max_size=60))
    panels = draw(st.lists(st.sets(st.sampled_from(GENES), min_size=1), min_size=1, max_size=3))
    config = SelectionConfig(
        count=draw(st.sampled_from(["annotated", "measured"])),
        min_genes=draw(st.integers(1, 3)),
        max_genes=draw(st.sampled_from([None, 4, 7])),
        redundancy=draw(st.sampled_from(["jaccard", "overlap", "none"])),
        bound=draw(st.sampled_from([0.25, 0.3, 0.5, 0.6])),
        min_measured=draw(st.sampled_from([None, 1, 2])),
        remove_ancestors=draw(st.booleans()),
        regulates=draw(st.booleans()),
        min_replicability=draw(st.sampled_from([None, 0.4])),
    )
    return names, edges, rows, panels, config


def score(sets: PathwaySets) -> list[float]:
    """A replicability that depends on the set alone."""
    return [(sum(map(ord, key)) % 10) / 10 for key in sets.ids]


def select_case(case, shuffle=None):
    names, edges, rows, panels, config = case
    if shuffle is not None:
        edges, rows, names = (shuffle.sample(list(part), len(part)) for part in (edges, rows, names))
    ontology = Ontology(dict.fromkeys(names, "x"), edges)
    closed = relations(config.regulates)
    sets = gene_sets(ontology, Annotations([g for _, g in rows], [t for t, _ in rows]), closed)
    if shuffle is not None:
        order = shuffle.sample(range(len(sets)), len(sets))
        genes = [shuffle.sample(sets.genes[i], len(sets.genes[i])) for i in order]
        sets = PathwaySets([sets.ids[i] for i in order], [sets.names[i] for i in order], genes, sets.source)
    measured = Measured([str(i) for i in range(len(panels))], lambda given: list(given), panels)

    def ancestry(terms):
        return ontology.ancestry(terms, closed)

    return sets, select(sets, config, measured=measured, ancestry=ancestry, replicability=score)


def outcome(case, shuffle=None):
    """The input and the selection, or the sentence that refuses it."""
    try:
        return select_case(case, shuffle)
    except UserError as error:
        return None, str(error)


def jaccard_distance(a: set, b: set) -> float:
    return (len(a | b) - len(a & b)) / len(a | b)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_what_a_selection_promises(case):
    _, edges, _, panels, config = case
    sets, selection = outcome(case)
    if sets is None:
        assert "none after" in selection
        return
    result = selection.sets
    given_genes = dict(zip(sets.ids, sets.genes, strict=True))
    union = set().union(*panels)
    assert result.ids == sorted(result.ids)
    for key, genes in zip(result.ids, result.genes, strict=True):
        expected = set(given_genes[key])
        assert set(genes) == (expected & union if config.count == "measured" else expected)
        assert config.min_genes <= len(genes) <= (config.max_genes or 99)
        if config.min_measured is not None:
            assert max(len(set(genes) & panel) for panel in panels) >= config.min_measured
        if config.min_replicability is not None:
            assert selection.replicability[key] > config.min_replicability
    for a, b in combinations(map(set, result.genes), 2):
        if config.redundancy == "jaccard":
            assert jaccard_distance(a, b) > config.bound
        if config.redundancy == "overlap":
            assert len(a & b) <= config.bound * min(len(a), len(b))
    if config.remove_ancestors:
        graph = networkx.DiGraph([(c, p) for c, kind, p in edges if kind in relations(config.regulates)])
        graph.add_nodes_from(result.ids)
        for term in result.ids:
            assert not networkx.descendants(graph, term) & set(result.ids)
    # the reports add up
    total = len(sets)
    for report in selection.reports:
        total -= sum(report.removed.values())
        assert report.left == total
    assert total == len(result)


@settings(max_examples=80, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_order_of_input_is_irrelevant(case, shuffle):
    (sets, selection), (other_sets, other) = outcome(case), outcome(case, shuffle)
    if sets is None or other_sets is None:
        assert selection == other
        return
    assert selection.sets.ids == other.sets.ids
    assert list(map(set, selection.sets.genes)) == list(map(set, other.sets.genes))
    assert selection.reports == other.reports


@st.composite
def members(draw):
    sets = draw(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=8), min_size=1, max_size=14))
    return sets, member_matrix(
        PathwaySets([str(i) for i in range(len(sets))], [""] * len(sets), [list(map(str, s)) for s in sets])
    )


@settings(max_examples=100, deadline=None)
@given(members(), st.sampled_from([0.2, 0.3, 0.5, 0.75]))
def test_jaccard_clusters_by_definition(case, cut):
    """Every merge of complete linkage, done naively: agrees wherever no two merges are equally high."""
    sets, matrix = case
    keep, _ = jaccard_survivors(matrix, cut)
    survivors = [s for s, k in zip(sets, keep, strict=True) if k]
    for a, b in combinations(survivors, 2):
        assert jaccard_distance(a, b) > cut
    kept = list(range(len(sets)))
    while True:
        clusters, tied = naive_complete_linkage([sets[i] for i in kept], cut)
        if tied:
            return
        best = sorted(min(c, key=lambda j: (-len(sets[kept[j]]), kept[j])) for c in clusters)
        if len(best) == len(kept):
            break
        kept = [kept[j] for j in best]
    assert np.flatnonzero(keep).tolist() == kept


def naive_complete_linkage(sets, cut):
    clusters = [[i] for i in range(len(sets))]
    while True:
        heights = {
            (i, j): max(jaccard_distance(sets[a], sets[b]) for a in clusters[i] for b in clusters[j])
            for i, j in combinations(range(len(clusters)), 2)
        }
        low = min(heights.values(), default=2.0)
        if low > cut:
            return clusters, False
        lowest = [pair for pair, height in heights.items() if height == low]
        if len(lowest) > 1:
            return clusters, True
        ((i, j),) = lowest
        clusters[i] += clusters[j]
        del clusters[j]


@settings(max_examples=100, deadline=None)
@given(members(), st.sampled_from([0.3, 0.5, 0.75]))
def test_overlap_by_definition(case, bound):
    sets, matrix = case
    kept: list[int] = []
    for i in sorted(range(len(sets)), key=lambda i: (-len(sets[i]), i)):
        if all(len(sets[i] & sets[j]) <= bound * len(sets[i]) for j in kept):
            kept.append(i)
    assert np.flatnonzero(overlap_survivors(matrix, bound)).tolist() == sorted(kept)


@pytest.mark.parametrize("rows", [1, 7, 32])
def test_blocks_of_rows_change_nothing(monkeypatch, rows):
    """Each of 20 sets has two neighbours far away in the order, which differ from it by a gene."""
    rng = np.random.default_rng(0)
    dense = np.tile(rng.random((20, 60)) < 0.2, (3, 1))
    dense[20:40, :30] ^= np.eye(20, 30, dtype=bool)
    dense[40:, 30:] ^= np.eye(20, 30, dtype=bool)
    matrix = sparse.csr_matrix(dense.astype(np.int64))
    expected = jaccard_survivors(matrix)[0], overlap_survivors(matrix)
    assert expected[0].sum() == 20
    monkeypatch.setattr(redundancy, "ROWS_AT_ONCE", rows)
    np.testing.assert_array_equal(jaccard_survivors(matrix)[0], expected[0])
    np.testing.assert_array_equal(overlap_survivors(matrix), expected[1])
    assert 5 < expected[1].sum() <= 20


def test_half_in_common_is_not_more_than_half():
    sets = PathwaySets(["a", "b", "c"], [""] * 3, [list("ABCD"), list("CDEF"), list("BCDE")])
    overlap = SelectionConfig(count="annotated", min_genes=1, redundancy="overlap")
    assert select(sets, overlap).sets.ids == ["a", "b"]  # c shares three of four with both
    # Jaccard distance of ABC and AB is 1/3, of ABCD and AB ½: a cut at ½ merges at ½ too
    pair = PathwaySets(["a", "b"], [""] * 2, [list("ABCD"), list("AB")])
    jaccard = SelectionConfig(count="annotated", min_genes=1)
    assert select(pair, jaccard).sets.ids == ["a"]
    assert select(pair, jaccard.model_copy(update={"bound": 0.49})).sets.ids == ["a", "b"]


def test_equally_large_sets_are_decided_by_id():
    sets = PathwaySets(["T:2", "T:1"], [""] * 2, [list("ABCD"), list("ABCE")])
    for redundant in ("jaccard", "overlap"):
        config = SelectionConfig(count="annotated", min_genes=1, redundancy=redundant)
        assert select(sets, config).sets.ids == ["T:1"]


def test_clusters_of_a_chain_are_cut_by_complete_linkage():
    """Neighbours are near, the ends are not: single linkage would make one cluster of it."""
    sets = PathwaySets(["a", "b", "c", "d"], [""] * 4, ["ABCDEF", "BCDEFG", "CDEFGH", "DEFGHI"])
    config = SelectionConfig(count="annotated", min_genes=1, bound=0.3)
    assert select(sets, config).sets.ids == ["a", "c"]


def test_reports_say_how_many_and_why():
    sets = PathwaySets(["a", "b", "c", "d"], [""] * 4, ["ABCDE", "ABCD", "XY", "ABCDEFGHIJKL"])
    measured = Measured(["one", "two"], lambda names: list(names), ["AB", "XYZ"])
    config = SelectionConfig(
        count="annotated", min_genes=3, max_genes=10, min_measured=2, min_replicability=0.5
    )
    with pytest.raises(
        UserError, match=r"none after replicability: 1 removed \(1 with a replicability of 0.5 or less"
    ):
        select(sets, config, measured=measured, replicability=lambda sets: [0.5])
    selection = select(sets, config, measured=measured, replicability=lambda sets: [0.51])
    assert [str(report) for report in selection.reports] == [
        "size: 2 removed (1 with fewer than 3 genes; 1 with more than 10 genes), 2 left",
        "redundancy: 1 removed (1 in a cluster of Jaccard distance 0.5 or less with a larger set, or one as "
        "large with a lower id, in 2 rounds), 1 left",
        "measured: 0 removed, 1 left",
        "replicability: 0 removed, 1 left",
    ]
    assert selection.replicability == {"a": 0.51}


def test_a_replicability_that_is_not_known_does_not_pass():
    sets = PathwaySets(["a", "b"], [""] * 2, ["ABCD", "EFGH"])
    config = SelectionConfig(count="annotated", min_genes=1, min_replicability=0.0)
    assert select(sets, config, replicability=lambda sets: [float("nan"), 0.1]).sets.ids == ["b"]


def test_synonyms_count_once():
    sets = PathwaySets(["a", "b"], [""] * 2, [["A", "A-old", "B"], ["C"]])
    keys = {"A": "k1", "A-old": "k1", "B": "k2", "C": None}
    measured = Measured(["one", "two"], lambda names: [keys[n] for n in names], [{"k1", "k2"}, {"k2"}])
    assert measured.counts(sets).tolist() == [[2, 0], [1, 0]]
    restricted = measured.restrict(sets)
    assert (restricted.ids, restricted.genes) == (["a"], [["A", "B"]])


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"min_measured": 5}, "measured genes"),
        ({"min_replicability": 0.7}, "a store to train on"),
        ({"remove_ancestors": True}, "the ontology"),
    ],
)
def test_a_filter_without_what_it_needs(refused, config, part):
    sets = PathwaySets(["a"], [""], ["ABCDEFGHIJKL"], "sets.gmt")
    sentence = refused(select, sets, SelectionConfig(**config))
    assert sentence.startswith("sets.gmt: expected")
    assert part in sentence


def test_presets_are_the_published_ones():
    netactivity, paper = PRESETS["netactivity"], PRESETS["paper"]
    assert netactivity == SelectionConfig()
    assert (netactivity.min_genes, netactivity.max_genes, netactivity.redundancy) == (10, 29, "jaccard")
    assert (netactivity.bound, netactivity.remove_ancestors) == (0.5, False)
    assert (paper.max_genes, paper.min_measured, paper.redundancy, paper.bound) == (29, 5, "overlap", 0.5)
    assert paper.remove_ancestors
    with pytest.raises(UserError, match="max_genes 5 is below min_genes 10"):
        SelectionConfig.parse({"max_genes": 5}, "x")


def human_table() -> PathwayTable:
    sets = PathwaySets(
        ["P:1", "P:2"], ["one", ""], [["TP53", "P53", "ENSG00000141510", "MDM2"], ["MYC", "NOGENE"]], "x.gmt"
    )
    above = sparse.csr_matrix(np.array([[False, True], [False, False]]))
    about = provenance(
        [{"file": "x.gmt", "sha256": "0" * 64}], SelectionConfig(), [], {"evidence": "all"}, "CC BY"
    )
    return PathwayTable.of(sets, GeneReference.load("human"), above, {"P:2": 0.75}, about)


def test_table_names_genes_and_round_trips(tmp_path):
    table = human_table()
    assert table.symbols == [["TP53", "MDM2"], ["MYC", "NOGENE"]]
    assert table.ensembl[0] == ["ENSG00000141510", "ENSG00000135679"]
    assert table.ensembl[1] == ["ENSG00000136997", None]
    assert table.sets().genes[1] == ["MYC", "NOGENE"]
    assert table.sets(["ENSG00000000003", "MT-X"]).genes[1] == ["ENSG00000136997", "NOGENE"]
    assert table.ancestors == [["P:2"], []]
    assert table.ancestry(["P:2", "X", "P:1"]).toarray().nonzero()[0].tolist() == [2]
    table.write(tmp_path / "a.parquet")
    table.write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    found = read_parquet(tmp_path / "a.parquet")
    for name in ("ids", "names", "symbols", "ensembl", "ancestors", "replicability", "provenance"):
        assert getattr(found, name) == getattr(table, name), name
    assert read_pathways(tmp_path / "a.parquet") == table.sets()
    footer = json.loads(pq.read_schema(tmp_path / "a.parquet").metadata[PROVENANCE])
    assert footer["selection"]["max_genes"] == 29
    assert footer["licence"] == "CC BY"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_provenance_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of the standard, FIPS 180
    assert source(tmp_path / "x", "today") == {"file": "x", "release": "today", "sha256": digest}


def test_parquet_that_is_none_of_ours(tmp_path, refused):
    path = tmp_path / "x.parquet"
    assert "no such file" in refused(read_pathways, path)
    whole = tmp_path / "whole.parquet"
    human_table().write(whole)
    table = pq.read_table(whole)
    pq.write_table(table.drop_columns(["ensembl"]), path)
    assert "no column ensembl" in refused(read_pathways, path)
    pq.write_table(table.slice(0, 0), path)
    assert "no pathways" in refused(read_pathways, path)
    for content in (b"", b"P:1\tx\tA\n", whole.read_bytes()[:-20]):
        path.write_bytes(content)
        assert refused(read_pathways, path).startswith(
            f"{path}: expected a Parquet file of `tadvae pathways`"
        )
