"""One worker without Ray Train: what it trains, keeps and goes on with is what Ray Train's worker would."""

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from small_training import SMALL

from pipelines.train.alone import train_alone
from pipelines.train.train import train
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store

SETTINGS = [*SMALL, "train={epochs: 4, checkpoint_every: 2, learning_rate: 0.01}"]


@pytest.fixture(scope="module")
def config(simulated) -> ExperimentConfig:
    return ExperimentConfig.load(None, [f"pathways.file={simulated.folder / 'pathways.gmt'}", *SETTINGS])


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, one_thread):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def whole(store, config, one_thread, tmp_path_factory) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("alone") / "run"
    train(str(store.folder), str(run), config)
    return run


class StopHereError(Exception):
    """Raised in the middle of a training."""


@pytest.fixture
def begun(store, config, tmp_path) -> RunFolder:
    """A run that was interrupted after its third checkpoint."""
    reports = []

    def report(record):
        reports.append(record)
        if len(reports) == 3:
            raise StopHereError

    run = RunFolder(tmp_path / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.train.train.train_alone", lambda run, store: train_alone(run, store, report))
        with pytest.raises(StopHereError):
            train(str(store.folder), str(run), config)
    assert not run.is_finished
    return run


def losses(run: RunFolder) -> list[tuple]:
    return [(r["step"], r["epoch"], r["loss"], r["mmd"], r["kl"]) for r in run.steps()]


def weights(run: RunFolder) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run.model.path + "/model.safetensors").items()}


def test_the_last_checkpoints_are_kept(whole, config):
    run = RunFolder(whole)
    assert run.is_finished
    assert [record["step"] for record in run.steps()] == list(range(len(run.steps())))
    assert len(run.checkpoints.names()) == config.train.keep_checkpoints
    assert run.checkpoints.names()[-1] == f"step-{len(run.steps()):09d}"
    assert json.loads((whole / "run.json").read_text())["workers"] == 1


def test_the_same_command_goes_on(whole, begun, store, config):
    steps = len(begun.steps())
    train(str(store.folder), str(begun), config)
    assert 0 < steps < len(begun.steps())
    assert losses(begun) == losses(RunFolder(whole))
    assert weights(begun) == weights(RunFolder(whole))


def test_half_a_checkpoint_is_none(whole, begun, store, config):
    last = begun.checkpoints.names()[-1]
    (begun.place / f"checkpoints/{last}/whole").delete()
    (begun.place / f"checkpoints/{last}/model.safetensors").write_bytes(b"half")
    assert last not in begun.checkpoints.names()
    train(str(store.folder), str(begun), config)
    assert weights(begun) == weights(RunFolder(whole))


@pytest.mark.slow
def test_ray_train_goes_on_with_what_began_here(ray_cluster, whole, begun, store, config, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "that of the session")
    train(str(store.folder), str(begun), config)
    assert begun.checkpoints.are_of_ray_train
    assert losses(begun) == losses(RunFolder(whole))
    assert weights(begun) == weights(RunFolder(whole))


def test_it_ends_with_the_best_validation(store, config, tmp_path):
    settings = {"validation": {"every": 1, "folds": 2, "patience": 1}}
    chosen = ExperimentConfig.model_validate(config.model_dump() | settings)
    chosen = chosen.model_copy(
        update={"train": chosen.train.model_copy(update={"epochs": 40, "learning_rate": 0.05})}
    )
    run = RunFolder(tmp_path / "run")
    train(str(store.folder), str(run), chosen)
    validations = [record for record in run.steps() if "val_pearson_delta" in record]
    values = [record["val_pearson_delta"] for record in validations]
    best = values.index(max(values))
    assert len(values) == best + 2 < 40
    kept = tmp_path / f"run/checkpoints/step-{validations[best]['step'] + 1:09d}/average.safetensors"
    assert weights(run) == {name: value.tobytes() for name, value in load_file(kept).items()}
    before = weights(run)
    (run.model / "model.safetensors").delete()
    train_alone(run, Store.open(store.folder))
    assert weights(run) == before
