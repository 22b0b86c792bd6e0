"""Dose, time and free covariates from the spec to the store, and what is refused."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from local_conversion import convert_locally

from pipelines.inspect import as_tables, describe
from tadvae.base.filesystem import Location
from tadvae.store.manifest import Manifest
from tadvae.store.reader import Store
from tadvae.store.spec import load_spec

COVARIATES = {
    "dose": {"column": "dose", "unit": "uM"},
    "time": {"column": "hours", "unit": "h"},
    "donor": {"column": "donor"},
}


@pytest.fixture
def dosed(screen):
    rng = np.random.default_rng(0)
    perturbed = screen.obs["condition"] != "control"
    screen.obs["dose"] = np.where(perturbed, rng.choice([0.1, 1.0], 48), np.nan)
    screen.obs["hours"] = np.where(perturbed, 24, 0)
    screen.obs["donor"] = np.tile(["d1", "d2", "d3"], 16)
    return screen


def test_perturbations_differ_by_dose_and_cells_keep_their_labels(dosed, write_spec, tmp_path):
    store = convert_locally(write_spec(dosed, covariates=COVARIATES), Location.of(tmp_path / "store"))
    table = store.perturbations
    names = {"control", *(f"{t}@{d}uM,24h" for t in ("G1", "G2", "G1+G2") for d in ("0.1", "1"))}
    assert set(table["name"]) == names
    assert np.isnan(table["dose"][store.control])
    expected = np.log(table[["dose", "time"]].to_numpy())
    np.testing.assert_array_equal(store.log_amounts, expected)
    cells = pd.concat([pq.read_table(p).to_pandas() for p in (tmp_path / "store/cells").rglob("*.parquet")])
    cells = cells.set_index("cell_id").loc[dosed.obs_names]
    assert cells["covariate_donor"].tolist() == dosed.obs["donor"].tolist()
    said = cells["perturbation"].str.extract("@([0-9.]+)uM")[0].astype(float)
    np.testing.assert_array_equal(said.to_numpy(), dosed.obs["dose"].to_numpy())
    about = describe(str(store.folder), verify=True)
    found = about["datasets"][0]["covariates"]
    assert found == {"dose": ["0.1uM", "1uM"], "time": ["24h"], "donor": ["d1", "d2", "d3"]}
    assert "covariates" in [table.title for table in as_tables(about)]


def test_a_covariate_can_be_part_of_the_context(dosed, write_spec, tmp_path, refused):
    """Two of them make a context each combination, whose control cells are its own."""
    dosed.obs["sex"] = np.repeat(["f", "m"], 24)
    covariates = {name: {"column": name, "in_context": True} for name in ("donor", "sex")}
    spec = write_spec(dosed, covariates=covariates)
    store = convert_locally(spec, Location.of(tmp_path / "store"))
    first = load_spec(spec).datasets[0].context
    line = dosed.obs[first.column].astype(str) if first.column else pd.Series(first.value, dosed.obs_names)
    expected = line + ", donor=" + dosed.obs["donor"].astype(str) + ", sex=" + dosed.obs["sex"].astype(str)
    cells = pd.concat([pq.read_table(p).to_pandas() for p in (tmp_path / "store/cells").rglob("*.parquet")])
    cells = cells.set_index("cell_id").loc[dosed.obs_names]
    assert cells["context"].tolist() == expected.tolist()
    assert sorted(store.manifest.contexts) == sorted(set(expected))
    assert cells["covariate_donor"].tolist() == dosed.obs["donor"].tolist()
    dosed.obs["donor"] = "nan"
    said = refused(
        lambda: convert_locally(write_spec(dosed, covariates=covariates), Location.of(tmp_path / "s"))
    )
    assert "48 cells have no value in obs column 'donor'" in said
    assert "'covariates.donor.column'" in said


def test_without_covariates_a_store_has_no_more_columns(screen, write_spec, tmp_path):
    store = convert_locally(write_spec(screen), Location.of(tmp_path / "store"))
    assert not store.has_amounts
    assert not {"dose", "time"} & set(store.perturbations.columns)
    assert np.isnan(store.log_amounts).all()


def test_a_store_of_before_is_read(screen, write_spec, tmp_path):
    store = convert_locally(write_spec(screen), Location.of(tmp_path / "store"))
    manifest = json.loads((tmp_path / "store/manifest.json").read_text())
    for entry in manifest["datasets"]:
        del entry["covariates"]
    (tmp_path / "store/manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "store/SHA256SUMS").unlink()
    assert Manifest.read(store.folder).datasets[0].covariates == {}
    assert Store.open(store.folder).perturbations["name"].tolist() == store.perturbations["name"].tolist()


@pytest.mark.parametrize(("value", "said"), [(0.0, "0.0"), (-1.0, "-1.0"), (np.inf, "inf"), (np.nan, "nan")])
def test_a_perturbed_cell_without_a_dose_is_refused(dosed, write_spec, tmp_path, refused, value, said):
    place = np.flatnonzero(dosed.obs["condition"] != "control")[3]
    dosed.obs.iloc[place, dosed.obs.columns.get_loc("dose")] = value
    spec = write_spec(dosed, covariates={"dose": COVARIATES["dose"]})
    sentence = refused(lambda: convert_locally(spec, Location.of(tmp_path / "store")))
    assert f"1 perturbed cells have no dose above 0 in obs column 'dose' (such as '{said}')" in sentence


def test_words_are_no_doses_and_columns_must_exist(dosed, write_spec, tmp_path, refused):
    dosed.obs["dose"] = "high"
    spec = write_spec(dosed, covariates={"dose": COVARIATES["dose"]})
    assert "(such as 'high')" in refused(lambda: convert_locally(spec, Location.of(tmp_path / "a")))
    spec = write_spec(dosed, covariates={"donor": {"column": "nobody"}})
    sentence = refused(lambda: convert_locally(spec, Location.of(tmp_path / "b")))
    assert "correct 'covariates.donor.column'" in sentence


@pytest.mark.parametrize(
    ("covariates", "said"),
    [
        ({"donor": {"column": "donor", "unit": "h"}}, "is a label and has no unit"),
        ({"a b": {"column": "donor"}}, "no name of a covariate"),
        ({"dose": {"column": "dose", "unit": "a+b"}}, "a short unit"),
        ({"dose": {"column": "dose", "in_context": True}}, "'dose' is a number of a perturbation"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(dosed, write_spec, refused, covariates, said):
    spec = write_spec(dosed, covariates=covariates)
    assert said in refused(lambda: load_spec(spec))


def test_two_units_are_refused(dosed, write_spec, refused):
    spec = write_spec(dosed, dosed, covariates=COVARIATES)
    text = json.loads(json.dumps(yaml.safe_load(spec.read_text())))  # without YAML's shared parts
    text["datasets"][1]["covariates"]["dose"]["unit"] = "nM"
    spec.write_text(yaml.safe_dump(text))
    assert "datasets give 'dose' in 'nM' and 'uM'" in refused(lambda: load_spec(spec))
