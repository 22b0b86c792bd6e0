"""The workers of a Ray on one machine find each other by a file, and listen on the loopback address alone.

PyTorch's store for the addresses of workers listens on every address of the machine, and has no option to
choose one.
"""

import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import (
    _set_torch_distributed_env_vars,
    _setup_torch_process_group,
    _TorchBackend,
)


def is_local() -> bool:
    """Whether all nodes of this Ray are on the loopback address, and so on this machine."""
    return all(node["NodeManagerAddress"].startswith("127.") for node in ray.nodes() if node["Alive"])


@dataclass
class LoopbackConfig(TorchConfig):
    """Torch's process group for workers that are all on this machine."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the workers up."""
        return _LoopbackBackend


class _LoopbackBackend(_TorchBackend):
    _folder: str | None = None

    def on_start(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def]
        gpu = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        self._forget()  # of workers that died
        self._folder = tempfile.mkdtemp(prefix="tadvae-workers-")
        worker_group.execute(_set_torch_distributed_env_vars)
        worker_group.execute(_listen_on_loopback)
        size = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank,
                    _setup_torch_process_group,
                    backend="nccl" if gpu else "gloo",
                    world_rank=rank,
                    world_size=size,
                    init_method=(Path(self._folder) / "store").as_uri(),
                    timeout_s=backend_config.timeout_s,
                )
                for rank in range(size)
            ]
        )

    def on_shutdown(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def]
        try:
            super().on_shutdown(worker_group, backend_config)
        finally:
            self._forget()

    def _forget(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _listen_on_loopback() -> None:
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if names:
            os.environ[variable] = names[0]
