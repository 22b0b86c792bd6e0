"""MLflow and W&B as they are: steps go in, and come back by their own files and formats. No network."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.train.trackers import MLflow, WandB, quantities, trackers
from pipelines.train.train import train
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig

# MLflow 3 with SQLAlchemy 2.1
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is an extra")
    for name in ("mlflow", "wandb")
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-own"))


@pytest.fixture
def run(tmp_path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.place.make_folder()
    return run


def records(first: int, n: int) -> list[dict]:
    same = {"workers": 1, "bags": 2, "cells": 32, "tokens": 640, "wait": 0.25, "seconds": 0.5}
    return [
        {**same, "step": step, "epoch": 0, "time": 1.7e9 + step, "loss": 3 / (step + 1), "mmd": 0.1 * step}
        for step in range(first, first + n)
    ]


def mlflow_run(run: RunFolder, place: str | None = None):
    """The only run of the only experiment, and its history."""
    from mlflow import MlflowClient

    client = MlflowClient(place or f"sqlite:///{run.place.path}/mlflow.db")
    experiment = client.get_experiment_by_name("tadvae")
    (found,) = client.search_runs([experiment.experiment_id])

    def history(name: str) -> list[tuple]:
        points = client.get_metric_history(found.info.run_id, f"train/{name}")
        return sorted((p.step, p.timestamp, p.value) for p in points)

    return found, history


def wandb_records(folder: Path) -> list:
    """What W&B's own process has kept of every driver's run: a LevelDB log of its protobuf messages."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for place in sorted(folder.glob("offline-run-*/run-*.wandb")):
        data, at, whole = place.read_bytes(), 7, b""
        assert data.startswith(b":W&B")
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:  # the rest of a block is empty
                at += 32768 - at % 32768
                continue
            size, kind = struct.unpack_from("<HB", data, at + 4)
            whole += data[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # all of a message, or its last part
                found.append(Record.FromString(whole))
                whole = b""
    return found


def wandb_steps(folder: Path) -> list[dict]:
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in wandb_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


@pytest.mark.slow
@needs["mlflow"]
def test_mlflow_has_every_step_and_a_later_driver_goes_on(run):
    config = ExperimentConfig.load(None, ["train.learning_rate=0.125"])
    first, then = records(0, 130), records(130, 2)  # more values than one request takes
    for part in (first, then):
        tracker = MLflow(run, config)
        assert mlflow_run(run)[0].info.status == "RUNNING"
        tracker.log(part)
        tracker.close()
    found, history = mlflow_run(run)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "run"
    assert found.data.params["train.learning_rate"] == "0.125"
    assert found.data.params["model.pathway.masking"] == config.model.pathway.masking
    assert set(found.data.metrics) == set(quantities(first[0]))
    for name in ("loss", "mmd", "cells"):
        assert history(name) == [(r["step"], 1000 * r["time"], r[name]) for r in first + then]
    assert {value for _, _, value in history("wait_share")} == {0.5}
    assert {value for _, _, value in history("cells_per_second")} == {64}


@pytest.mark.slow
@needs["mlflow"]
def test_mlflow_where_its_own_variables_say(run, tmp_path, monkeypatch):
    place = f"sqlite:///{tmp_path}/lab.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    for name in ("run", "other"):
        tracker = MLflow(RunFolder(run.place.sibling(name)), ExperimentConfig())
        tracker.log(records(0, 1))
        tracker.close()
    from mlflow import MlflowClient

    client = MlflowClient(place)
    found = client.search_runs([client.get_experiment_by_name("tadvae").experiment_id])
    assert sorted(r.info.run_name for r in found) == ["runother", "runrun"]
    assert not (run.place / "mlflow.db").exists()


@pytest.mark.slow
@needs["mlflow"]
def test_mlflow_that_fails_later_costs_steps_but_not_the_run(run, capsys):
    tracker = MLflow(run, ExperimentConfig())
    tracker.log(records(0, 1))
    place = Path(run.place.path) / "mlflow.db"
    good = place.read_bytes()
    place.write_bytes(b"\0" * len(good))
    tracker.log(records(1, 1))
    said = capsys.readouterr().out.strip().splitlines()
    assert said[-1].startswith("MLflow: ")
    assert said[-1].endswith("; these steps are in the run's own log.")
    place.write_bytes(good)
    tracker.log(records(2, 1))
    tracker.close()
    assert [step for step, _, _ in mlflow_run(run)[1]("loss")] == [0, 2]


@needs["mlflow"]
def test_mlflow_at_a_wrong_place_is_a_sentence(run, monkeypatch, refused):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://place")
    assert "correct MLFLOW_TRACKING_URI" in refused(MLflow, run, ExperimentConfig())


@pytest.mark.slow
@needs["wandb"]
def test_wandb_offline_has_every_step_of_both_drivers(run):
    config = ExperimentConfig.load(None, ["train.learning_rate=0.125"])
    parts = records(0, 3), records(2, 2)  # the second makes a step again
    for part in parts:
        tracker = WandB(run, config)
        tracker.log(part)
        tracker.close()
    folder = Path(run.place.path) / "wandb"
    steps = wandb_steps(folder)
    logged = [{"step": r["step"], **quantities(r)} for part in parts for r in part]
    assert [{k: s[k] for k in logged[0]} for s in steps] == logged
    begun = [r.run for r in wandb_records(folder) if r.WhichOneof("record_type") == "run"]
    assert len({r.run_id for r in begun}) == 1
    assert {(r.project, r.display_name) for r in begun} == {("tadvae", "run")}
    settings = {u.key: json.loads(u.value_json) for u in begun[0].config.update}
    assert settings["train"]["learning_rate"] == 0.125
    metrics = [r.metric for r in wandb_records(folder) if r.WhichOneof("record_type") == "metric"]
    assert [(m.glob_name, m.step_metric) for m in metrics if m.glob_name] == [("train/*", "step")] * 2


@pytest.mark.slow
@needs["wandb"]
def test_wandb_without_a_key_is_a_sentence(run, tmp_path):
    code = (
        "import sys\n"
        "from pipelines.train.trackers import WandB\n"
        "from tadvae.base.errors import UserError\n"
        "from tadvae.settings.experiment import ExperimentConfig\n"
        "from tadvae.model.run_folder import RunFolder\n"
        "try:\n    WandB(RunFolder(sys.argv[1]), ExperimentConfig())\n"
        "except UserError as error:\n    print(error)\n"
    )
    own = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_API_KEY")}
    done = subprocess.run(  # W&B reads its variables once a process
        [sys.executable, "-W", "error", "-c", code, run.place.path],
        env=own | {"HOME": str(tmp_path)},  # no ~/.netrc
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.startswith("W&B: "), done.stderr
    assert "run `wandb login`, or set WANDB_MODE=offline" in done.stdout


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_before_anything_is_written(store, tmp_path, monkeypatch, refused, name):
    monkeypatch.setitem(sys.modules, name, None)
    config = ExperimentConfig.load(None, [f"train.trackers=[{name}]"])
    sentence = refused(train, str(store.folder), str(tmp_path / "new"), config)
    assert f"pip install 'tadvae[{name}]'" in sentence
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("name", "variable"), [("mlflow", "MLFLOW_TRACKING_URI"), ("wandb", "WANDB_DIR")])
def test_files_at_a_url_are_refused(store, monkeypatch, refused, name, variable):
    for module in ("mlflow", "wandb"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is an extra")
    monkeypatch.setattr(Location, "names", lambda self: [])  # nothing there, and nobody is asked
    config = ExperimentConfig.load(None, [f"train.trackers=[{name}]"])
    sentence = refused(train, str(store.folder), "s3://nowhere/run?region=us-east-1", config)
    assert f"set {variable}" in sentence


def test_none_and_unknown_ones(run):
    assert trackers(run, ExperimentConfig.load(None, ["train.trackers=[]"])) == []
    with pytest.raises(UserError, match=r"train\.trackers"):
        ExperimentConfig.load(None, ["train.trackers=[aim]"])


@pytest.mark.slow
@needs["mlflow"]
@needs["wandb"]
def test_a_training_is_seen_by_all(store, simulated, tmp_path):
    settings = ["model.pathway={d_embed: 16, n_heads: 1}", "model.decoder={d_gene: 16, hidden: 16}"]
    settings += ["train={epochs: 2, trackers: [tensorboard, mlflow, wandb]}"]
    settings += [f"pathways.file={simulated.folder / 'pathways.gmt'}"]
    settings += ["train.checkpoint_every=null"]
    run = tmp_path / "run"
    train(str(store.folder), str(run), ExperimentConfig.load(None, settings))
    assert (run / "model" / "model.safetensors").exists()
    pieces = sorted((run / "log").glob("steps-*"))
    logged = [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]
    assert logged
    _, history = mlflow_run(RunFolder(run))
    assert [(step, value) for step, _, value in history("loss")] == [(r["step"], r["loss"]) for r in logged]
    seen = wandb_steps(run / "wandb")
    assert [(s["step"], s["train/loss"]) for s in seen] == [(r["step"], r["loss"]) for r in logged]
    assert list((run / "tensorboard").glob("*tfevents*"))
