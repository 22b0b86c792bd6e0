"""Running many calls: as Ray tasks, with a limit on how many run at the same time, or one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

from pipelines.cluster.connection import is_connected
from pipelines.cluster.progress import Steps
from tadvae.base.errors import UserError


def run_tasks(
    what: str,
    calls: Sequence[tuple[Callable[..., Any], tuple]],
    at_once: int | None,
    already: int = 0,
    gpus: float = 0,
) -> list[Any]:
    """Run calls; return the results in their order.

    In a process that is connected to Ray they are tasks of it, at most ``at_once`` at a time. The first
    UserError of a task ends all calls and is raised here. In any other process they run one after the other.

    Parameters
    ----------
    what
        Name of the work, shown with the progress.
    calls
        Functions and their arguments. An object that is the first argument of several calls is handed to the
        object store once.
    at_once
        Largest number of running calls; None: twice the number of CPUs.
    already
        Number of tasks of the same work that were done before.
    gpus
        GPUs of each task.
    """
    if not is_connected():
        with Steps(what, already + len(calls)) as steps:
            steps.advance(already)
            done = []
            for function, arguments in calls:
                done.append(function(*arguments))
                steps.advance()
            return done
    import ray

    tasks = {
        function: ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(function) for function, _ in calls
    }
    firsts = {id(first): first for _, (first, *_) in calls}
    shared = {key: ray.put(first) for key, first in firsts.items()}
    at_once = at_once or max(2 * int(ray.cluster_resources().get("CPU", 1)), 2)
    results: dict[int, Any] = {}
    running: dict[Any, int] = {}
    waiting = iter(enumerate(calls))
    with Steps(what, already + len(calls)) as steps:
        steps.advance(already)
        while len(results) < len(calls):
            while len(running) < at_once and (item := next(waiting, None)) is not None:
                number, (function, (first, *rest)) = item
                running[tasks[function].remote(shared[id(first)], *rest)] = number
            (ended,), _ = ray.wait(list(running), num_returns=1)
            try:
                results[running.pop(ended)] = ray.get(ended)
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
