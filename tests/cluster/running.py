"""Drivers, a head and an S3 server as processes of their own, and how to wait for them."""

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from moto.server import ThreadedMotoServer
from process_end import kill_what_stays

from tadvae.base.filesystem import Location

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
EXPERIMENT = {
    "stream": {"bags_per_batch": 2, "shuffle_window": 3},
    "model": {
        "pathway": {"d_embed": 16, "n_heads": 2},
        "causal": {"n_factors": 4, "hidden": 16},
        "decoder": {"d_gene": 16, "hidden": 16},
    },
    "train": {"epochs": 10, "checkpoint_every": 2, "learning_rate": 0.01, "max_failures": 1},
}


def page_commands() -> list[str]:
    """The commands of docs/cluster.md, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/cluster.md").read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end(process: subprocess.Popen | None) -> None:
    """End a process that a test started, and all that it started."""
    if process is None or process.poll() is not None:
        return
    parent = psutil.Process(process.pid)
    family = parent.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    kill_what_stays([parent, *family])
    process.wait()


@dataclass
class Storage:
    """An S3 server of this process; it forgets nothing while it is stopped."""

    port: int = field(default_factory=free_port)
    server: ThreadedMotoServer | None = None

    def start(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self.server.start()

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
        self.server = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@dataclass
class Driver:
    """Runs commands as a user would: processes with an environment of their own."""

    environment: dict[str, str]

    def start(self, command: str | list[str], log: Path, **more: str) -> subprocess.Popen:
        words = shlex.split(command) if isinstance(command, str) else command
        with log.open("wb") as out:
            return subprocess.Popen(
                words,
                cwd=ROOT,
                env=self.environment | more,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, command: str | list[str], code: int = 0, timeout: float = 500, **more: str) -> str:
        """Run to the end; returns what it printed."""
        words = shlex.split(command) if isinstance(command, str) else command
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, done.stdout[-6000:]
        return done.stdout

    def train(self, store: str, run: str, shared: Path, *more: str) -> list[str]:
        words = ["python", "-m", "pipelines", "train", store, "--out", run, "--workers", "2"]
        return [*words, "--config", str(shared / "experiment.yaml"), *more]


@dataclass
class Head:
    """A cluster of one node, and drivers that know its address."""

    address: str
    dashboard: str
    metrics: str
    driver: Driver
    token: str
    process: subprocess.Popen

    def adapt(self, command: str, shared: Path) -> str:
        """A command of the page with this head's ports and this test's shared folder."""
        for name, value in {
            "127.0.0.1:6379": self.address,
            "http://127.0.0.1:8265": self.dashboard,
            "/shared": str(shared),
        }.items():
            command = command.replace(name, value)
        return command


def answers(url: str, token: str) -> bool:
    try:
        return requests.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=10).ok
    except requests.RequestException:
        return False


def wait_for(condition: Callable[[], Any], seconds: float, what: Callable[[], str]) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not seen in {seconds} s: {what()[-4000:]}")


def log_records(run: Path, kind: str = "steps") -> list[dict]:
    pieces = sorted((run / "log").glob(f"{kind}-*.jsonl"))
    return [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]


def losses(records: list[dict]) -> list[tuple]:
    return [(r["step"], r["epoch"], r["cells"], r["loss"], r["mmd"], r["kl"]) for r in records]


def copy_to_s3(folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (Location.of(url) / str(path.relative_to(folder))).write_bytes(path.read_bytes())
