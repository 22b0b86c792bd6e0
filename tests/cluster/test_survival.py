"""What a run survives: each loss is real, and the run ends as the undisturbed one did.

Drivers are processes; the cluster is the head of ``conftest.py`` unless a node must die.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from safetensors.numpy import load_file

from cluster.running import Driver, copy_to_s3, end, free_port, log_records, losses, wait_for
from pipelines.cli.main import main
from tadvae.base.filesystem import Location
from tadvae.model.run_folder import RunFolder
from tadvae.model.weights import WEIGHTS

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]


def pieces(run: Path) -> list[Path]:
    return sorted((run / "log").glob("steps-*.jsonl"))


def wait_for_pieces(run: Path, n: int, process: subprocess.Popen, log: Path) -> None:
    def there() -> bool:
        assert process.poll() is None, log.read_text()[-4000:]
        return len(pieces(run)) >= n

    wait_for(there, 300, log.read_text)


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run / "model" / WEIGHTS).items()}


def restarts(run: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((run / "log").glob("restart-*.json"))]


def assert_equal(run: Path, whole: Path) -> None:
    """Nothing lost, no step twice."""
    assert losses(log_records(run)) == losses(log_records(whole))
    assert weights(run) == weights(whole)
    assert not list(run.rglob("*.tmp"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A disk of its own, of 24 MB; None where this user may not mount one."""
    place = tmp_path_factory.mktemp("small") / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    yield place
    subprocess.run(["umount", str(place)], check=True)


@dataclass
class Going:
    """One run that one thing after the other happens to; the same command goes on with it each time."""

    driver: Driver
    command: list[str]
    run: Path
    store: Path
    """Its own copy, which a test may damage."""

    def start(self, log: Path) -> subprocess.Popen:
        """Give the command; returns when the run has made some steps more."""
        earlier, resumes = len(restarts(self.run)), bool(pieces(self.run))
        process = self.driver.start(self.command, log)

        def goes_on() -> bool:
            assert process.poll() is None, log.read_text()[-4000:]
            begun = [path.stat().st_mtime_ns for path in (self.run / "log").glob("restart-*.json")]
            if resumes and len(begun) == earlier:
                return False
            since = max(begun, default=0)
            return sum(modified(path) > since for path in pieces(self.run)) >= 3

        try:
            wait_for(goes_on, 300, log.read_text)
        except BaseException:
            end(process)
            raise
        return process

    def ends_with(self, process: subprocess.Popen, log: Path) -> str:
        """Wait for the end with bad input's exit code and without weights; returns the last line."""
        process.wait(timeout=600)
        printed = log.read_text()
        assert process.returncode == 2, printed[-4000:]
        assert not (self.run / "model" / WEIGHTS).exists()
        return printed.strip().splitlines()[-1]


def modified(path: Path) -> int:
    """When it was written; 0 where a restart has just taken it away."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def going(head, shared, local_store, small_disk, tmp_path_factory) -> Going:
    folder = tmp_path_factory.mktemp("going")
    store, run = folder / "store", (small_disk or folder) / "run"
    shutil.copytree(local_store, store)
    # without a second try by the same driver: the next command is that
    command = head.driver.train(str(store), str(run), shared, "--set", "train.max_failures=0")
    return Going(head.driver, command, run, store)


def test_the_disk_is_full_at_a_checkpoint(going, small_disk, tmp_path):
    if small_disk is None:
        pytest.skip("only root can mount a disk to be filled")
    process = going.start(tmp_path / "log")
    ballast = small_disk / "ballast"
    fill(ballast)
    assert "the disk is full" in going.ends_with(process, tmp_path / "log")
    kept = [path for path in (going.run / "checkpoints").iterdir() if path.is_dir()]
    assert kept
    for folder in kept:  # whole, or gone
        assert load_file(folder / WEIGHTS)
        assert load_file(folder / "optimizer.safetensors")
        assert json.loads((folder / "position.json").read_text())["global_step"] > 0
    ballast.unlink()


def fill(place: Path) -> None:
    """Write until nothing more fits."""
    with place.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            while True:
                try:
                    file.write(b"\0" * size)
                except OSError:
                    break


@pytest.mark.parametrize("loss", ["lost", "damaged"])
def test_a_shard_goes_in_the_middle_and_comes_back(going, tmp_path, loss):
    shard = sorted((going.store / "cells").rglob("*.parquet"))[0]
    good = shard.read_bytes()
    process = going.start(tmp_path / "log")
    if loss == "lost":
        shard.unlink()
    else:
        shard.write_bytes(good[:4] + bytes(255 - byte for byte in good[4:-4]) + good[-4:])
    sentence = going.ends_with(process, tmp_path / "log")
    assert sentence.startswith(f"tadvae: {going.store}: ")
    assert shard.name in sentence
    assert "Traceback" not in sentence
    shard.write_bytes(good)


def test_the_driver_dies_and_after_all_that_nothing_is_lost(going, whole, tmp_path, capfd):
    """The same command goes on with what earlier tests interrupted, and ends as an undisturbed run."""
    process = going.start(tmp_path / "log")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    run, before = going.run, len(restarts(going.run))
    assert not (run / "model" / WEIGHTS).exists()
    printed = going.driver.run(going.command)
    assert_equal(run, whole)
    assert len(restarts(run)) == before + 1
    restart = restarts(run)[-1]
    assert restart["step"] > 0
    assert restart["workers"] == 2
    assert restart["steps_of_this_stretch"] + restart["step"] > 0
    assert re.search(r"restart at epoch \d+, step \d+, with 2 workers", printed)
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "this run is finished" in command_here(capfd, going.command)  # a job that is tried again
    assert files == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = command_here(capfd, [*going.command, "--set", "seed=5"], code=2)
    assert "already holds a run of other settings" in other


def command_here(capfd, command: list[str], code: int = 0) -> str:
    """What a command prints that needs no Ray, called in this process."""
    assert command[:3] == ["python", "-m", "pipelines"]
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(command[3:])
    assert (ended.value.code or 0) == code
    return "".join(capfd.readouterr())


def test_storage_that_does_not_answer_for_a_while(head, storage, shared, local_store, whole, tmp_path):
    copy_to_s3(local_store, "s3://lab/outage-store")
    command = head.driver.train("s3://lab/outage-store", "s3://lab/outage", shared)
    process = head.driver.start(command, tmp_path / "log")
    log = Location.of("s3://lab/outage/log")
    wait_for(lambda: len(log.names()) >= 3, 300, (tmp_path / "log").read_text)
    storage.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{storage.port}", timeout=5)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=15)  # it waits too
    storage.start()
    process.wait(timeout=600)
    printed = (tmp_path / "log").read_text()
    assert process.returncode == 0, printed[-4000:]
    assert losses(RunFolder("s3://lab/outage").steps()) == losses(log_records(whole))
    assert not [name for name in log.names() if name.startswith("restart-")]  # no worker had to begin again


class Nodes:
    """Several raylets on this machine, each a node of its own; see ``nodes.py``."""

    def __init__(self, driver: Driver, cpus: list[int]) -> None:
        # a node is dead after some missed health checks
        environment = driver.environment | {"RAY_health_check_period_ms": "1000"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nodes.py")), str(free_port()), *map(str, cpus)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.raylets = [self.next_raylet() for _ in cpus]

    def next_raylet(self) -> int:
        for line in self.process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                self.address = said["address"]
                return said["raylet"]
        raise AssertionError("the nodes ended")

    def add(self, cpus: int) -> None:
        self.process.stdin.write(f"{cpus}\n")
        self.process.stdin.flush()
        self.raylets.append(self.next_raylet())

    def kill_one_that_trains(self) -> None:
        """SIGKILL the raylet of a node that is not the head and has a training worker."""

        def find() -> int | None:
            for pid in self.raylets[1:]:
                names = [child.name() for child in psutil.Process(pid).children(recursive=True)]
                if any(name.startswith("ray::RayTrainWo") for name in names):
                    return pid
            return None

        pid = wait_for(find, 120, lambda: "no training worker on any node")
        os.kill(pid, signal.SIGKILL)
        self.raylets.remove(pid)


@pytest.fixture(scope="module")
def nodes(driver):
    """A cluster of three nodes with a CPU each; the first is the head."""
    nodes = Nodes(driver, [1, 1, 1])
    yield nodes
    nodes.process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        nodes.process.wait(timeout=60)
    end(nodes.process)
    nodes.process.stdout.close()


def test_a_range_of_workers_shrinks_and_grows_with_the_nodes(nodes, driver, shared, local_store, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    settings = ["--set", "train.max_failures=3", "--set", "train.log_bags=true", "--set", "train.epochs=5000"]
    command = driver.train(str(local_store), str(run), shared, *settings)
    command[command.index("--workers") + 1] = "1:4"
    process = driver.start(command, log, RAY_ADDRESS=nodes.address)

    def wait_for_workers(n: int) -> None:
        def there() -> bool:
            assert process.poll() is None, log.read_text()[-4000:]
            with suppress(FileNotFoundError):  # a restart deletes pieces while they are read
                return (log_records(run) or [{"workers": 0}])[-1]["workers"] == n
            return False

        wait_for(there, 400, log.read_text)

    try:
        wait_for_workers(3)
        nodes.kill_one_that_trains()
        wait_for_workers(2)
        nodes.add(1)
        wait_for_workers(3)
        process.terminate()
        process.wait(timeout=120)
    finally:
        end(process)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in log.read_text()
    assert "*** SIGTERM" not in log.read_text()  # the stack of C++

    # a changed epoch shows every bag, and twice only those of equal shares that the log names
    n_bags = json.loads((run / "run.json").read_text())["bags"]
    shown: dict[int, Counter] = {}
    for record in log_records(run, "bags"):
        shown.setdefault(record["epoch"], Counter()).update(record["bags"])
    named: dict[int, set] = {}
    for restart in restarts(run):
        named.setdefault(restart["epoch"], set()).update(restart["bags_repeated"])
    assert len(named) >= 2
    for epoch in named.keys() - {max(shown)}:
        assert len(shown[epoch]) == n_bags
        twice = {bag for bag, times in shown[epoch].items() if times > 1}
        assert len(twice - named[epoch]) < 3  # of the stretch before: run.json has their number


def test_a_node_dies(nodes, driver, shared, local_store, whole, tmp_path):
    nodes.add(2)  # so that two workers and their reading have room on what is left
    run = tmp_path / "run"
    process = driver.start(
        driver.train(str(local_store), str(run), shared, "--set", "train.max_failures=3"),
        tmp_path / "log",
        RAY_ADDRESS=nodes.address,
    )
    try:
        wait_for_pieces(run, 3, process, tmp_path / "log")
        nodes.kill_one_that_trains()
        process.wait(timeout=900)
    finally:
        end(process)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-6000:]
    assert restarts(run)
    assert_equal(run, whole)
