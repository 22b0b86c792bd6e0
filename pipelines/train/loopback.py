"""The workers of a Ray on one machine find each other by a file, and listen on the loopback address alone.

PyTorch's store for the addresses of workers listens on every address of the machine, and has no option to
choose one. Ray Train's controller imports this module, and it starts seconds earlier without PyTorch: that is
imported by the functions that run in the workers.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

LEAVING_S = 30
"""Seconds after which a worker that does not leave the process group is no longer waited for."""


def is_local() -> bool:
    """Whether all nodes of this Ray are on the loopback address, and so on this machine."""
    return all(node["NodeManagerAddress"].startswith("127.") for node in ray.nodes() if node["Alive"])


@dataclass
class LoopbackConfig(BackendConfig):
    """Torch's process group for workers that are all on this machine.

    It names no framework for the dashboard: Ray Train's controller would wait for PyTorch's version, and
    import PyTorch to read it.
    """

    timeout_s: int
    backend: str | None = None
    """``nccl`` or ``gloo``; Ray Train's trainer sets it where it is None."""

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the workers up."""
        return _LoopbackBackend

    @property
    def train_func_context(self) -> Callable[[], Any]:
        """What the training function runs in; asked for by the driver alone."""
        from ray.train.torch.config import TorchConfigContextManager

        return TorchConfigContextManager

    def to_dict(self) -> dict[str, Any]:
        """The settings, for the dashboard."""
        return asdict(self)


class _LoopbackBackend(Backend):
    share_cuda_visible_devices = True
    _folder: str | None = None

    def on_start(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def]
        self._forget()  # of workers that died
        self._folder = tempfile.mkdtemp(prefix="tadvae-workers-")
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(
                rank,
                _join,
                backend=backend_config.backend,
                world_rank=rank,
                world_size=size,
                init_method=(Path(self._folder) / "store").as_uri(),
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def]
        try:
            ray.get(worker_group.execute_async(_leave, len(worker_group) > 1), timeout=LEAVING_S)
        except GetTimeoutError:  # it waits for one that died, and ends with its actor
            pass
        finally:
            self._forget()

    def _forget(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _join(**settings: Any) -> None:
    """Enter the process group; called in a worker."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    _set_torch_distributed_env_vars()
    _listen_on_loopback()
    _setup_torch_process_group(**settings)


def _leave(in_group: bool) -> None:
    """Leave the process group; called in a worker."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=in_group)


def _listen_on_loopback() -> None:
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if names:
            os.environ[variable] = names[0]
