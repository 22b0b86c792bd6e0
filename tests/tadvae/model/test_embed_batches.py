"""Correction of batches in embedded cells, against the same written with pandas in float64."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from pipelines.cli.main import main
from tadvae.model.embed_batches import CORRECTED, Batches, BatchMeans


@pytest.fixture(scope="module")
def model(spelt_model):
    return spelt_model


@pytest.fixture
def files(spelt_folder, tmp_path):
    """Two files, the second with a smaller panel; each has two plates."""
    result = []
    for name in ("old", "new"):
        cells = ad.read_h5ad(f"{spelt_folder}/{name}.h5ad")
        cells.obs["plate"] = pd.Categorical([f"{name}-{i // 4 % 2}" for i in range(len(cells))])
        place = tmp_path / f"{name}.h5ad"
        cells.write_h5ad(place)
        result.append(str(place))
    return result


@pytest.mark.parametrize(("controls", "workers"), [(None, 1), ("condition=ctrl", 1), ("condition=ctrl", 2)])
def test_control_cells_of_all_batches_have_one_mean(model, files, tmp_path, controls, workers):
    plain, moved = str(tmp_path / "plain.h5ad"), str(tmp_path / "moved.h5ad")
    model.embed(files, plain, contributions=["SET"])
    model.embed(files, moved, contributions=["SET"], batch="plate", controls=controls, workers=workers)
    before, after = ad.read_h5ad(plain), ad.read_h5ad(moved)
    own = np.ones(len(before), bool) if controls is None else (before.obs["condition"] == "ctrl").to_numpy()
    assert own.sum() < len(before) or controls is None
    for key in CORRECTED:
        values = pd.DataFrame(np.asarray(before.obsm[key], dtype=np.float64))
        plates = before.obs["plate"].astype(str).to_numpy()
        of_plate = values[own].groupby(plates[own]).mean()
        expected = values - of_plate.loc[plates].to_numpy() + values[own].mean().to_numpy()
        np.testing.assert_allclose(after.obsm[key], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(before.obsm["contributions_SET"], after.obsm["contributions_SET"])
    assert after.uns["tadvae"]["batch"] == "plate"
    assert after.uns["tadvae"]["controls"] == (controls or "")
    assert "batch" not in before.uns["tadvae"]


def test_files_are_batches(model, files, tmp_path):
    model.embed(files, str(tmp_path / "out.h5ad"), batch="tadvae_file")
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    first, second = (found[found.obs["tadvae_file"] == number].obsm["X_tadvae"] for number in (0, 1))
    np.testing.assert_allclose(first.mean(axis=0), second.mean(axis=0), atol=1e-5)


def test_what_a_batch_does_not_measure():
    """NaN stays, and does not count in the mean of the others."""
    batches = Batches(np.array([0, 0, 1, 1]), np.array([True, True, True, False]), 2)
    means = BatchMeans(batches)
    activities = np.array([[1.0, np.nan], [3.0, np.nan], [8.0, 5.0], [9.0, 6.0]])
    for start in (0, 2):
        part = activities[start : start + 2]
        means.add(start, {"X_tadvae_activity": part, "X_tadvae": part[:, :1]})
    np.testing.assert_allclose(means.shift("X_tadvae_activity"), [[2.0, 0.0], [-4.0, 0.0]])


def test_what_is_refused(model, files, tmp_path, refused):
    out = str(tmp_path / "out.h5ad")
    for options, words in (
        ({"batch": "donor"}, "batch 'donor': obs has no column 'donor' in all files; they have"),
        ({"batch": "plate", "controls": "control"}, "expected OBS=value"),
        ({"batch": "plate", "controls": "kind=x"}, "controls 'kind=x': obs has no column 'kind'"),
        (
            {"batch": "plate", "controls": "condition=no"},
            "4 of 4 batches have no control cells (new-0, new-1",
        ),
        ({"controls": "condition=ctrl"}, "--batch"),
    ):
        assert words in refused(model.embed, files, out, **options)
    cells = ad.read_h5ad(files[0])
    cells.obs["plate"] = [None, *["a"] * (len(cells) - 1)]
    cells.write_h5ad(tmp_path / "some.h5ad")
    said = refused(model.embed, str(tmp_path / "some.h5ad"), out, batch="plate")
    assert f"batch 'plate': 1 of {len(cells)} cells have none" in said
    assert not (tmp_path / "out.h5ad").exists()


def test_the_command(model, files, tmp_path):
    model.save_pretrained(tmp_path / "model")
    words = ["embed", str(tmp_path / "model"), *files, "--out", str(tmp_path / "out.h5ad")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--batch", "plate", "--controls", "condition=ctrl"])
    assert not ended.value.code
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["tadvae"]["controls"] == "condition=ctrl"
