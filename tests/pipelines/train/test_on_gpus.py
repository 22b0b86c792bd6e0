"""Trainings without Ray Train on a GPU: what they ask for, and where they put the network."""

import pytest
import ray
import torch
from torch import nn

import pipelines.cluster.tasks as tasks
import pipelines.train.ensemble as ensemble
from pipelines.predict import predict_to
from pipelines.train.alone import _OnlyRank
from tadvae.base.filesystem import Location
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig


@pytest.mark.parametrize(("gpu", "n"), [(False, 0), (True, 1)])
def test_a_member_asks_for_a_gpu_of_its_own(monkeypatch, tmp_path, gpu, n):
    asked, calls = [], []

    class AskedError(Exception):
        """Ends the run where Ray is told what a task needs."""

    def remote(**options):
        asked.append(options)
        raise AskedError

    def run_tasks(what, given, *more, **options):
        calls.extend(given)
        return tasks.run_tasks(what, given, *more, **options)

    monkeypatch.setattr(tasks, "is_connected", lambda: True)
    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ensemble, "run_tasks", run_tasks)
    runs = {"members/seed-0": ExperimentConfig()}
    with pytest.raises(AskedError):
        ensemble.train_models("store", Location.of(tmp_path), runs, gpu=gpu)
    assert asked == [{"num_cpus": 1, "num_gpus": n, "max_retries": 3}]
    ((function, arguments),) = calls
    assert function is ensemble.train_one
    assert arguments[-1] is gpu


def test_one_worker_moves_the_network_before_its_optimizer_is_made(tmp_path):
    rank = _OnlyRank(RunFolder(tmp_path), ExperimentConfig(), None, torch.device("meta"))
    module = nn.Linear(2, 2)
    assert rank.parallel(module) is module
    assert {parameter.device.type for parameter in module.parameters()} == {rank.device.type} == {"meta"}


def test_a_prediction_on_a_gpu_that_is_not_there(monkeypatch, tmp_path, refused):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sentence = refused(predict_to, str(tmp_path), "A", "c", str(tmp_path / "out.h5ad"), gpu=True)
    assert "leave out --gpu" in sentence
    assert not (tmp_path / "out.h5ad").exists()
