"""Cells of files, embedded block by block: the numbers of the functions that take an AnnData."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from pipelines.cli.main import main
from tadvae.base.errors import UserError
from tadvae.model import embed as embed_module
from tadvae.model.encode import principal_axes, project_onto, smoothed_activities
from tadvae.model.new_cells import cells_of
from tadvae.model.tadvae import TADVAE
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig


@pytest.fixture(scope="module")
def model(spelt_model):
    return spelt_model


@pytest.fixture(scope="module")
def attentive(spelt_model):
    """A model whose pathway layer is not linear in expression."""
    torch.manual_seed(0)
    config = ExperimentConfig.load(None, ["model.pathway={d_embed: 8, n_heads: 2, masking: hard}"])
    vocabulary = spelt_model.vocabulary
    return TADVAE(TADVAEModule(config.model, config.loss, vocabulary), vocabulary, config)


@pytest.fixture
def files(spelt_folder):
    return [f"{spelt_folder}/{name}.h5ad" for name in ("old", "new")]


@pytest.mark.parametrize("which", ["model", "attentive"])
@pytest.mark.parametrize("smooth", [None, 0])
def test_the_numbers_of_an_anndata(request, which, smooth, files, tmp_path):
    model = request.getfixturevalue(which)
    model.embed(files, str(tmp_path / "out.h5ad"), contributions=["SET"], smooth=smooth)
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    row = 0
    for number, path in enumerate(files):
        own = ad.read_h5ad(path)
        part = found[row : row + len(own)]
        row += len(own)
        assert (part.obs["tadvae_file"] == number).all()
        assert part.obs_names.tolist() == own.obs_names.tolist()
        assert part.obs["condition"].tolist() == own.obs["condition"].tolist()
        activities = model.activities(own, smooth=smooth)
        np.testing.assert_allclose(part.obsm["X_tadvae_activity"], activities, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(part.obsm["X_tadvae"], model.latent(own), rtol=1e-5, atol=1e-6)
        parts = model.contributions(own, "SET", smooth=smooth)
        at = model.vocabulary.names(np.sort([model.vocabulary.gene_index[g] for g in _keys(model, parts)]))
        names = found.uns["tadvae"]["contributions"]["contributions_SET"].tolist()
        assert names == at
        np.testing.assert_allclose(part.obsm["contributions_SET"], parts, rtol=1e-4, atol=1e-5)
    assert row == len(found)
    assert found.varm["matched"].all()
    assert found.uns["tadvae"]["genes_matched"].tolist() == [10, 10]


def _keys(model, parts):
    """Model keys of the genes that a table of contributions names."""
    return [model.vocabulary.lookup.find(name, 0).parts[0].gene for name in parts.columns]


@pytest.mark.parametrize("which", ["model", "attentive"])
def test_the_size_of_blocks_changes_nothing(request, which, files, tmp_path, monkeypatch):
    """Smoothed activities neither: a cell sees the axes, not the cells that are read with it."""
    model = request.getfixturevalue(which)
    results = []
    for size in (1, 5, 48, 1_000):
        monkeypatch.setattr(embed_module, "CELLS_AT_ONCE", size)
        out = tmp_path / f"{size}.h5ad"
        model.embed(files, str(out), contributions=["SET"])
        results.append(ad.read_h5ad(out))
    for other in results[1:]:
        for key, expected in results[0].obsm.items():
            np.testing.assert_allclose(other.obsm[key], expected, rtol=1e-5, atol=2e-6, err_msg=key)


@pytest.mark.slow
def test_several_processes_write_the_same_bits(model, files, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_module, "CELLS_AT_ONCE", 5)
    for workers in (1, 2):
        model.embed(files, str(tmp_path / f"{workers}.h5ad"), contributions=["SET"], workers=workers)
    one, two = (ad.read_h5ad(tmp_path / f"{workers}.h5ad") for workers in (1, 2))
    assert set(one.obsm) == set(two.obsm) == {"X_tadvae_activity", "X_tadvae", "contributions_SET"}
    for key, expected in one.obsm.items():
        assert expected.tobytes() == two.obsm[key].tobytes(), key


def test_axes_of_a_large_file_come_from_cells_spread_over_it(model, files, tmp_path, monkeypatch):
    """All cells are projected onto axes of the sample, and the size of blocks changes nothing then either."""
    own = ad.read_h5ad(files[0])
    rows = np.concatenate([np.arange(start, start + 3) for start in np.linspace(0, 45, 8).astype(int)])
    options = {"layer": None, "values": "counts"}
    axes = principal_axes(cells_of(own[rows].copy(), model.vocabulary, model.config.preprocess, **options), 2)
    cells = cells_of(own, model.vocabulary, model.config.preprocess, **options)
    expected = smoothed_activities(model.module, cells, project_onto(cells, *axes))
    assert not np.allclose(expected, model.activities(own, smooth=2), rtol=1e-3)
    monkeypatch.setattr(embed_module, "SAMPLE", 24)
    monkeypatch.setattr("tadvae.model.cell_file.CellFile.spread_rows.__defaults__", (8,))
    for size in (7, 48):
        monkeypatch.setattr(embed_module, "CELLS_AT_ONCE", size)
        model.embed(files[0], str(tmp_path / f"{size}.h5ad"), smooth=2)
        found = ad.read_h5ad(tmp_path / f"{size}.h5ad").obsm["X_tadvae_activity"]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_every_form_of_a_file(model, files, tmp_path, form):
    own = ad.read_h5ad(files[0])
    expected = model.latent(own.copy())
    own.layers["counts"] = form(own.X)
    own.X = None
    own.write_h5ad(tmp_path / "cells.h5ad")
    model.embed(str(tmp_path / "cells.h5ad"), str(tmp_path / "out.h5ad"), layer="counts")
    np.testing.assert_allclose(ad.read_h5ad(tmp_path / "out.h5ad").obsm["X_tadvae"], expected, rtol=1e-5)


def test_panels_that_see_other_pathways_and_columns_that_differ(model, files, tmp_path):
    own = ad.read_h5ad(files[0])
    own.obs["lane"] = "a"
    part = own[:, ["H2AFZ", "SEPT2", "KLF1", "JUN", "FOS"]].copy()
    part.obs["condition"] = pd.Categorical(part.obs["condition"])
    part.obs["score"] = 1.0
    for name, each in (("a", own), ("b", part)):
        each.write_h5ad(tmp_path / f"{name}.h5ad")
    out = str(tmp_path / "out.h5ad")
    model.embed([str(tmp_path / "a.h5ad"), str(tmp_path / "b.h5ad")], out, contributions=["SET"])
    found = ad.read_h5ad(out)
    assert found.obs.columns.tolist() == ["condition", "lane", "tadvae_file"]
    assert found.obs_names.is_unique
    missing = np.isnan(found.obsm["contributions_SET"])
    assert not missing[:48].any()
    assert missing[48:].all(axis=0).sum() == missing.shape[1] - 5
    np.testing.assert_array_equal(found.varm["matched"].sum(axis=0), [10, 5])


def test_what_cannot_be_embedded(model, attentive, files, tmp_path, refused):
    out = str(tmp_path / "out.h5ad")
    own = ad.read_h5ad(files[0])
    own.X[40, 3] = 0.5
    own.write_h5ad(tmp_path / "bad.h5ad")
    other = own[:, :2].copy()
    other.var_names = ["x1", "x2"]
    other.write_h5ad(tmp_path / "other.h5ad")
    (tmp_path / "text.h5ad").write_text("no")
    for given, options, words in (
        (files, {"contributions": ["NONE"]}, "pathway 'NONE' is not in the model"),
        ([], {}, "no files"),
        ([*files, str(tmp_path / "bad.h5ad")], {}, "bad.h5ad"),
        (files[0], {"values": "log1p"}, "values='counts'"),
        (files[0], {"layer": "raw"}, "no layer 'raw' (layers: none)"),
        (str(tmp_path / "other.h5ad"), {}, "other.h5ad: 0 of its 2 genes"),
        (str(tmp_path / "text.h5ad"), {}, "not an .h5ad"),
        (str(tmp_path / "absent.h5ad"), {}, "absent.h5ad"),
    ):
        assert words in refused(model.embed, given, out, **options)
    assert "0 alone for pathway layers" in refused(attentive.embed, files, out, smooth=3)
    assert "ends in .h5ad" in refused(model.embed, files, str(tmp_path / "out.csv"))
    assert not (tmp_path / "out.h5ad").exists()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("value", "sample", "said"), [(0.5, 640, "not a whole number"), (-1.5, 10_000, "is negative")]
)
def test_a_fault_in_the_middle_leaves_nothing(model, files, tmp_path, monkeypatch, value, sample, said):
    """What the sample does not show, the blocks do; and axes are computed from checked values alone."""
    own = ad.read_h5ad(files[0])
    many = ad.concat([own] * 20, index_unique="-")
    many.X[508, 3] = value  # between the rows of the sample of 640 cells
    many.write_h5ad(tmp_path / "many.h5ad")
    monkeypatch.setattr(embed_module, "SAMPLE_ROWS", 16)
    monkeypatch.setattr(embed_module, "SAMPLE", sample)
    with pytest.raises(UserError, match=said):
        model.embed(str(tmp_path / "many.h5ad"), str(tmp_path / "out.h5ad"))
    assert [each.name for each in tmp_path.iterdir()] == ["many.h5ad"]


def test_the_command(model, files, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    words = ["embed", str(tmp_path / "model"), *files, "--out", str(tmp_path / "out.h5ad")]
    for code, said in ((0, "96 cells of 2 files; 1 of 1 pathways"), (2, "already exists")):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--contributions", "SET"])
        captured = capsys.readouterr()
        assert (ended.value.code or 0) == code, captured.err
        assert said in captured.out + captured.err
