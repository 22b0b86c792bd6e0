"""Placement groups with actors in them, as trainings leave them behind."""

import time
from typing import Any

import ray
from ray.util.state import get_actor


def actor_class(name: str) -> type:
    """A class of this plain name; one from a test's module would not be found by Ray's workers."""
    return type(name, (), {"ready": lambda self: True})


def group_of(*kinds: type) -> tuple[Any, list[Any]]:
    """A placement group with an actor of each class in it."""
    group = ray.util.placement_group([{"CPU": 0.1}] * max(len(kinds), 1))
    ray.get(group.ready())
    place = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
    options = {"num_cpus": 0.1, "scheduling_strategy": place}
    actors = [ray.remote(**options)(kind).remote() for kind in kinds]
    ray.get([actor.ready.remote() for actor in actors])
    return group, actors


def kill(actors: list[Any]) -> None:
    """Kill them, and wait until Ray says so."""
    for actor in actors:
        ray.kill(actor)
    address, deadline = ray.get_runtime_context().gcs_address, time.monotonic() + 60
    for actor in actors:
        while get_actor(actor._actor_id.hex(), address=address).state != "DEAD":
            assert time.monotonic() < deadline
            time.sleep(0.1)


def state(group: Any) -> str:
    """CREATED, REMOVED, …"""
    found: str = ray.util.placement_group_table(group)["state"]
    return found
