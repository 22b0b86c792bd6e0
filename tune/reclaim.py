"""Gives the CPUs and GPUs of ended trials back where Ray Train itself did not."""

import time
from typing import Any

import ray
from ray.tune import Callback
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors, list_placement_groups

from pipelines.train.worker import PLACEMENT_GROUP

EVERY_SECONDS = 10.0
GRACE_SECONDS = 20.0
"""For Ray Train's own cleaning after a trial."""
LAST_SECONDS = 60.0
LIMITS: dict[str, Any] = {"limit": 1000, "timeout": 10}
"""Of a question to Ray: entries, seconds."""
WORKER = "RayTrainWorker"


class Reclaim(Callback):
    """Removes the placement groups of trainings that are no more.

    A trial is stopped from outside: its training's controller dies and cannot clean up. Ray Train has a
    cleaner of its own, which ends for good at the first error it did not expect; later trials would then
    wait for ever. What is removed is named in a report of a trial that has ended, or had workers, none of
    which lives, at two looks in a row.
    """

    def __init__(self) -> None:
        self._of_trial: dict[str, set[str]] = {}
        self._ended: dict[str, float] = {}
        self._suspects: set[str] = set()
        self._looked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray Tune all the time."""
        if time.monotonic() - self._looked >= EVERY_SECONDS:
            self.look()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note where the trial's workers are."""
        if PLACEMENT_GROUP in result:
            self._of_trial.setdefault(trial.trial_id, set()).add(result[PLACEMENT_GROUP])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The end, by itself or by the scheduler; the report that stopped it may not have been announced."""
        self.on_trial_result(iteration, trials, trial, trial.last_result or {})
        self._ended |= dict.fromkeys(self._of_trial.pop(trial.trial_id, ()), time.monotonic())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The trial failed."""
        self.on_trial_complete(iteration, trials, trial)

    def look(self) -> bool:
        """Remove what ended or was abandoned; whether some training may hold resources still."""
        self._looked = time.monotonic()
        overdue = {name for name, ended in self._ended.items() if self._looked - ended >= GRACE_SECONDS}
        held = trainings()
        abandoned = {name for name, alive in (held or {}).items() if not alive}
        for name in overdue | (abandoned & self._suspects):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))
            self._ended.pop(name, None)
        self._suspects = abandoned
        return held is None or bool(held)

    def finish(self) -> None:
        """After the last trial: until all is given back, or some training does not end."""
        deadline = time.monotonic() + LAST_SECONDS
        while self.look() and time.monotonic() < deadline:
            time.sleep(1.0)


def trainings() -> dict[str, bool] | None:
    """Placement groups of the job's trainings, by id: whether a worker lives. None if Ray is silent."""
    here, result = ray.get_runtime_context(), {}
    asked = LIMITS | {"address": here.gcs_address}  # there may be other Rays on this machine
    try:
        ours = [("state", "=", "CREATED"), ("creator_job_id", "=", here.get_job_id())]
        for group in list_placement_groups(filters=ours, **asked):
            name = group["placement_group_id"]
            actors = list_actors(filters=[("placement_group_id", "=", name)], **asked)
            states = [actor["state"] for actor in actors if actor["class_name"] == WORKER]
            if states:
                result[name] = any(state != "DEAD" for state in states)
    except Exception:  # noqa: BLE001 - Ray raises many kinds, and the next look is soon
        return None
    return result
