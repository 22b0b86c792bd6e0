"""A head started by the page's own command, S3 on loopback, and a run that nothing disturbed."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from local_conversion import convert_locally
from ray_environment import ENVIRONMENT

from cluster.running import (
    BIN,
    EXPERIMENT,
    ROOT,
    Driver,
    Head,
    Storage,
    answers,
    end,
    free_port,
    page_commands,
    wait_for,
)
from tadvae.base.filesystem import Location


@pytest.fixture(scope="package")
def storage() -> Iterator[Storage]:
    """Holds the bucket ``lab``; this process's environment points to it too."""
    storage = Storage()
    storage.start()
    requests.put(f"http://127.0.0.1:{storage.port}/lab", timeout=30).raise_for_status()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in storage.environment.items():
            patch.setenv(name, value)
        yield storage
    storage.stop()


@pytest.fixture(scope="package")
def driver(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """Commands without a cluster: each starts its own Ray, if it needs one."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    environment |= ENVIRONMENT | storage.environment
    environment |= {"HOME": str(home), "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment |= {"RAY_AUTH_MODE": "token", "OMP_NUM_THREADS": "1"}
    driver = Driver(environment)
    driver.run("ray get-auth-token --generate")
    return driver


@pytest.fixture(scope="package")
def head(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Started by the command of docs/cluster.md, on free ports and with a folder of its own."""
    ports = {name: str(free_port()) for name in ("6379", "8265", "8080")}
    (command,) = [line for line in page_commands() if line.startswith("ray start --head")]
    for documented, port in ports.items():
        assert f" {documented}" in command
        command = command.replace(f" {documented}", f" {port}")
    folder = tempfile.mkdtemp(prefix="tadvae-ray-", dir="/tmp")  # socket paths must be short
    log = tmp_path_factory.mktemp("head") / "head.log"
    command += f" --block --num-cpus 4 --temp-dir {folder} --object-store-memory 400000000"
    # jobs come in through the agent, and another Ray on this machine may have its default port
    command += f" --dashboard-agent-listen-port {free_port()}"
    process = driver.start(command, log)
    dashboard = f"http://127.0.0.1:{ports['8265']}"
    token = (Path(driver.environment["HOME"]) / ".ray/auth_token").read_text().strip()
    try:
        wait_for(lambda: answers(f"{dashboard}/api/version", token), 120, log.read_text)
        # the agent starts last: it runs jobs and serves metrics
        wait_for(lambda: answers(f"http://127.0.0.1:{ports['8080']}/metrics", token), 120, log.read_text)
        address = f"127.0.0.1:{ports['6379']}"
        own = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": dashboard}
        own["RAY_TRAIN_ENABLE_STATE_TRACKING"] = "1"  # the dashboard shows its runs
        metrics = f"http://127.0.0.1:{ports['8080']}/metrics"
        yield Head(address, dashboard, metrics, Driver(driver.environment | own), token, process)
    finally:
        end(process)


@pytest.fixture(scope="package")
def shared(simulated: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a cluster's nodes share: the screens, their spec, an experiment."""
    folder = tmp_path_factory.mktemp("shared")
    spec = yaml.safe_load(simulated.spec.read_text())
    for dataset in spec["datasets"]:
        dataset["path"] = str(simulated.folder / dataset["path"])
    spec["layout"] = {"row_group_rows": 60, "shard_rows": 300, "bag_size": 16}
    (folder / "screens.yaml").write_text(yaml.safe_dump(spec))
    experiment = {**EXPERIMENT, "pathways": {"file": str(simulated.folder / "pathways.gmt")}}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    return folder


@pytest.fixture(scope="package")
def local_store(shared: Path) -> Path:
    """The screens as a store; Ray's tasks, here and in a job, write the same bytes."""
    convert_locally(shared / "screens.yaml", Location.of(shared / "store"))
    return shared / "store"


@pytest.fixture(scope="package")
def whole_begun(driver: Driver, shared: Path, local_store: Path) -> Iterator[subprocess.Popen]:
    """The command of :func:`whole`, whose first reader need not wait for all of it."""
    process = driver.start(
        driver.train(str(local_store), str(shared / "whole"), shared), shared / "whole.log"
    )
    yield process
    end(process)


@pytest.fixture(scope="package")
def whole(whole_begun: subprocess.Popen, shared: Path) -> Path:
    """A local run that nothing disturbed."""
    assert whole_begun.wait(timeout=500) == 0, (shared / "whole.log").read_text()[-6000:]
    return shared / "whole"
