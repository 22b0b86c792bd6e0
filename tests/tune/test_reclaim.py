"""What a dead training holds is given back, and nothing else is."""

import time

import pytest
from ray.util.state import get_actor

from tune.reclaim import Reclaim


def actor_class(name: str) -> type:
    """A class of this plain name; one from a test's module would not be found by Ray's workers."""
    return type(name, (), {"ready": lambda self: True})


@pytest.mark.slow
def test_only_groups_whose_workers_are_all_dead_are_removed(ray_cluster):
    ray, worker, other = ray_cluster, actor_class("RayTrainWorker"), actor_class("Other")

    def started(kinds):
        group = ray.util.placement_group([{"CPU": 0.1}] * max(len(kinds), 1))
        ray.get(group.ready())
        place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
        options = {"num_cpus": 0.1, "scheduling_strategy": place}
        actors = [ray.remote(**options)(kind).remote() for kind in kinds]
        ray.get([actor.ready.remote() for actor in actors])
        return group, actors

    def killed(actors):
        for actor in actors:
            ray.kill(actor)
        address, deadline = ray.get_runtime_context().gcs_address, time.monotonic() + 60
        for actor in actors:
            while get_actor(actor._actor_id.hex(), address=address).state != "DEAD":
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def state(group):
        return ray.util.placement_group_table(group)["state"]

    dead, workers = started([worker, worker])
    half, two = started([worker, worker])
    starting, _ = started([])
    driver, others = started([other])
    killed([*workers, two[0], *others])
    try:
        reclaim = Reclaim()
        assert reclaim.look()
        assert state(dead) == "CREATED"  # it may have died this moment, and its controller be at it
        reclaim.look()
        assert state(dead) == "REMOVED"
        reclaim.look()
        assert [state(group) for group in (half, starting, driver)] == ["CREATED"] * 3
        killed(two[1:])
        reclaim.finish()
        assert state(half) == "REMOVED"
    finally:
        for group in (half, starting, driver):
            ray.util.remove_placement_group(group)
