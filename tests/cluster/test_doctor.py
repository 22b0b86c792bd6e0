"""tadvae doctor: sound clusters pass; every finding that can be provoked here is, and names its fix."""

import os
import re
import shutil
import subprocess
import tempfile

import pytest
import torch

from cluster.running import Driver, answers, end, free_port, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def fixes(printed: str) -> dict[str, str]:
    """What must be fixed → the line."""
    return {m[1]: line for line in printed.splitlines() if (m := re.match(r"FIX   (\w+): .*; .*\.$", line))}


@pytest.fixture(scope="module", autouse=True)
def without_token(head, tmp_path_factory):
    """Commands that do not give the head's token: each waits long, beside the other tests."""
    folder = tmp_path_factory.mktemp("without-token")
    environment = {k: v for k, v in head.driver.environment.items() if k != "RAY_AUTH_MODE"}
    homes = head.driver.environment["HOME"], str(folder)
    logs = [folder / f"{i}.log" for i in range(len(homes))]
    asking = [
        Driver(environment | {"HOME": home}).start("tadvae doctor", log)
        for home, log in zip(homes, logs, strict=True)
    ]
    yield list(zip(asking, logs, strict=True))
    for process in asking:
        end(process)


def test_a_sound_cluster(head, storage, shared):
    printed = head.driver.run(["tadvae", "doctor", "--workers", "3", "--storage", str(shared)])
    assert not fixes(printed)
    found = re.findall(r"^ok    (\w+): ", printed, re.M)
    assert found == ["address", "connection", "token", "dashboard", "cpus", "versions", "storage"]
    assert not list(shared.glob(".tadvae-doctor*"))
    assert "Traceback" not in printed
    printed = head.driver.run("tadvae doctor", TADVAE_STORAGE="s3://lab")
    assert re.search(r"^ok    storage: s3://lab: shared by 1 node and this machine$", printed, re.M)


def test_too_few_cpus_and_gpus_and_storage_that_cannot_be_used(head):
    printed = head.driver.run("tadvae doctor --workers 5 --gpu --storage s3://nobodys-bucket/x", code=2)
    found = fixes(printed)
    assert set(found) == {"cpus", "gpus", "storage"}
    assert "4 CPUs, but 5 workers need 5; add nodes or lower --workers" in found["cpus"]
    assert "0 GPUs for 5 workers" in found["gpus"]
    assert "leave out --gpu" in found["gpus"]
    assert printed.strip().splitlines()[-1] == "tadvae: 3 of these must be fixed before a run."
    assert "s3://nobodys-bucket/x" in found["storage"]


def test_an_address_where_nobody_answers(driver):
    address = f"127.0.0.1:{free_port()}"
    found = fixes(driver.run("tadvae doctor", code=2, RAY_ADDRESS=address))
    assert set(found) == {"address"}
    assert f"no server answers at RAY_ADDRESS={address} (Connection refused)" in found["address"]
    assert "correct RAY_ADDRESS" in found["address"]


def test_an_address_that_is_not_said(head, driver):
    """Another Ray runs here, and the run would not use it."""
    found = fixes(driver.run("tadvae doctor", code=2))
    assert "address" in found
    assert set(found) <= {"address", "dashboard"}  # of two Rays the state API finds neither
    assert head.address in found["address"]
    assert "set RAY_ADDRESS" in found["address"]


@pytest.fixture
def bare_head(driver, tmp_path):
    """A head without a dashboard that asks for no token."""
    environment = driver.environment | {"RAY_AUTH_MODE": "disabled"}
    port, folder = free_port(), tempfile.mkdtemp(prefix="tadvae-bare-", dir="/tmp")
    command = f"ray start --head --node-ip-address 127.0.0.1 --port {port} --include-dashboard=false --block"
    command += f" --num-cpus 2 --temp-dir {folder} --object-store-memory 100000000"
    process = Driver(environment).start(command, tmp_path / "bare.log")
    wait_for(
        lambda: "Ray runtime started" in (tmp_path / "bare.log").read_text(),
        120,
        (tmp_path / "bare.log").read_text,
    )
    yield Driver(environment | {"RAY_ADDRESS": f"127.0.0.1:{port}"})
    end(process)


def test_no_dashboard_and_no_token(bare_head):
    found = fixes(bare_head.run("tadvae doctor", code=2))
    assert set(found) == {"token", "dashboard"}
    assert "the state API does not answer" in found["dashboard"]
    assert "--include-dashboard=true" in found["dashboard"]
    assert "export RAY_AUTH_MODE=token on every node" in found["token"]


@pytest.fixture
def odd_node(head, tmp_path):
    """A second node, with another torch by its metadata, and an own disk where the others share a folder."""
    folder = tmp_path / "shared"
    folder.mkdir()
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a node a file system of its own")
    assert shutil.which("unshare")
    metadata = tmp_path / "other/torch-1.0.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0.0\n")
    address = head.address.replace("127.0.0.1", "[::ffff:127.0.0.1]")  # Ray rewrites the usual form
    start = f"ray start --address {address} --node-ip-address 127.0.0.1 --num-cpus 1 --block"
    command = ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs tmpfs {folder} && exec {start}"]
    path = f"{tmp_path / 'other'}{os.pathsep}{head.driver.environment['PYTHONPATH']}"
    own = {"PYTHONPATH": path, "RAY_ADDRESS": "", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    process = head.driver.start(command, tmp_path / "node.log", **own)
    nodes = f"{head.dashboard}/api/version"
    wait_for(
        lambda: "Ray runtime started" in (tmp_path / "node.log").read_text() and answers(nodes, head.token),
        120,
        (tmp_path / "node.log").read_text,
    )
    yield folder
    end(process)


def test_a_node_with_other_versions_and_another_disk(head, odd_node):
    printed = head.driver.run(["tadvae", "doctor", "--storage", str(odd_node)], code=2)
    found = fixes(printed)
    assert set(found) == {"versions", "storage"}
    assert f"torch 1.0.0 (here {torch.__version__.partition('+')[0]}" in found["versions"]
    assert "install the same versions on every node" in found["versions"]
    assert "cannot read there what this machine wrote" in found["storage"]
    assert not list(odd_node.glob(".tadvae-doctor*"))


def test_no_token_for_a_cluster_that_asks_for_one(without_token):
    for process, log in without_token:
        code, printed = process.wait(timeout=500), log.read_text()
        assert code == 2, printed
        assert "if it asks for a token" in fixes(printed)["connection"]
        assert "export RAY_AUTH_MODE=token" in fixes(printed)["connection"]
