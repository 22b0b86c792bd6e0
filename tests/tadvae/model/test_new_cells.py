"""What a scanpy user gives to a trained model: the same numbers from every form, or one sentence."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from tadvae import TADVAE
from tadvae.base.filesystem import Location
from tadvae.data.reader import loop
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.ensemble import Ensemble
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.prepare import prepare_training

SMALL = [
    "model.pathway={d_embed: 8, n_heads: 2}",
    "model.causal={n_factors: 3, hidden: 6}",
    "model.decoder={d_gene: 5, hidden: 6}",
    "effects.weight=0",
]
GENES = ["G4", "G0", "G5", "G1", "G6", "G7", "other", "G2"]


@pytest.fixture(scope="module")
def model(small_vocabulary):
    torch.manual_seed(0)
    config = ExperimentConfig.load(None, SMALL)
    vocabulary = replace(small_vocabulary, reference="none")
    return TADVAE(TADVAEModule(config.model, config.loss, vocabulary), vocabulary, config)


@pytest.fixture
def adata():
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.gamma(2.0, 3.0, len(GENES)), (30, len(GENES))).astype(np.float32)
    obs = pd.DataFrame(index=[f"c{i}" for i in range(30)])
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture
def questions(model, adata):
    """Every function that takes an AnnData, as (name, call)."""
    pathway = model.activities(adata.copy()).dropna(axis=1).columns[0]
    return {
        "activities": lambda given, **options: model.activities(given, **options).to_numpy(),
        "latent": lambda given, **options: model.latent(given, **options),
        "contributions": lambda given, **options: model.contributions(given, pathway, **options).to_numpy(),
        "predict": lambda given, values="counts": (
            model.predict("G0", context="K562", dataset="screen", controls=given, values=values).X
        ),
    }


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_backed_gives_the_same_numbers(questions, adata, form, tmp_path):
    adata.X = form(adata.X.toarray())
    adata.write_h5ad(tmp_path / "cells.h5ad")
    for call in questions.values():
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        np.testing.assert_array_equal(call(backed), call(adata.copy()))
        np.testing.assert_array_equal(call(backed[5:9]), call(adata[5:9].copy()))
        backed.file.close()


@pytest.mark.parametrize("dtype", [np.int64, np.uint16, np.float64])
def test_numbers_of_any_type(questions, adata, dtype):
    other = adata.copy()
    other.X = adata.X.astype(dtype)
    for call in questions.values():
        np.testing.assert_array_equal(call(other), call(adata.copy()))


def test_a_missing_layer(questions, adata, refused):
    adata.layers["spliced"] = adata.X.copy()
    adata.raw = adata.copy()
    for name, call in questions.items():
        if name != "predict":
            sentence = refused(call, adata, layer="counts")
            for word in ("no layer 'counts'", "layers: spliced", "adata.raw.to_adata()"):
                assert word in sentence
    adata.X = None
    for call in questions.values():
        assert "it has no X" in refused(call, adata)


WRONG = {
    "raw counts as log1p": ((lambda X: X), "log1p", ["raw count", "values='counts'"]),
    "fractional counts as log1p": ((lambda X: 0.87 * X), "log1p", ["fractional count", "np.rint"]),
    "normalised as log1p": (
        lambda X: 50 * X / X.sum(axis=1, keepdims=True),
        "log1p",
        ["not log-transformed", "sc.pp.log1p"],
    ),
    "log1p as counts": (np.log1p, "counts", ["not a whole number", "values='log1p'"]),
    "fractional counts": ((lambda X: 0.87 * X), "counts", ["fractional counts", "np.rint"]),
    "scaled": ((lambda X: X - X.mean()), "counts", ["negative", "layer=…"]),
    "NaN": ((lambda X: np.where(X.max() == X, np.nan, X)), "counts", ["not a finite number"]),
    "too large": ((lambda X: np.where(X.max() == X, 2.0**40, X)), "counts", ["too large"]),
    "no numbers": ((lambda X: X.astype(str).astype(object)), "counts", ["numbers"]),
    "another word": ((lambda X: X), "raw", ["'counts' or 'log1p'"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_values_that_are_not_what_they_are_said_to_be(questions, adata, refused, case):
    change, values, words = WRONG[case]
    adata.X = change(adata.X.toarray())
    for call in questions.values():
        sentence = refused(call, adata, values=values)
        for word in ("the given AnnData" if case != "another word" else "values=", *words):
            assert word in sentence


def test_log1p_values_are_taken(questions, adata, capsys):
    X = adata.X.toarray()
    adata.X = np.log1p(1e4 * X / X.sum(axis=1, keepdims=True))
    for call in questions.values():
        call(adata, values="log1p")
    assert "nothing in them proves it" not in capsys.readouterr().err


def test_antibodies_and_guides_are_left_out(questions, adata, capsys):
    """Neither the library size nor the genes have them, and it is said; a gene's name makes no gene."""
    others = ad.AnnData(
        sparse.csr_matrix(np.full((30, 4), 5000, np.float32)),
        obs=adata.obs,
        var=pd.DataFrame(index=["G9", "CD4_TotalSeqB", "Cas13d", "G1_g1:G2_g2"]),
    )
    both = ad.concat([adata, others], axis=1, merge="first")
    both.var["feature_types"] = ["Gene Expression"] * 8 + ["Antibody Capture"] * 2 + ["Gene Expression"] * 2
    for call in questions.values():
        expected = call(adata.copy())
        capsys.readouterr()
        np.testing.assert_array_equal(call(both.copy()), expected)
        said = capsys.readouterr().err
        assert said.count("left out") == 1
        assert "2 Antibody Capture, 1 guide combination, 1 nuclease" in said


def test_an_ensemble_says_it_once(model, adata, capsys):
    adata.var["feature_types"] = ["Gene Expression"] * 7 + ["Antibody Capture"]
    options = {"context": "K562", "dataset": "screen", "controls": adata}
    both = Ensemble([model, model]).predict("G0", **options)
    assert capsys.readouterr().err.count("left out") == 1
    np.testing.assert_array_equal(both.X, model.predict("G0", **options).X)
    assert capsys.readouterr().err.count("left out") == 1


def test_a_prefix_of_the_genome(small_vocabulary, refused, adata):
    config = ExperimentConfig.load(None, SMALL)
    names = ["TP53", "KLF1", "CEBPE", "GATA1", "SPI1", "RUNX1", "MYC", "JUN"]
    genes = small_vocabulary.genes.assign(gene=[f"x{i}" for i in range(len(small_vocabulary.genes))])
    vocabulary = replace(small_vocabulary, reference="human", genes=genes)
    model = TADVAE(TADVAEModule(config.model, config.loss, vocabulary), vocabulary, config)
    adata.var_names = [f"GRCh38_{name}" for name in names]
    assert "removeprefix('GRCh38_')" in refused(model.activities, adata)


@pytest.fixture
def by_depth(model):
    """A model whose training cells were normalised by a column of ``obs``."""
    datasets = [replace(entry, total_counts="depth") for entry in model.vocabulary.datasets]
    vocabulary = replace(model.vocabulary, datasets=datasets)
    return TADVAE(TADVAEModule(model.config.model, model.config.loss, vocabulary), vocabulary, model.config)


def test_a_panel_is_normalised_by_the_library_sizes_of_its_training(model, by_depth, adata, tmp_path):
    by_depth.module.load_state_dict(model.module.state_dict())
    adata.obs["depth"] = 10.0 * np.asarray(adata.X.sum(axis=1)).ravel() + 7.0
    logged = adata.copy()
    logged.X = sparse.csr_matrix(np.log1p(adata.X.toarray() / adata.obs["depth"].to_numpy()[:, None] * 1e4))
    expected = model.activities(logged, values="log1p")
    found = by_depth.activities(adata)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.nanmax(np.abs(found - model.activities(adata.copy()))) > 0.1
    adata.write_h5ad(tmp_path / "cells.h5ad")
    by_depth.embed(str(tmp_path / "cells.h5ad"), str(tmp_path / "out.h5ad"))
    embedded = ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_tadvae_activity"]
    np.testing.assert_allclose(embedded, expected, rtol=1e-4, atol=1e-5)


def test_library_sizes_that_are_absent_or_none(by_depth, model, adata, refused, caplog):
    by_depth.module.load_state_dict(model.module.state_dict())
    np.testing.assert_array_equal(by_depth.activities(adata), model.activities(adata.copy()))
    assert "normalised by the library sizes in obs column 'depth'; it is absent here" in caplog.text
    caplog.clear()
    logged = adata.copy()
    logged.X = adata.X.log1p()
    by_depth.latent(logged, values="log1p")  # is not normalised
    assert "library sizes" not in caplog.text
    for wrong in (-1.0, np.nan):
        adata.obs["depth"] = wrong
        assert "obs column 'depth' must hold a library size" in refused(by_depth.activities, adata)


def test_another_panel_is_normalised_by_its_own_sums(by_depth, model, adata, caplog):
    by_depth.module.load_state_dict(model.module.state_dict())
    genes = adata[:, ["G0", "G1", "G2"]]
    adata.obs["depth"] = 1e6
    few = ad.AnnData(genes.X, obs=adata.obs, var=genes.var)
    assert len(by_depth.vocabulary.datasets[0].genes) > 2 * 3
    np.testing.assert_array_equal(by_depth.latent(few.copy()), model.latent(few.copy()))
    assert "library sizes" not in caplog.text


def test_the_column_of_library_sizes_is_kept_with_the_model(write_spec, screen, convert_here, tmp_path):
    store = convert_here(write_spec(screen, total_counts="depth"))
    (tmp_path / "sets.gmt").write_text("P\tall\t" + "\t".join(screen.var_names) + "\n")
    settings = [f"pathways.file={tmp_path / 'sets.gmt'}", "split.kind=none"]
    made = prepare_training(store, ExperimentConfig.load(None, settings), loop).vocabulary
    assert [entry.total_counts for entry in made.datasets] == ["depth"]
    (tmp_path / "model").mkdir()
    made.save(Location.of(tmp_path / "model"))
    assert Vocabulary.load(Location.of(tmp_path / "model")).datasets[0].total_counts == "depth"
