"""Pathways on real data: GO of 2022-07-01 and NetActivity's published selection and weights."""

from functools import partial
from importlib import resources

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from tadvae.cells.normalize import normalize
from tadvae.cells.ragged import Cells
from tadvae.genes.harmonise import canonical_targets, harmonise
from tadvae.genes.reference import GeneReference
from tadvae.nn.edges import EdgeTable
from tadvae.nn.packed import PackedCells
from tadvae.nn.strategies.base import PathwayConfig, pathway_layer
from tadvae.pathway_selection.annotations import Annotations, gene_sets
from tadvae.pathway_selection.ontology import Ontology, relations
from tadvae.pathway_selection.selection import PRESETS, SelectionConfig, select
from tadvae.pathways.default import default_pathways, packaged
from tadvae.pathways.measured import Measured
from tadvae.pathways.membership import membership
from tadvae.pathways.read import read_pathways
from tadvae.pathways.sets import PathwaySets
from tadvae.pathways.table import is_ancestor

pytestmark = pytest.mark.slow

CLOSURE = "go_bp_human_2022-07-01_closure.tsv.gz"
WEIGHTS = "netactivity_selected_1518_genesets_weights.tsv.gz"


@pytest.fixture(scope="module")
def pathways(data):
    return data / "pathways"


@pytest.fixture(scope="module")
def table(pathways):
    return pd.read_csv(pathways / CLOSURE, sep="\t", keep_default_na=False)


@pytest.fixture(scope="module")
def ontology(pathways) -> Ontology:
    edges = pd.read_csv(pathways / "go_bp_dag_parents_2022-07-01.tsv.gz", sep="\t")
    edges = edges[edges["parent"] != "all"]  # the package's node above the root
    terms = pd.read_csv(pathways / "go_bp_terms_2022-07-01.tsv.gz", sep="\t")
    relation = edges["rel"].replace("isa", "is_a").str.replace(" ", "_")
    named = dict(zip(terms["go_id"], terms["term"], strict=True))
    every = sorted({*edges["child"], *edges["parent"], *named})
    return Ontology(
        names={term: named.get(term, term) for term in every},
        edges=list(zip(edges["child"], relation, edges["parent"], strict=True)),
    )


@pytest.fixture(scope="module")
def direct(table) -> Annotations:
    rows = table[table["direct"] == 1]
    return Annotations(rows["symbol"].tolist(), rows["go_id"].tolist())


@pytest.fixture(scope="module")
def human() -> GeneReference:
    return GeneReference.load("human")


@pytest.fixture(scope="module")
def published(pathways):
    return pd.read_csv(pathways / WEIGHTS, sep="\t", keep_default_na=False)


@pytest.fixture(scope="module")
def gtex(pathways, human) -> Measured:
    """The 8,758 genes that NetActivity was trained on."""
    names = (pathways / "netactivity_input_genes_8758_ensembl.txt").read_text().split()
    resolve = partial(canonical_targets, reference=human)
    return Measured(["GTEx"], resolve, [[key for key in resolve(names) if key is not None]])


def test_netactivity_terms_are_recovered(pathways, published, gtex, capsys):
    """Recall cannot be whole: their annotations are of another day, their KEGG sets took part, and a
    replicability filter came after (which is what precision lacks)."""
    wanted = {key for key in published["gene_set"] if key.startswith("GO:")}
    assert len(wanted) == 1485
    selection = select(read_pathways(pathways / CLOSURE), PRESETS["netactivity"], measured=gtex)
    found = wanted & set(selection.sets.ids)
    with capsys.disabled():
        print(
            f"\nNetActivity: {len(found):,} of {len(wanted):,} published GO terms recovered, "
            f"recall {len(found) / len(wanted):.1%}, precision {len(found) / len(selection.sets):.1%} "
            f"({len(selection.sets):,} selected)"
        )
        for report in selection.reports:
            print(f"  {report}")
    assert len(found) >= 1371
    assert len(found) / len(selection.sets) > 0.7


def test_closure_over_the_dag_is_the_published_closure(table, ontology, direct):
    """Every (term, gene) pair of GO.db's offspring tables, from direct annotations and parents alone."""
    sets = gene_sets(ontology, direct, relations(regulates=True))
    own = pd.DataFrame({"go_id": sets.ids, "symbol": sets.genes}).explode("symbol")
    both = own.merge(table[["go_id", "symbol"]])
    assert len(own) == len(both) == len(table) == 1_461_602


def test_ancestors_are_removed_from_the_full_closure(ontology, direct, capsys):
    closed = relations(regulates=False)
    config = SelectionConfig(count="annotated", max_genes=299, remove_ancestors=True, regulates=False)
    ancestry = partial(ontology.ancestry, relations=closed)
    selection = select(gene_sets(ontology, direct, closed), config, ancestry=ancestry)
    assert selection.reports[-1].filter == "ancestors"
    assert sum(selection.reports[-1].removed.values()) > 500
    assert not is_ancestor(ancestry(selection.sets.ids)).any()
    with capsys.disabled():
        print(f"\n{selection.reports[-1]}")


def test_the_packaged_default_comes_from_these_tables(pathways, ontology, direct):
    """The shared tables come from the same two packages: the same command makes the same pathways of them."""
    with resources.files("tadvae").joinpath("resources", "genes_human.parquet").open("rb") as file:
        genes = pd.read_parquet(file, columns=["entrez", "symbol", "gene_type"])
    entrez = pd.read_csv(pathways / "go_bp_human_genes_id_map.tsv.gz", sep="\t", keep_default_na=False)
    coding = genes[genes["gene_type"] == "protein-coding"].merge(entrez, on="entrez")
    official = dict(zip(coding["symbol_y"], coding["symbol_x"], strict=True))  # theirs, and the gene table's
    rows = [
        (official[gene], term)
        for gene, term in zip(direct.genes, direct.terms, strict=True)
        if gene in official
    ]
    closed = relations(PRESETS["packaged"].regulates)
    sets = gene_sets(ontology, Annotations([g for g, _ in rows], [t for _, t in rows]), closed)
    selection = select(sets, PRESETS["packaged"])
    default = packaged()
    assert selection.sets.ids == default.ids
    assert [set(genes) for genes in selection.sets.genes] == [set(genes) for genes in default.symbols]
    found = ontology.ancestry(default.ids, closed)
    assert (found != default.ancestry(default.ids)).nnz == 0


SEEN = {
    "datlinger21_jurkat_crispr_tcr": 700,
    "kang18_pbmc_ifnb": 1800,
    "mcfaline23_gbm_crispri": 300,
    "norman19_k562_crispra": 160,
    "papalexi21_thp1_eccite": 80,
}
"""The least number of packaged pathways that each screen gets. Of NetActivity's terms the last two see
one and none."""


def test_every_screen_sees_pathways(data, human, published, capsys):
    theirs = published.groupby("gene_set")["ensembl"].agg(set)
    for name, least in SEEN.items():
        path = data / "screens" / f"{name}.h5ad"
        screen = ad.read_h5ad(path, backed="r")
        genes = sorted(
            harmonise(screen.var_names, human, where=str(path), symbols=screen.var.get("symbol"))["gene"]
        )
        screen.file.close()
        panel = np.arange(len(genes))
        sets = default_pathways(genes, [panel], human)
        kept = membership(sets, genes, partial(canonical_targets, reference=human), [panel])
        seen_of_theirs = sum(len(members & set(genes)) >= 5 for members in theirs)
        with capsys.disabled():
            print(
                f"\n{name}: {len(genes):,} genes see {kept.n_pathways:,} packaged pathways, and "
                f"{seen_of_theirs:,} of NetActivity's 1,518"
            )
        assert kept.n_pathways == len(sets) >= least
        if len(genes) < 500:
            assert kept.n_pathways > 10 * seen_of_theirs


@pytest.fixture(scope="module")
def linear(published):
    """NetActivity's GTEx weights in the ``linear`` layer; the layer, its genes and its sets."""
    genes = sorted(set(published["ensembl"]))
    sets = read_sets(published)
    mask = membership(sets, genes, lambda names: list(names), min_measured=1)
    assert (mask.n_pathways, len(mask.pathway)) == (1518, 25737)
    layer = pathway_layer(PathwayConfig(masking="linear"), EdgeTable(mask, len(genes)))
    by_ends = published.set_index(["gene_set", "ensembl"])["weight_gtex"]
    ends = pd.MultiIndex.from_arrays(
        [
            np.array(mask.pathway_ids)[layer.edges.pathway.numpy()],
            np.array(genes)[layer.edges.gene.numpy()],
        ]
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(by_ends.loc[ends].to_numpy(np.float32)))
    return layer, genes, mask.pathway_ids


def read_sets(published):
    groups = published.groupby("gene_set", sort=True)
    return PathwaySets(
        [key for key, _ in groups],
        [part["term"].iloc[0] for _, part in groups],
        [list(p["ensembl"]) for _, p in groups],
    )


def pbmc_values(data, human, genes) -> sparse.csr_matrix:
    """Log-normalised PBMC cells on the layer's genes; one that 10x did not measure stays 0, as theirs."""
    pbmc = ad.read_h5ad(data / "cells" / "pbmc4k_10x.h5ad")
    found = harmonise(pbmc.var_names, human, where="pbmc", symbols=pbmc.var.get("symbol"))["gene"]
    counts = sparse.csr_matrix(pbmc.X)
    library = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    counts.data = normalize(counts.data, counts.indices, counts.indptr, library, "cp10k")
    position = {gene: i for i, gene in enumerate(genes)}
    at = found.map(position)
    kept = np.flatnonzero(at.notna())
    assert len(kept) > 0.95 * len(genes)
    place = sparse.csr_matrix(
        (np.ones(len(kept), np.float32), (kept, at.iloc[kept].astype(int))),
        shape=(counts.shape[1], len(genes)),
    )
    values = (counts @ place).tocsr()
    values.sort_indices()
    return values


def test_netactivity_weights_score_pbmc_cells(data, human, published, linear):
    """The layer equals ``X W`` in float64, for log values and for standardised ones (NetActivity's input)."""
    layer, genes, ids = linear
    values = pbmc_values(data, human, genes)
    assert values.shape[0] == 2170
    weights = np.zeros((len(genes), len(ids)))
    gene_at = {gene: i for i, gene in enumerate(genes)}
    set_at = {key: i for i, key in enumerate(ids)}
    for row in published.itertuples():
        weights[gene_at[row.ensembl], set_at[row.gene_set]] = row.weight_gtex
    dense = values[:200].toarray().astype(np.float64)
    deviation = values.toarray().std(axis=0)
    standard = np.divide(
        dense - values.mean(axis=0), deviation, out=np.zeros_like(dense), where=deviation > 0
    )
    standard = sparse.csr_matrix(np.asarray(standard, np.float32))
    for cells in (values, standard):
        expected = cells.astype(np.float64) @ weights  # (n, 1518)
        found = []
        for start in range(0, cells.shape[0], 500):
            part = cells[start : start + 500]
            packed = Cells(
                part.indices.astype(np.int64), part.data.astype(np.float32), part.indptr.astype(np.int64),
                np.full(part.shape[0], np.nan),
            )  # fmt: skip
            with torch.no_grad():
                found.append(layer(PackedCells.of(packed)).numpy())
        found = np.concatenate(found)
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-4)
        assert found.std(axis=0).min() > 0  # every set scores these cells
