"""Predictions and tables carry the names of the user's own file, and accept every name that it has."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest

from tadvae import TADVAE
from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.ensemble import Ensemble


@pytest.fixture(scope="module")
def model(spelt_model):
    return spelt_model


@pytest.fixture
def mine(spelt_folder):
    """The user's own cells, by the name of the file."""
    return lambda name: ad.read_h5ad(f"{spelt_folder}/{name}.h5ad")


@pytest.mark.parametrize("name", ["old", "new"])
def test_predictions_are_named_as_the_file(model, mine, name):
    own = mine(name)
    predicted = model.predict("KLF1", context=name.upper())
    assert set(predicted.var_names) == set(own.var_names)
    assert ad.concat([own, predicted]).n_vars == own.n_vars
    means = model.predict_means(["KLF1", "FOS"], context=name.upper())
    assert means.columns.tolist() == predicted.var_names.tolist()
    first = predicted.var.loc[own.var_names[0]]
    assert first[["gene", "symbol", "ensembl_id"]].tolist() == ["ENSG00000164032", "H2AZ1", "ENSG00000164032"]
    unknown = predicted.var.loc["TBX1.gfp"]
    assert unknown[["gene", "symbol", "ensembl_id"]].tolist() == ["TBX1.gfp", "", ""]


def test_own_controls_give_their_names(model, mine, tmp_path):
    """The file of the controls counts, not that of the dataset."""
    own = mine("new")[:12, ::-1].copy()
    predicted = model.predict("KLF1", context="HERE", dataset="old", controls=own)
    assert set(predicted.var_names) == set(own.var_names)
    at = own.var_names.get_indexer(predicted.var_names)
    norm = np.log1p(own.X / own.X.sum(axis=1, keepdims=True) * 1e4).mean(axis=0)[at]
    np.testing.assert_allclose(predicted.var["control_mean"], norm, rtol=1e-4)
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    assert (
        ad.read_h5ad(tmp_path / "predicted.h5ad").var["symbol"].tolist() == predicted.var["symbol"].tolist()
    )


@pytest.mark.parametrize("name", ["old", "new"])
def test_contributions_are_named_as_the_cells(model, mine, name):
    own = mine(name)
    found = model.contributions(own, "SET")
    assert set(found.columns) == set(own.var_names[[0, 1, 3, 4, 5, 8]])  # SET names a construct too
    assert np.isnan(model.activities(own).to_numpy()).sum() == 0


def test_every_label_of_a_file_is_accepted(model, mine):
    for name in ("old", "new"):
        labels = mine(name).obs["condition"].unique().tolist()
        means = model.predict_means(labels, context=name.upper())
        for label in labels:
            predicted = model.predict(label, context=name.upper())
            shown = predicted.obs["perturbation"].iloc[0]
            np.testing.assert_allclose(
                means.loc[shown], predicted.var["predicted_mean"], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize(
    ("asked", "same", "label"),
    [
        ("ctrl+H2AFZ", "H2AZ1", "H2AFZ"),
        ("KLF1+ctrl", "KLF1", "KLF1"),
        ("ENSG00000164032.2+ctrl+JUN", "JUN+H2AFZ", "ENSG00000164032.2+JUN"),
        (["H2AFZ", "control"], "H2AZ1", "H2AFZ"),
        ("(+)-JQ1", ["(+)-JQ1"], "(+)-JQ1"),
        ("JUN+(+)-JQ1+ctrl", ["(+)-JQ1", "JUN"], "(+)-JQ1+JUN"),
        ("JUN+JUN", "JUN", "JUN"),
        ("TBX1.gfp", ["TBX1.gfp"], "TBX1.gfp"),
    ],
)
def test_names_that_mean_the_same(model, asked, same, label):
    means = model.predict_means([asked, same], context="NEW")
    assert means.index[0] == label
    np.testing.assert_allclose(means.iloc[0], means.iloc[1], rtol=1e-5)
    assert model.predict(asked, context="NEW").uns["tadvae"]["perturbation"] == label
    assert np.abs(means.iloc[0] - model.predict_means(["ctrl"], context="NEW").iloc[0]).max() > 0


@pytest.mark.parametrize("asked", ["ctrl", "control", "ctrl+ctrl", ["ctrl"]])
def test_the_control_does_not_change(model, asked):
    predicted = model.predict(asked, context="OLD")
    assert set(predicted.obs["perturbation"]) == {"control"}
    np.testing.assert_array_equal(predicted.var["predicted_mean"], predicted.var["control_mean"])
    means = model.predict_means([asked, "KLF1"], context="OLD")
    np.testing.assert_allclose(means.loc["control"], predicted.var["control_mean"], rtol=1e-6)


@pytest.mark.parametrize("asked", ["NOBODY", "KLF1+NOBODY", "ctrl+NOBODY", "NOBODY+"])
def test_names_of_nothing(model, refused, asked):
    for call in (model.predict, lambda one, context: model.predict_means([one], context=context)):
        assert "target 'NOBODY': no prediction" in refused(call, asked, context="OLD")


def test_the_names_stay_with_the_model(model, tmp_path, mine):
    model.save_pretrained(tmp_path / "model")
    again = TADVAE.from_pretrained(tmp_path / "model")
    first, second = (each.predict_means(["JUN+H2AFZ", "g1"], context="OLD") for each in (model, again))
    assert first.columns.tolist() == second.columns.tolist()
    assert first.index.tolist() == second.index.tolist()
    assert again.vocabulary.datasets[1].labels == model.vocabulary.datasets[1].labels
    assert again.vocabulary.datasets[0].separator == "+"
    ensemble = Ensemble([again, again])
    predicted = ensemble.predict("ctrl+H2AFZ", context="OLD", controls=mine("new"), dataset="old")
    assert set(predicted.var_names) == set(mine("new").var_names)


def test_a_model_of_an_earlier_version(model, tmp_path):
    """It has no names of files: today's symbols are shown, and older ones are still understood."""
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model/names.parquet").unlink()
    (tmp_path / "model/labels.parquet").unlink()
    (tmp_path / "model/SHA256SUMS").unlink()
    text = json.loads((tmp_path / "model/vocabulary.json").read_text())
    for dataset in text["datasets"]:
        del dataset["separator"]
    (tmp_path / "model/vocabulary.json").write_text(json.dumps(text))
    means = TADVAE.from_pretrained(tmp_path / "model").predict_means(["ctrl+H2AFZ", "H2AZ1"], context="OLD")
    assert {"H2AZ1", "SEPTIN2", "RACK1", "TBX1.gfp"} <= set(means.columns)
    np.testing.assert_allclose(means.iloc[0], means.iloc[1], rtol=1e-5)


@pytest.mark.parametrize(
    "damage",
    [
        lambda vocabulary: vocabulary.datasets[0].labels.update(wrong=(99,)),
        lambda vocabulary: vocabulary.datasets[0].labels.update(wrong=(-1,)),
        lambda vocabulary: vocabulary.datasets[0].genes.__setitem__(0, 3),
    ],
)
def test_names_that_do_not_fit_the_model(model, tmp_path, refused, damage):
    model.vocabulary.save(Location.of(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "spoilt")
    vocabulary = Vocabulary.load(Location.of(tmp_path / "whole"))
    damage(vocabulary)
    vocabulary.save(Location.of(tmp_path / "other"))
    for name in ("names.parquet", "labels.parquet"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "spoilt" / name)
    assert "damaged model folder" in refused(Vocabulary.load, Location.of(tmp_path / "spoilt"))
