"""What a dead training holds is given back, and nothing else is."""

from types import SimpleNamespace

import pytest
from placement import actor_class, group_of, kill, state

import tune.reclaim as reclaim_module
from pipelines.train.worker import PLACEMENT_GROUP
from tune.reclaim import Reclaim


@pytest.mark.slow
def test_only_groups_whose_workers_are_all_dead_are_removed(ray_cluster):
    ray, worker, other = ray_cluster, actor_class("RayTrainWorker"), actor_class("Other")
    dead, workers = group_of(worker, worker)
    half, two = group_of(worker, worker)
    starting, _ = group_of()
    driver, others = group_of(other)
    kill([*workers, two[0], *others])
    try:
        reclaim = Reclaim()
        assert reclaim.look()
        assert state(dead) == "CREATED"  # it may have died this moment, and its controller be at it
        reclaim.look()
        assert state(dead) == "REMOVED"
        reclaim.look()
        assert [state(group) for group in (half, starting, driver)] == ["CREATED"] * 3
        kill(two[1:])
        reclaim.finish()
        assert state(half) == "REMOVED"
    finally:
        for group in (half, starting, driver):
            ray.util.remove_placement_group(group)


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_what_an_ended_trial_named_is_removed_though_its_workers_live(ray_cluster, monkeypatch, silent):
    ended, _ = group_of(actor_class("RayTrainWorker"))
    running, _ = group_of(actor_class("RayTrainWorker"))
    monkeypatch.setattr(reclaim_module, "GRACE_SECONDS", 2.0)
    monkeypatch.setattr(reclaim_module, "LAST_SECONDS", 5.0)
    if silent:  # Ray's state API, not Ray
        monkeypatch.setattr(reclaim_module, "trainings", lambda: None)
    try:
        reclaim = Reclaim()
        trials = {
            group: SimpleNamespace(trial_id=str(i), last_result={PLACEMENT_GROUP: group.id.hex()})
            for i, group in enumerate((ended, running))
        }
        for trial in trials.values():
            reclaim.on_trial_result(0, [], trial, trial.last_result)
        reclaim.on_trial_error(0, [], trials[ended])
        assert reclaim.look()
        assert state(ended) == "CREATED"
        reclaim.finish()
        assert [state(group) for group in trials] == ["REMOVED", "CREATED"]
    finally:
        ray_cluster.util.remove_placement_group(running)


@pytest.mark.slow
def test_a_sweep_removes_what_a_training_left(abandoned, swept):
    assert state(abandoned) == "REMOVED"
