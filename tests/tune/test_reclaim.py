"""What a dead training holds is given back, and nothing else is."""

import pytest
from placement import actor_class, group_of, kill, state

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
def test_a_sweep_removes_what_a_training_left(abandoned, swept):
    assert state(abandoned) == "REMOVED"
