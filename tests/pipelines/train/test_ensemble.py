"""Ensembles as Ray tasks: trained, resumed, evaluated, asked; and runs beside each other in one table."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from local_conversion import convert_locally
from rich.text import Text
from small_screens import SCREENS, small_config

from pipelines.cli.main import main
from pipelines.evaluate import evaluate_run, tables
from pipelines.predict import predict_to
from pipelines.train.ensemble import train_ensemble
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.ensemble import Ensemble
from tadvae.model.run_folder import RunFolder
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.store.reader import Store
from tadvae.training.calibrate import fit_ensemble

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(ray_cluster, tmp_path_factory):
    place = tmp_path_factory.mktemp("ensemble")
    write_simulation(simulate(SCREENS), place / "screens")
    convert_locally(place / "screens" / "spec.yaml", Location.of(place / "store"))
    return place


@pytest.fixture(scope="module")
def config(place):
    return small_config(place / "screens", "split={kind: combo, folds: 4}")


@pytest.fixture(scope="module")
def trained(place, config):
    out = place / "ensemble"
    train_ensemble(str(place / "store"), str(out), config, seeds=2, calibration_folds=2)
    return out


def test_tasks_train_what_one_process_trains(trained, place, config, one_thread):
    found = Ensemble.from_pretrained(str(trained))
    expected, _ = fit_ensemble(Store.open(str(place / "store")), config, [0, 1], folds=2)
    assert len(found.members) == 2
    for a, b in zip(found.members, expected.members, strict=True):
        for (name, x), y in zip(a.module.state_dict().items(), b.module.state_dict().values(), strict=True):
            np.testing.assert_array_equal(x.numpy(), y.numpy(), err_msg=name)
    # mean effects are saved in single precision
    assert found.calibration.factor == pytest.approx(expected.calibration.factor, rel=1e-4)
    for name, scale in expected.calibration.scale.items():
        np.testing.assert_allclose(found.calibration.scale[name], scale, rtol=1e-4)


def test_resume_trains_only_what_is_missing(trained, place, config):
    member = trained / "members" / "seed-1" / "model" / "model.safetensors"
    kept = trained / "members" / "seed-0" / "model" / "model.safetensors"
    weights, before = member.read_bytes(), kept.stat().st_mtime_ns
    member.unlink()
    with pytest.raises(UserError, match="already holds a run"):
        train_ensemble(str(place / "store"), str(trained), config, seeds=2)
    train_ensemble(str(place / "store"), str(trained), None, resume=True)
    assert member.read_bytes() == weights
    assert kept.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="no ensemble to resume"):
        train_ensemble(str(place / "store"), str(place / "nowhere"), None, resume=True)


def test_the_command_line_from_end_to_end(trained, place, config, capsys, tmp_path):
    assert RunFolder(trained).is_ensemble
    other = place / "other"
    (place / "config.yaml").write_text(config.model_copy(update={"seed": 5}).to_yaml())
    main_ok(["train", str(place / "store"), "--out", str(other), "--config", str(place / "config.yaml"),
             "--seeds", "2", "--calibration-folds", "0"])  # fmt: skip
    capsys.readouterr()
    main_ok(["evaluate", str(trained), "--against", str(other), "--json", str(tmp_path / "e.json")])
    printed = capsys.readouterr().out
    words = ["tadvae", "other", "additive_ridge", "latent_additive", "noise_ceiling", "null_95", "coverage"]
    for word in [*words, "calibrated on"]:
        assert word in printed
    summary = json.loads((tmp_path / "e.json").read_text())["summary"]["all"]
    assert 0.0 <= summary["tadvae"]["coverage"]["mean"] <= 1.0
    assert {"mmd", "rmse", "pearson_delta"} <= set(summary["other"])
    table = pd.read_parquet(trained / "evaluation" / "all.parquet")
    assert {"low", "high"} <= set(table.columns)

    names = [t.name for t in Ensemble.from_pretrained(str(trained)).vocabulary.targets if t.seen]
    main_ok(["predict", str(trained), "--target", f"{names[0]}+{names[1]}", "--context", "L1",
             "--dataset", "up", "--out", str(tmp_path / "p.h5ad")])  # fmt: skip
    read = ad.read_h5ad(tmp_path / "p.h5ad")
    low, high = read.varm["interval"].T
    assert (low < high).all()
    assert read.layers["seed_spread"].shape == read.shape


def main_ok(arguments):
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0


def test_what_does_not_fit_ends_with_one_sentence(trained, place, config, tmp_path, refused):
    store = str(place / "store")
    cells = config.model_copy(update={"split": small_config(place / "screens", "split.kind=cells").split})
    assert "nothing to calibrate" in refused(train_ensemble, store, str(tmp_path / "x"), cells, seeds=2)
    assert not (tmp_path / "x").exists()
    fold = small_config(place / "screens", "split={kind: combo, folds: 4, fold: 1}")
    train_ensemble(store, str(tmp_path / "fold"), fold, seeds=1, calibration_folds=0)
    sentence = refused(evaluate_run, str(trained), against=[str(tmp_path / "fold")])
    assert "was trained on another split" in sentence
    (tmp_path / "fold" / "ensemble.json").write_text("{}")
    assert "damaged ensemble" in refused(evaluate_run, str(tmp_path / "fold"))
    target = str(tmp_path / "p.h5ad")
    assert "no prediction" in refused(predict_to, str(trained), "NOPE", "L1", target, dataset="up")


def test_a_column_has_one_winner_and_it_is_a_method(trained):
    scores = evaluate_run(str(trained))
    for table in tables(scores):
        names = [str(name) for name in table.columns[0].cells]
        for column in table.columns[1:]:
            cells = [Text(cell) if isinstance(cell, str) else cell for cell in column.cells]
            bold = [name for name, cell in zip(names, cells, strict=True) if cell.style == "bold"]
            assert not {"noise_ceiling", "null_95"} & set(bold)
            assert bold or column.header in ("coverage",)
