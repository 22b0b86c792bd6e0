"""Connecting to Ray: a cluster where one is named, else one on this machine alone."""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from pipelines.cluster.address import find_cluster
from pipelines.cluster.private import private_folder, private_token
from pipelines.cluster.ray_log import RAY_LOG, say
from pipelines.cluster.signals import handlers_kept
from tadvae.base.errors import UserError

if TYPE_CHECKING:
    from tadvae.data.reader import Mapper

LOCAL_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Keeps every server of a local Ray on the loopback address; ray.init has no argument for it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # How often Ray Train looks at its workers: every report waits for the next look (default: 2 s).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # The dashboard shows training runs only if they are told to say what they do.
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
}
SMALL = 300_000_000
"""Bytes of cells up to which a command works in its own process: a local Ray needs longer to start."""


def is_connected() -> bool:
    """Whether this process is connected to a Ray."""
    ray = sys.modules.get("ray")  # nobody is connected who has not imported it
    return ray is not None and bool(ray.is_initialized())


def is_cluster_named() -> bool:
    """Whether ``RAY_ADDRESS`` names a cluster."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


@contextmanager
def session_if_needed(n_bytes: int) -> Iterator[None]:
    """Be connected to Ray inside the block where it is of use, see :func:`ray_session`.

    That is where a cluster is named, where this process is connected already, and where one process would
    need long.

    Parameters
    ----------
    n_bytes
        Size of what is read.
    """
    with ray_session() if is_cluster_named() or is_connected() or n_bytes > SMALL else nullcontext():
        yield


@contextmanager
def mapping(n_bytes: int) -> "Iterator[Mapper]":
    """Yield what maps over the parts of a store: Ray tasks where they are of use, else a loop."""
    from tadvae.data.reader import loop  # every command imports this module, and few read cells

    with session_if_needed(n_bytes):
        yield ray_map if is_connected() else loop


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
        if address and address != "local":
            say(f"connecting to the Ray cluster at {address}…")
            found = find_cluster(address)
            try:
                with handlers_kept():
                    ray.init(
                        address=found,
                        runtime_env=_named(address),
                        logging_level=logging.WARNING,
                    )
            except (ConnectionError, RuntimeError) as error:
                reason = str(error).splitlines()[0][:160]
                raise UserError(
                    f"the Ray cluster at {address} cannot be reached ({reason}); correct RAY_ADDRESS, "
                    f"or unset it to run on this machine{_token_hint()}."
                ) from None
        else:
            say("starting Ray on this machine (up to half a minute)…")
            cpus = max(int(-(-min_cpus // 1)), os.cpu_count() or 1)
            try:
                start_local_ray(cpus)
            except UserError:
                raise
            except Exception as error:  # Ray raises bare ones, where a process did not start in time
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
                raise UserError(
                    f"Ray could not be started on this machine ({reason}); see whether it has memory, "
                    "disk and processors left, and give the same command again."
                ) from error
        RAY_LOG.capture()
    try:
        _require(min_cpus, gpus)
        yield
    except Exception as error:
        if mention := RAY_LOG.mention():
            error.add_note(mention)
        raise
    finally:
        if not already:
            ray.shutdown()


def start_local_ray(num_cpus: int) -> None:
    """Start a Ray on this machine, whose processes know it by name.

    Ray Train's placement-group cleaner asks the dashboard, and looks for it by ``RAY_ADDRESS`` or else among
    all Rays of the machine; where it finds two it dies, and the workers of a stopped trial are never given
    back. Ray's processes inherit the environment of its start, so the port is chosen before it.
    """
    import ray

    folder = private_folder()
    private_token()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"127.0.0.1:{port}"}
    named["TMPDIR"] = folder  # other programs of Ray's make sockets there
    before = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    try:
        with handlers_kept():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=True,
                logging_level=logging.WARNING,
                _temp_dir=f"{folder}/r",  # which Ray opens to all users: they do not enter the one above
            )
    finally:  # this process is connected; a Ray of its children's is their own affair
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _named(address: str) -> dict[str, Any]:
    """The runtime environment that tells a cluster's workers which cluster they are in."""
    return {} if address == "auto" or "://" in address else {"env_vars": {"RAY_ADDRESS": address}}


def require_cleaning() -> None:
    """See that a Ray Train run that is stopped from outside gives its CPUs and GPUs back.

    Raises
    ------
    UserError
        If a worker cannot ask the dashboard for the state of an actor, which is what the clean-up rests on.
    """
    import ray

    reason = ray.get(ray.remote(num_cpus=0)(_ask_state).remote())
    if reason is not None:
        raise UserError(
            f"this Ray's dashboard does not answer its workers ({reason}), so stopped trials would keep "
            "their CPUs; start Ray with its dashboard on (`ray start --head --include-dashboard=true`) and "
            "set RAY_ADDRESS to HOST:PORT."
        )


def _ask_state() -> str | None:
    from ray.util.state import list_actors

    try:
        list_actors(limit=1, timeout=20)
    except Exception as error:  # noqa: BLE001 - Ray raises many kinds; any one means no clean-up
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    return None


def _token_hint() -> str:
    """Ray says of a missing token only that it cannot connect."""
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return ""
    return ", or, if it asks for a token, export RAY_AUTH_MODE=token and put the token into ~/.ray/auth_token"


def _require(cpus: float, gpus: float) -> None:
    import ray

    found = ray.cluster_resources()
    if found.get("CPU", 0) < cpus:
        raise UserError(
            f"the Ray cluster has {found.get('CPU', 0):g} CPUs, but this run needs {cpus:g}, one "
            "per worker; add nodes or lower --workers."
        )
    if found.get("GPU", 0) < gpus:
        raise UserError(
            f"the Ray cluster has {found.get('GPU', 0):g} GPUs, but this run needs {gpus:g}; "
            "add GPU nodes, lower --workers or leave out --gpu."
        )


def mapper_for(n_bytes: int) -> "Mapper":
    """What maps over a store of this size before training: Ray tasks, or a loop where little is read.

    Each task's process imports this program first, which takes longer than to read a small store.

    Parameters
    ----------
    n_bytes
        Size of what is read.
    """
    from tadvae.data.reader import loop

    return ray_map if n_bytes > SMALL else loop


def ray_map(function: Callable[..., Any], arguments: Sequence[tuple]) -> list[Any]:
    """A :data:`tadvae.data.reader.Mapper` of Ray tasks.

    An object that is the first argument of several calls is handed to the object store once.
    """
    import ray

    # not within the placement group of a trial's driver, which has no CPU to spare
    call = ray.remote(num_cpus=1, scheduling_strategy="DEFAULT")(function)
    shared = {id(first): first for first, *_ in arguments}
    references = {key: ray.put(first) for key, first in shared.items()}
    try:
        return ray.get([call.remote(references[id(first)], *rest) for first, *rest in arguments])
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, UserError) else error) from None
