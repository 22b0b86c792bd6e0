"""Callback of Ray Tune: frees the CPUs and GPUs of ended trials if Ray Train did not."""

import time
from typing import Any

import ray
from ray.tune import Callback
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_actors, list_placement_groups

from pipelines.train.worker import PLACEMENT_GROUP

EVERY_SECONDS = 10.0
"""Seconds between two checks."""
GRACE_SECONDS = 20.0
"""Seconds after the end of a trial in which Ray Train itself may free its resources."""
LAST_SECONDS = 60.0
"""Longest time to wait after the last trial, in seconds."""
LIMITS: dict[str, Any] = {"limit": 1000, "timeout": 10}
"""Limits of a request to Ray's state API: number of entries, and seconds."""
WORKER = "RayTrainWorker"


class Reclaim(Callback):
    """Removes the placement groups of trainings that have ended.

    If Ray Tune stops a trial, the controller of its training is killed and cannot clean up. Ray Train has its
    own cleaner, but it ends at the first unexpected error, and later trials would then wait forever. A
    placement group is removed if a trial that has ended reported it, or if all its workers were dead in two
    successive checks.
    """

    def __init__(self) -> None:
        self._of_trial: dict[str, set[str]] = {}
        self._ended: dict[str, float] = {}
        self._suspects: set[str] = set()
        self._looked = time.monotonic()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called by Ray Tune at every step of its loop."""
        if time.monotonic() - self._looked >= EVERY_SECONDS:
            self.look()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Remember the placement group of the trial's workers."""
        if PLACEMENT_GROUP in result:
            self._of_trial.setdefault(trial.trial_id, set()).add(result[PLACEMENT_GROUP])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Remember the end of a trial; the last report may not have been passed to on_trial_result."""
        self.on_trial_result(iteration, trials, trial, trial.last_result or {})
        self._ended |= dict.fromkeys(self._of_trial.pop(trial.trial_id, ()), time.monotonic())

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Remember the end of a failed trial."""
        self.on_trial_complete(iteration, trials, trial)

    def look(self) -> bool:
        """Remove groups that have ended or were abandoned; return whether a training may still hold some."""
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
        """Check repeatedly after the last trial, until all resources are free or the time is over."""
        deadline = time.monotonic() + LAST_SECONDS
        while self.look() and time.monotonic() < deadline:
            time.sleep(1.0)


def trainings() -> dict[str, bool] | None:
    """Whether each placement group of the job's trainings has a live worker; None if Ray does not answer."""
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
