"""Columns that are not genes are found by their kind or their name, and no gene is taken for one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.genes.features import other_features
from tadvae.genes.harmonise import harmonise
from tadvae.genes.reference import GeneReference

HUMAN, NONE = GeneReference.load("human"), GeneReference.load("none")
NAMES = [name for name in (*HUMAN._by_symbol, *HUMAN._by_alias, *HUMAN._by_id, *HUMAN._by_alternate) if name]


def test_no_known_gene_looks_like_another_feature():
    """Neither symbols, aliases nor ids, also where no reference knows them."""
    assert not any(other_features(NAMES, None, HUMAN))
    assert not any(other_features(NAMES, None, NONE))


@pytest.mark.parametrize("name", ["Hmi_g123", "jg12.t1", "LOC_Os01g01010", "AT1G01010", "sgk1", "G1", "x_g1"])
def test_names_of_genes_elsewhere(name):
    assert other_features([name, "G2"], None, NONE) == [None, None]


JOINED = ["Cas13d", "dCas9-KRAB", "SpCas9", "Cas12a", "RfxCas13d", "CasRx", "GRCh38_dCas9", "lentiCas9-Blast"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("nuclease", JOINED),
        ("antibody", ["CD3_TotalSeqB", "CD4_TotalSeq-C", "CD45RA_TotalSeqA-1"]),
        ("guide combination", ["A_g1:B_g2", "NT_g3:STAT1_g1", "KLF1_sgRNA2|JUN_sgRNA1", "x_g1:y_g1:z_g2"]),
        (
            "guide",
            ["KLF1_g1", "KLF1-sgRNA2", "sgKLF1", "sgKLF1_2", "NTC_g1", "non-targeting_g12", "guide_JUN_1"],
        ),
    ],
)
@pytest.mark.parametrize("reference", [HUMAN, NONE])
def test_nucleases_and_guides(kind, names, reference):
    panel = ["KLF1", "JUN", *names]
    assert other_features(panel, None, reference) == [None, None, *[kind] * len(names)]


GENE_TYPES = st.sampled_from(["Gene Expression", "gene expression", "GEX", "RNA"])
OTHER_TYPES = st.sampled_from(["Antibody Capture", "CRISPR Guide Capture", "Peaks", "ADT", "mine"])


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.booleans(), GENE_TYPES, OTHER_TYPES), min_size=1), st.data()
)
def test_kinds_decide(columns, data):
    """Everything but genes goes where a column says it is a gene; a missing kind is a gene's."""
    names = [name for name, *_ in columns]
    kinds = [gene if is_gene else other for _, is_gene, gene, other in columns]
    missing = data.draw(st.sampled_from([None, np.nan, ""]))
    found = other_features([*names, "TP53", "MYC"], [*kinds, "Gene Expression", missing], HUMAN)
    assert found == [*(None if is_gene else other for _, is_gene, _, other in columns), None, None]


def test_kinds_of_which_none_is_a_gene():
    """Biotypes in this column are no reason to drop a gene; peaks and antibodies are."""
    assert other_features(["A", "B"], ["protein_coding", "lncRNA"], NONE) == [None, None]
    assert other_features(["A", "B"], ["Antibody Capture", "x"], NONE) == ["Antibody Capture", None]


@pytest.mark.parametrize("prefix", ["GRCh38_", "hg38_", "hg19___", "GRCh38-2020-A_", "mm10_"])
def test_a_prefix_is_named_with_its_fix(refused, prefix):
    names = [prefix + name for name in ("TP53", "KLF1", "MYC", "JUN", "FOS", "GATA1", "MT-ND1", "x")]
    sentence = refused(harmonise, names, HUMAN, where="it")
    assert f"begin with '{prefix}'" in sentence
    assert f"removeprefix('{prefix}')" in sentence


def test_two_genomes_in_one_panel(refused):
    names = [f"GRCh38_{name}" for name in ("TP53", "KLF1", "MYC", "JUN")] + ["mm10___Trp53", "mm10___Myc"]
    sentence = refused(harmonise, names, HUMAN, where="it")
    assert "removeprefix('GRCh38_')" in sentence
    assert "'mm10___' are genes of another genome" in sentence


def test_unknown_names_with_a_common_beginning(refused):
    sentence = refused(harmonise, [f"gene_{i}" for i in range(9)], HUMAN, where="it")
    assert "prefix" not in sentence
    assert "right column of var" in sentence
