"""Running many remote calls with a limit on how many run at the same time."""

from collections.abc import Sequence
from typing import Any

import ray

from pipelines.cluster.progress import Steps
from tadvae.base.errors import UserError


def run_tasks(
    what: str, calls: Sequence[tuple[Any, tuple]], at_once: int | None, already: int = 0
) -> list[Any]:
    """Run remote calls, at most ``at_once`` at a time; return the results in the order of the calls.

    The first UserError of a task ends all calls and is raised here.

    Parameters
    ----------
    what
        Name of the work, shown with the progress.
    calls
        Remote functions and their arguments.
    at_once
        Largest number of running calls; None: twice the number of CPUs.
    already
        Number of tasks of the same work that were done before.
    """
    at_once = at_once or max(2 * int(ray.cluster_resources().get("CPU", 1)), 2)
    results: dict[int, Any] = {}
    running: dict[Any, int] = {}
    waiting = iter(enumerate(calls))
    with Steps(what, already + len(calls)) as steps:
        if already:
            steps.advance(already)
        while len(results) < len(calls):
            while len(running) < at_once and (item := next(waiting, None)) is not None:
                number, (function, arguments) = item
                running[function.remote(*arguments)] = number
            (done,), _ = ray.wait(list(running), num_returns=1)
            try:
                results[running.pop(done)] = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                # Wait for the others instead of ray.cancel: a forced cancel can abort the driver (a failed
                # check in Ray 2.60's task manager), and a task that continues would write into a folder that
                # is being deleted.
                if running:
                    ray.wait(list(running), num_returns=len(running))
                cause = error.cause
                raise cause if isinstance(cause, UserError) else error from None
            steps.advance()
    return [results[i] for i in range(len(calls))]
