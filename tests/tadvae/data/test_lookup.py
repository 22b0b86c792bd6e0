"""One look-up for settings and questions: whatever convert accepted, and genes under any name."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.data.lookup import Lookup
from tadvae.data.splits import TEST, SplitConfig, split_groups
from tadvae.genes.names import GeneNames
from tadvae.genes.reference import GeneReference
from tadvae.store.labels import parse_labels
from tadvae.store.reader import Store
from tadvae.store.spec import DatasetSpec

H2AZ1, JUN, KMT2B, KMT2D = "ENSG00000164032", "ENSG00000177606", "ENSG00000272333", "ENSG00000167548"


@pytest.fixture(scope="module")
def genes():
    files = [{"H2AFZ": H2AZ1, "MLL": KMT2D, "GFP1": "GFP1"}, {"MLL": KMT2B, "JUN.1": JUN}]
    return GeneNames(GeneReference.load("human"), [H2AZ1, JUN, KMT2B, KMT2D, "GFP1"], files)


def test_genes_by_any_name(genes):
    names = ["H2AFZ", "H2AZ1", f"{H2AZ1}.15", "JUN.1", "GFP1", "TP53", "", "NaN"]
    assert genes.keys(names) == [H2AZ1, H2AZ1, H2AZ1, JUN, "GFP1", None, None, None]


def test_the_asked_datasets_name_counts(genes):
    assert [genes.keys(["MLL"], i) for i in (None, 0, 1)] == [[None], [KMT2D], [KMT2B]]


@pytest.fixture(scope="module")
def lookup(genes):
    targets = {"H2AZ1": H2AZ1, "JUN": JUN, "(+)-JQ1": None, "A+B": None, "A": None, "AP1": None, "DMSO": None}
    labels = [
        {
            "ctrl": (),
            "H2AFZ": ("H2AZ1",),
            "g1": ("JUN",),
            "g1_x": ("JUN",),
            "g1|H2AFZ": ("H2AZ1", "JUN"),
            "DMSO": ("DMSO",),
        },
        {"DMSO": (), "A+B": ("A+B",), "g1_x": ("A",), "mine": ("JUN",)},
    ]
    return Lookup(targets, labels, ["|", None], genes)


@pytest.mark.parametrize(
    ("asked", "dataset", "targets", "label"),
    [
        ("H2AFZ", 0, {"H2AZ1"}, "H2AFZ"),
        ("H2AZ1+H2AFZ", 0, {"H2AZ1"}, "H2AZ1"),
        (f"JUN + {H2AZ1}.3", 1, {"H2AZ1", "JUN"}, f"{H2AZ1}.3+JUN"),
        ("JUN+ctrl", 0, {"JUN"}, "JUN"),
        ("control|JUN", 0, {"JUN"}, "JUN"),
        ("DMSO+JUN", 1, {"JUN"}, "JUN"),
        ("DMSO+JUN", 0, {"DMSO", "JUN"}, "DMSO+JUN"),
        ("g1|H2AFZ", 0, {"H2AZ1", "JUN"}, "H2AFZ+g1"),
        ("g1_x", 0, {"JUN"}, "g1_x"),
        ("g1_x", 1, {"A"}, "g1_x"),
        ("mine+H2AFZ", 0, {"H2AZ1", "JUN"}, "H2AFZ+mine"),
        ("(+)-JQ1", 0, {"(+)-JQ1"}, "(+)-JQ1"),
        ("JUN+(+)-JQ1", 0, {"(+)-JQ1", "JUN"}, "(+)-JQ1+JUN"),
        ("A+B", 0, {"A+B"}, "A+B"),
        ("JUN+A+B", 1, {"A+B", "JUN"}, "A+B+JUN"),
        (["A+B", "ctrl", "JUN"], 1, {"A+B", "JUN"}, "A+B+JUN"),
        (("A", "JUN"), 1, {"A", "JUN"}, "A+JUN"),
        (np.array(["A", "JUN"]), 1, {"A", "JUN"}, "A+JUN"),
        ("AP1", 0, {"AP1"}, "AP1"),  # a drug of this name is meant, not the gene JUN
        ("ctrl", 0, set(), "control"),
        ("DMSO", 1, set(), "control"),
    ],
)
def test_perturbations(lookup, asked, dataset, targets, label):
    found = lookup.find(asked, dataset)
    assert {part.target for part in found.parts} == targets
    assert len(found.parts) == len(targets)
    assert found.label == label


def test_a_gene_that_is_no_target_and_a_name_of_nothing(lookup):
    gene, nothing = lookup.find("GFP1+NOBODY", 0).parts
    assert (gene.known, gene.target, gene.gene) == (True, None, "GFP1")
    assert (nothing.known, nothing.name) == (False, "NOBODY")


names = st.one_of(
    st.sampled_from(["KLF1", "JUN", "AP1", "HLA-A", "(+)-JQ1", "A+B", "Na", "1", "ctrl"]),
    st.text("AB1+|-_ ()[].", min_size=1, max_size=5),
)


@settings(max_examples=60)
@given(st.lists(names, min_size=1, max_size=6), st.sampled_from([None, "+", "|", "-", "_"]), st.randoms())
def test_every_label_that_was_accepted_is_found(labels, separator, random):
    spec = DatasetSpec(
        name="s",
        path="s.h5ad",
        perturbation={"column": "c", "control": "ctrl", "separator": separator, "missing": "drop"},
    )
    human = GeneReference.load("human")
    good = []
    for label in labels:
        try:
            parse_labels(pd.Series(["ctrl", label], name="c"), spec, "s", human.is_official)
            good.append(label)
        except UserError:
            pass
    parsed = parse_labels(pd.Series(["ctrl", *good], name="c"), spec, "s", human.is_official)
    targets = dict.fromkeys((name for item in parsed.targets for name in item), None)
    lookup = Lookup(targets, [parsed.spelt], [separator], GeneNames(human, [], [{}]))
    for label, item, kept in zip(["ctrl", *good], parsed.targets, parsed.keep, strict=True):
        joined = ["ctrl", label.strip()]
        random.shuffle(joined)
        for asked in (label, [label, "ctrl"], f" {label} ", "+".join(joined)):
            if kept:
                assert sorted(part.target for part in lookup.find(asked, 0).parts) == list(item), asked


@pytest.mark.parametrize(
    ("test", "held"),
    [
        (["H2AFZ"], {"H2AZ1"}),
        (["FOS+ctrl"], {"FOS"}),
        (["H2AZ1"], {"H2AZ1"}),
        ([f"{H2AZ1}.7", "g1+ctrl"], {"H2AZ1", "g1"}),
        (["H2AFZ + JUN"], {"H2AZ1+JUN"}),
        (["(+)-JQ1"], {"(+)-JQ1"}),
    ],
)
def test_a_split_accepts_the_names_that_predict_accepts(spelt_store, test, held):
    groups = split_groups(spelt_store, SplitConfig(kind="explicit", test=test))
    assert set(groups["perturbation_name"][groups["part"] == TEST]) == held


@pytest.mark.parametrize(
    ("test", "words"),
    [
        (["ctrl"], ["'ctrl' is the control"]),
        (["control"], ["'control' is the control"]),
        (["KLF1"], ["no perturbation, context or dataset called KLF1"]),  # a gene, but no perturbation
        (["H2AFZ+NOBODY"], ["called H2AFZ+NOBODY"]),
    ],
)
def test_a_split_refuses(spelt_store, refused, test, words):
    sentence = refused(split_groups, spelt_store, SplitConfig(kind="explicit", test=test))
    for word in words:
        assert word in sentence


def test_a_split_by_number():
    assert SplitConfig(kind="explicit", test=[1, 2.0, True]).test == ["1", "2", "True"]


def test_a_store_of_an_earlier_version(spelt_store, tmp_path):
    """Without the names of the files: today's names are found."""
    shutil.copytree(str(spelt_store.folder), tmp_path / "earlier")
    (tmp_path / "earlier/labels.parquet").unlink()
    (tmp_path / "earlier/SHA256SUMS").unlink()
    for path in (tmp_path / "earlier/datasets").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(["var_name"]), path)
    store = Store.open(str(tmp_path / "earlier"))
    assert store.labels == [{}, {}]
    assert store.panel(0)["var_name"].tolist() == store.panel(0)["source"].tolist()
    lookup = Lookup.of_store(store)
    for asked in ("H2AFZ+ctrl", "H2AZ1", "control+H2AZ1"):
        assert [part.target for part in lookup.find(asked, 0).parts] == ["H2AZ1"]


def test_names_of_genes_in_the_vocabulary(small_vocabulary):
    first, second = small_vocabulary.datasets
    named = replace(
        small_vocabulary,
        datasets=[
            replace(first, names=[f"a{g}" if g != 5 else "same" for g in first.genes]),
            replace(second, names=[f"b{g}" if g != 5 else "same" for g in second.genes]),
        ],
    )
    genes = np.array([0, 4, 5, 11])
    assert named.names(genes, 0) == ["a0", "a4", "same", "S11"]
    assert named.names(genes, 1) == ["G0", "b4", "same", "S11"]
    assert named.names(genes) == ["a0", "S4", "same", "S11"]
    assert small_vocabulary.names(genes, 0) == small_vocabulary.symbols(genes)
    assert named.gene_names.keys(["a4", "b4", "G4", "a9"]) == ["G4", "G4", "G4", None]
