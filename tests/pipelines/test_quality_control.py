"""Cells that a spec leaves out by its quality control, and `tadvae inspect --qc`."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from pipelines.cli.main import main
from pipelines.convert import convert
from pipelines.inspect import describe
from tadvae.screen_qc.check import check_screens
from tadvae.screen_qc.thresholds import QcConfig
from tadvae.store.reader import Store

QC = {"guide": "guide", "n_guides": "n_guides"}


@pytest.fixture(scope="module")
def with_escaped():
    """40 control cells and 40 cells of G1, of which every fourth looks like a control; 8 cells of G2."""
    rng = np.random.default_rng(0)
    labels = np.array(["control"] * 40 + ["G1"] * 40 + ["G2"] * 8)
    rates = np.full((88, 12), 8.0)
    truly = (np.arange(88) % 4 > 0) & (labels == "G1")
    rates[truly, :8] = [1, 24, 24, 24, 1, 24, 1, 1]
    obs = pd.DataFrame(
        {"condition": labels, "line": "K562", "guide": labels + "_1", "n_guides": 1, "truly": truly},
        index=[f"cell{i}" for i in range(88)],
    )
    obs.loc[["cell3", "cell44", "cell45"], "n_guides"] = 2
    var = pd.DataFrame(index=[f"G{g}" for g in range(1, 13)])
    return ad.AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=var)


def cells_of(store, stored_cells):
    return set(stored_cells(Store.open(str(store)), 0)[0]["cell_id"])


def test_cells_are_left_out_and_counted(with_escaped, write_spec, tmp_path, stored_cells, capsys):
    limits = {**QC, "max_guides": 1, "min_perturbed": 0.5, "min_cells": 10}
    manifest = convert(str(write_spec(with_escaped, qc=limits)), str(tmp_path / "store"))
    kept, obs = cells_of(tmp_path / "store", stored_cells), with_escaped.obs
    wanted = obs.index[(obs["n_guides"] == 1) & ((obs["condition"] == "control") | obs["truly"])]
    assert kept == set(wanted)
    dropped = manifest.datasets[0].dropped
    assert dropped == {
        "more than 1 guides": 3,
        "escaped (probability below 0.5)": 9,
        "fewer than 10 cells of the perturbation": 8,
    }
    assert sum(dropped.values()) + manifest.n_cells == 88
    assert sorted(each.name for each in (tmp_path / "store").iterdir() if each.is_dir()) == [
        "cells",
        "datasets",
    ]
    Store.open(str(tmp_path / "store")).verify_tables()
    assert describe(str(tmp_path / "store"), verify=True)["datasets"][0]["dropped"] == dropped
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "store")])
    assert "cells were left out by 'qc': screen0: 9 escaped" in capsys.readouterr().out.replace("\n", " ")


def test_without_limits_every_cell_stays(with_escaped, write_spec, tmp_path, stored_cells):
    manifest = convert(str(write_spec(with_escaped, qc=QC)), str(tmp_path / "store"))
    assert manifest.n_cells == 88
    assert manifest.datasets[0].dropped == {}
    guides = Store.open(str(tmp_path / "store")).guides
    assert guides["n_cells"].sum() == 88
    assert set(guides["guide"]) == {"control_1", "G1_1", "G2_1"}


def test_a_conversion_that_stops_between_its_parts_goes_on(with_escaped, write_spec, tmp_path, monkeypatch):
    spec = write_spec(with_escaped, qc={**QC, "min_perturbed": 0.5})
    place = tmp_path / "store"
    whole = convert(str(spec), str(tmp_path / "whole"))

    def stops(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.convert._publish", stops)
        with pytest.raises(KeyboardInterrupt):
            convert(str(spec), str(place))
    assert (tmp_path / "store.partial" / "unfiltered" / "manifest.json").exists()
    monkeypatch.setattr("pipelines.convert.spill_chunk", lambda *_: pytest.fail("was made before"))
    again = convert(str(spec), str(place))
    assert again.datasets == whole.datasets
    assert [each.sha256 for each in again.shards] == [each.sha256 for each in whole.shards]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"qc": {"max_guides": 1}}, "'max_guides' needs 'n_guides'"),
        ({"qc": {"min_cells": 1000}}, "leaves no perturbed cell"),
        ({"qc": {"guide": "guides"}}, "no column 'guides'"),
        ({"qc": {"n_guides": "guide"}}, "whole number"),
        ({"qc": QC, "perturbation": None}, "'qc' is for cells"),
        ({"qc": QC, "kind": "profiles"}, "'qc' is for cells"),
    ],
)
def test_limits_that_do_not_fit(with_escaped, write_spec, not_converted, settings, words):
    assert words in not_converted(write_spec(with_escaped, **settings))


def test_the_command(with_escaped, write_spec, convert_here, tmp_path, capsys, refused):
    store = convert_here(write_spec(with_escaped, qc=QC))

    def ends(*options):
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(store.folder), *map(str, options)])
        return ended.value.code or 0, capsys.readouterr()

    code, said = ends("--qc", "--out", tmp_path / "page.html", "--tables", tmp_path / "tables")
    assert code == 0
    assert "2 perturbations in 1 context; " in said.out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    cells = pd.read_csv(tmp_path / "tables" / "cells.csv").set_index("cell_id")
    truly = with_escaped.obs["truly"][with_escaped.obs["condition"] == "G1"]
    assert ((cells.loc[truly.index, "perturbed"] > 0.5) == truly).all()
    assert cells["perturbed"].isna().sum() == 48
    assert {each.name for each in (tmp_path / "tables").iterdir()} == {
        *("perturbations.csv", "targets.csv", "contexts.csv", "datasets.csv", "cells.csv")
    }
    code, said = ends("--qc", "--json", "--set", "min_cells=50")
    about = json.loads(said.out)
    assert code == 0
    assert [row["escaped"] for row in about["perturbations"]] == [None, None]
    assert "with fewer than 50 cells" in " ".join(about["findings"])
    assert ends("--out", "page.html")[0] == 2
    code, said = ends("--qc", "--out", tmp_path / "page.html")
    assert (code, "--out" in said.err) == (2, True)
    assert ends("--qc", "--tables", tmp_path / "tables")[0] == 2
    assert ends("--qc", "--set", "fdr=2")[0] == 2


def test_a_tampered_table_of_guides_is_refused(with_escaped, write_spec, convert_here, refused):
    store = convert_here(write_spec(with_escaped, qc=QC))
    table = store.guides
    place = store.folder / "guides.parquet"
    table.assign(n_cells=table["n_cells"] + 1).to_parquet(place.path)
    assert "guides.parquet" in refused(lambda: Store.open(store.folder).guides)
    (store.folder / "SHA256SUMS").delete()
    assert "not those of the groups" in refused(lambda: Store.open(store.folder).guides)
    table.assign(perturbation=99).to_parquet(place.path)
    assert "guides.parquet" in refused(lambda: check_screens(Store.open(store.folder), QcConfig()))
