"""Sweeps on Ray, for real: stopped trials, nothing leaked, records of what the runs logged, bad input."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from sweep_runs import WITHOUT_A_CLUSTER, log, main_exits

from tadvae.base.filesystem import Location
from tadvae.model.card import escape_markdown
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.prepare import prepare_training
from tadvae.training.validation import Validator
from tune.config import SweepConfig
from tune.records import read_records
from tune.search import optuna_search
from tune.sweep import run_sweep

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_eight_trials_over_all_strategies_and_none_leaks(ray_cluster, earlier_groups, swept):
    records = read_records(Location.of(swept))
    assert [r.number for r in records] == list(range(8))
    assert {r.values["model.pathway.masking"] for r in records} == {
        "hard",
        "soft",
        "soft_log",
        "linear",
        "none",
    }
    by_status = {status: [r for r in records if r.status == status] for status in ("finished", "stopped")}
    assert len(by_status["finished"]) + len(by_status["stopped"]) == 8
    assert len(by_status["stopped"]) >= 2
    assert len(by_status["finished"]) >= 2
    for record in by_status["stopped"]:
        assert "is below" in record.reason
        assert len(record.curve) < 3
        assert not (swept / f"trials/{record.number:04d}/run/model/model.safetensors").exists()
    groups = assert_nothing_is_held(ray_cluster, earlier_groups)
    assert len(groups) >= 8  # one for each trial
    assert not (swept / "tune").exists()


def assert_nothing_is_held(ray_cluster, earlier_groups: set[str]) -> dict:
    """Wait until what the trials held is given back; returns their placement groups."""
    deadline = time.monotonic() + 120
    while True:
        table = ray_cluster.util.placement_group_table()
        ours = {name: entry for name, entry in table.items() if name not in earlier_groups}
        left = [entry for entry in ours.values() if entry["state"] != "REMOVED"]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert left == []
    while ray_cluster.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray_cluster.available_resources()["CPU"] == 4
    return ours


@pytest.mark.slow
def test_records_have_what_the_runs_logged(swept):
    for record in read_records(Location.of(swept)):
        run = swept / f"trials/{record.number:04d}/run"
        validated = [r for r in log(run) if "val_pearson_delta" in r][: len(record.curve)]
        cells = [sum(r["cells"] for r in log(run) if r["epoch"] <= v["epoch"]) for v in validated]
        assert [p["cells_seen"] for p in record.curve] == cells
        for key in ("epoch", "loss", "val_pearson_delta", "val_l2", "val_rmse", "val_cosine_logfc"):
            assert [p[key] for p in record.curve] == [r[key] for r in validated]
        assert [p["epoch"] for p in record.curve] == list(range(len(record.curve)))
        config = ExperimentConfig.load_text((run / "config.yaml").read_text(), "config.yaml")
        assert config.train.learning_rate == record.values["train.learning_rate"]
        assert config.model.pathway.masking == record.values["model.pathway.masking"]


@pytest.mark.slow
def test_the_metric_is_that_of_the_weights_that_are_left(store, swept):
    finished = [r for r in read_records(Location.of(swept)) if r.status == "finished"]
    for record in finished[:2]:
        run = swept / f"trials/{record.number:04d}/run"
        model = TADVAE.from_pretrained(run)
        groups = pd.read_parquet(run / "split.parquet")
        again = Validator(store, groups, model.vocabulary, model.config, model.effects).score(model.module)
        assert record.curve[-1]["val_pearson_delta"] == pytest.approx(again["val_pearson_delta"], abs=1e-6)
        assert record.curve[-1]["val_l2"] == pytest.approx(again["val_l2"], abs=1e-6)


@pytest.mark.slow
def test_trials_of_two_workers_finish_stop_and_fail(
    ray_cluster, store, space_file, tmp_path, capsys, monkeypatch, refused
):
    """Ray Train's workers are given back; what nobody could know before fails its trial alone."""
    data = SweepConfig.load(space_file).model_dump(mode="json")
    data |= {"trials": 3, "max_concurrent": 1, "workers": 2, "derived": {}}
    data["parameters"] = {
        "pathways.min_measured": {"choice": [2, 90]},
        "train.learning_rate": {"choice": [1e-7, 0.02]},
    }
    data["experiment"]["train"]["epochs"] = 2

    def suggested(seed: int) -> list[tuple]:
        search = optuna_search(SweepConfig.parse({**data, "seed": seed}, "data"), [])
        return [tuple(search.suggest(name)["values"].values()) for name in "abc"]

    good_bad_refused = [(2, 0.02), (2, 1e-7), (90, 0.02)]
    seed = next(seed for seed in range(500) if suggested(seed) == good_bad_refused)
    config = SweepConfig.parse({**data, "seed": seed}, "data")
    earlier = set(ray_cluster.util.placement_group_table())
    sentence = refused(run_sweep, str(store.folder), str(tmp_path / "sweep"), config)
    assert sentence.startswith("a trial with min_measured=90: ")
    assert not (tmp_path / "sweep").exists()
    monkeypatch.setattr(
        "tune.sweep.check_trials", lambda store, trials, mapper: prepare_training(store, config.experiment)
    )
    records = run_sweep(str(store.folder), str(tmp_path / "sweep"), config)
    assert [r.status for r in records] == ["finished", "stopped", "failed"]
    assert {r["workers"] for r in log(tmp_path / "sweep/trials/0000/run")} == {2}
    assert len(assert_nothing_is_held(ray_cluster, earlier)) >= 5  # three drivers', two trainings'
    assert "none of its 9 pathways has 90 or more measured genes" in records[2].reason
    capsys.readouterr()
    main_exits(["tune", "table", str(tmp_path / "sweep"), "--out", str(tmp_path / "report")])
    assert "failed" in capsys.readouterr().out
    assert escape_markdown(records[2].reason) in (tmp_path / "report/trials.md").read_text()
    assert len(read_records(Location.of(tmp_path / "sweep"))) == 3


def test_bad_input_leaves_nothing(ray_cluster, store, space_file, tmp_path, refused):
    config = SweepConfig.load(space_file)
    out = tmp_path / "sweep"
    wrong = SweepConfig.load(space_file, ["experiment.pathways.file=/nowhere/x.gmt"])
    assert "/nowhere/x.gmt" in refused(run_sweep, str(store.folder), str(out), wrong)
    many = SweepConfig.load(space_file, ["max_concurrent=60"])
    assert "has 4 CPUs, but this run needs 62" in refused(run_sweep, str(store.folder), str(out), many)
    assert "no sweep" in refused(run_sweep, str(store.folder), str(out), None, resume=True)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "already holds a sweep" in refused(run_sweep, str(store.folder), str(out), config)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


def test_damaged_records_are_refused(tmp_path, refused):
    (tmp_path / "trials/0000").mkdir(parents=True)
    place = tmp_path / "trials/0000/trial.json"
    place.write_text("{")
    assert "not the record of a trial" in refused(read_records, Location.of(tmp_path))
    place.write_text('{"number": "first"}')
    assert str(place) in refused(read_records, Location.of(tmp_path))


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_without_its_dashboard_is_refused():
    """There, stopped trials would keep their CPUs for ever."""
    code = (
        "import pipelines, ray\n"
        "from pipelines.cluster.connection import require_cleaning\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False)\n"
        "try:\n    require_cleaning()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=WITHOUT_A_CLUSTER,
        timeout=300,
    )
    assert "UserError this Ray's dashboard does not answer its workers" in done.stdout, done.stderr
