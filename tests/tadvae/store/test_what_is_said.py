"""Columns that are not genes at conversion, and what is said about contexts without controls."""

import io

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import sparse

from pipelines.inspect import as_tables, describe
from tadvae.store.conversion import plan_store
from tadvae.store.manifest import Manifest
from tadvae.store.spec import load_spec


@pytest.fixture
def with_others(screen):
    """The screen with antibodies, guides and a nuclease between its genes."""
    names = ["CD3_TotalSeqB", "CD4_TotalSeqB", "G1_g1", "Cas13d", "G1_g1:G2_g2"]
    values = np.full((48, len(names)), 5000, np.float32)
    values[:, 2] = 0.5  # of a guide, and never checked as a count
    others = ad.AnnData(sparse.csr_matrix(values), obs=screen.obs, var=pd.DataFrame(index=names))
    both = ad.concat([screen, others], axis=1, merge="first")
    both.var["feature_types"] = ["Gene Expression"] * 10 + ["Antibody Capture"] * 2 + ["Gene Expression"] * 3
    return both[:, np.random.default_rng(0).permutation(15)].copy()


def test_other_features_are_left_out(with_others, screen, write_spec, convert_here, stored_cells, capsys):
    expected = convert_here(write_spec(screen), "genes")
    capsys.readouterr()
    store = convert_here(write_spec(with_others, layout={"chunk_rows": 11}))
    said = capsys.readouterr().err
    assert said.count("left out") == 1
    assert "2 Antibody Capture, 1 guide, 1 guide combination, 1 nuclease" in said
    (cells, values), (cells_alone, values_alone) = stored_cells(store, 0), stored_cells(expected, 0)
    order = pd.Index(cells["cell_id"]).get_indexer(cells_alone["cell_id"])
    np.testing.assert_array_equal(values.toarray()[order], values_alone.toarray())
    np.testing.assert_array_equal(cells["total_counts"].to_numpy()[order], cells_alone["total_counts"])
    assert sorted(store.panel(0)["source"]) == sorted(screen.var_names)
    (entry,) = store.manifest.datasets
    assert entry.n_genes == 10
    assert entry.left_out == {"Antibody Capture": 2, "guide": 1, "guide combination": 1, "nuclease": 1}
    console = Console(width=200, record=True, file=io.StringIO())
    for table in as_tables(describe(str(store.folder))):
        console.print(table)
    assert "screen0: 2 Antibody Capture, 1 guide" in console.export_text()


def test_all_columns_are_genes_if_the_spec_says_so(with_others, write_spec, convert_here):
    with_others.X = with_others.X.toarray().round()
    store = convert_here(write_spec(with_others, genes={"features": "all"}))
    (entry,) = store.manifest.datasets
    assert (entry.n_genes, entry.left_out) == (15, {})


def test_no_gene_at_all(screen, write_spec, refused):
    screen.var["feature_types"] = "Antibody Capture"
    sentence = refused(lambda: plan_store(load_spec(write_spec(screen))))
    for word in ("'screen0'", "none of its 10 columns is a gene (10 Antibody Capture)", "features: all"):
        assert word in sentence


def test_kinds_of_features_of_raw(with_others, write_spec, convert_here):
    with_others.raw = with_others.copy()
    alone = with_others[:, with_others.var_names.str.fullmatch(r"G\d")].copy()
    store = convert_here(write_spec(alone, counts="raw"))
    assert store.manifest.datasets[0].left_out["Antibody Capture"] == 2


def test_manifests_of_before_are_read(store):
    """Those do not say what was left out or rounded."""
    text = store.manifest.model_dump(mode="json")
    for entry in text["datasets"]:
        del entry["left_out"], entry["rounded"]
    assert Manifest.model_validate(text) == store.manifest


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ({"A549": "G1"}, ["no control cells in context 'A549', which cannot be trained on"]),
        (
            {"A549": "G1", "HeLa": "one"},
            ["no control cells in context 'A549'", "one control cell in context 'HeLa'"],
        ),
        ({"A549": "one"}, ["one control cell in context 'A549'", "every perturbation is compared with"]),
        ({"A549": "control"}, []),
        ({}, []),
    ],
)
def test_contexts_without_controls_are_said(screen, write_spec, capsys, label, words):
    screen.obs["line"] = np.repeat(["K562", "A549", "HeLa"], 16)
    screen.obs["condition"] = screen.obs["condition"].astype(str)
    for line, name in label.items():
        inside = screen.obs_names[screen.obs["line"] == line]
        screen.obs.loc[inside, "condition"] = "G1" if name == "one" else name
        if name == "one":
            screen.obs.loc[inside[0], "condition"] = "control"
    plan_store(load_spec(write_spec(screen)))
    said = capsys.readouterr().err
    for word in words:
        assert said.count(word) == 1
    assert bool(words) == ("'screen0'" in said)


def test_an_atlas_has_only_controls(screen, write_spec, capsys):
    plan_store(load_spec(write_spec(screen, perturbation=None)))
    assert "control" not in capsys.readouterr().err


def test_profiles_have_one_control_each(screen, write_spec, capsys):
    profiles = screen[:4].copy()
    profiles.obs["condition"] = ["control", "G1", "G2", "G3"]
    plan_store(load_spec(write_spec(profiles, kind="profiles")))
    assert "control" not in capsys.readouterr().err
