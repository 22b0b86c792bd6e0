"""Connecting to Ray: a cluster where one is named, else one on this machine alone."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tadvae.errors import UserError

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Keeps every server of a local Ray on the loopback address; ray.init has no argument for it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # How often Ray Train looks at its workers: every report waits for the next look (default: 2 s).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
}


@contextmanager
def ray_session(min_cpus: float = 1, gpus: float = 0, address: str | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block; a Ray that the block started ends with it.

    Parameters
    ----------
    min_cpus
        CPUs that the work needs at once. A local Ray is started with at least so many slots (its tasks share
        the cores there are); a cluster with fewer is a UserError.
    gpus
        GPUs that the work needs at once.
    address
        Address of a cluster; default: ``RAY_ADDRESS``, else a local Ray.
    """
    for name, value in LOCAL_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    # it announces at every start that the local Ray asks for a token, which ray.init then gives
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    already = ray.is_initialized()
    if not already:
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            try:
                ray.init(address=address, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError) as error:
                reason = str(error).splitlines()[0][:160]
                raise UserError(
                    f"the Ray cluster at {address} cannot be reached ({reason}); mend RAY_ADDRESS, "
                    "or unset it to run on this machine."
                ) from None
        else:
            cpus = max(int(-(-min_cpus // 1)), os.cpu_count() or 1)
            ray.init(address="local", num_cpus=cpus, include_dashboard=True, logging_level=logging.WARNING)
    try:
        _require(min_cpus, gpus)
        yield
    finally:
        if not already:
            ray.shutdown()


def _require(cpus: float, gpus: float) -> None:
    import ray

    found = ray.cluster_resources()
    if found.get("CPU", 0) < cpus:
        raise UserError(
            f"the Ray cluster has {found.get('CPU', 0):g} CPUs, but this run needs {cpus:g} (its "
            "workers and at least one for reading data); add nodes or lower --workers."
        )
    if found.get("GPU", 0) < gpus:
        raise UserError(
            f"the Ray cluster has {found.get('GPU', 0):g} GPUs, but this run needs {gpus:g}; "
            "add GPU nodes, lower --workers or leave out --gpu."
        )


def ray_map(function: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    """A :data:`tadvae.prepare.Mapper` of Ray tasks.

    An object that is the first argument of several calls is handed to the object store once.
    """
    import ray

    call = ray.remote(num_cpus=1)(function)
    shared = {id(first): first for first, *_ in arguments}
    references = {key: ray.put(first) for key, first in shared.items()}
    try:
        return ray.get([call.remote(references[id(first)], *rest) for first, *rest in arguments])
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
