"""``deploy/local.yaml``, really brought up: ``ray up`` over SSH to this machine.

The SSH server is one process a connection, on the proxy command's pipes: no port, no daemon, keys and home of
its own. Nothing calls ``ray stop``, which would end every Ray of this machine.
"""

import getpass
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml
from process_end import kill_what_stays

from cluster.running import BIN, ROOT, Driver, free_port

SSHD = shutil.which("sshd", path=f"/usr/sbin:{os.environ['PATH']}")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        SSHD is None or shutil.which("ssh") is None or shutil.which("rsync") is None,
        reason="needs sshd, ssh and rsync (Debian: openssh-server, openssh-client, rsync)",
    ),
]


@pytest.fixture
def local() -> dict:
    return yaml.safe_load((ROOT / "deploy/local.yaml").read_text())


def test_ray_takes_it_and_nothing_stops_other_rays(local):
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(local)
    validate_config(prepared)
    assert prepared["max_workers"] == len(local["provider"]["worker_ips"])
    for kind in ("head_start_ray_commands", "worker_start_ray_commands"):
        (command,) = prepared[kind]
        assert "ray stop" not in command
        assert "RAY_AUTH_MODE=token" in command
    aws = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for kind in (
        "head_start_ray_commands",
        "worker_start_ray_commands",
    ):  # the same variables on every cluster
        assert variables(aws[kind][-1]) == variables(local[kind][-1])


def variables(command: str) -> set[str]:
    exports = command.partition(";")[0].removeprefix("export ")
    return {word.partition("=")[0] for word in exports.split()}


@pytest.fixture
def node(driver):
    """A home for the machine that is reached by SSH; whatever runs with it ends with the test."""
    folder = Path(tempfile.mkdtemp(prefix="tadvae-up-", dir="/tmp"))  # socket paths must be short
    home = folder / "home"
    home.mkdir()
    names = [name for name in driver.environment if name.startswith(("RAY_", "AWS_"))]
    own = {name: driver.environment[name] for name in names if name != "RAY_AUTH_MODE"}
    own |= {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(folder)}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in own.items()]
    (home / ".bash_profile").write_text("".join(lines))
    yield home
    mine = [p for p in psutil.process_iter() if home_of(p) == str(home)]
    for process in mine:
        process.terminate()
    kill_what_stays(mine)
    shutil.rmtree(folder, ignore_errors=True)


def home_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("HOME")
    except psutil.Error:
        return None


def proxy_command(folder: Path, home: Path) -> str:
    """An SSH server on standard input and output, which lets in the key beside it."""
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/user.pub\n"
        f"SetEnv HOME={home}\n"
        "StrictModes no\nPermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\n"
    )
    server = f"exec {SSHD} -i -f {folder}/sshd_config"
    if os.getuid():
        return server
    # root's sshd wants /run/sshd, which only its service makes: give it a /run that nobody else sees
    (folder / "serve").write_text(f"mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && {server}\n")
    return f"unshare --mount sh {folder}/serve"


def test_ray_up_brings_up_a_head_that_runs_the_program(local, driver, node, tmp_path):
    address, dashboard = f"127.0.0.1:{free_port()}", free_port()
    local["provider"] |= {"head_ip": "127.0.0.1", "worker_ips": []}
    proxy = proxy_command(tmp_path, node)
    local["auth"] = {
        "ssh_user": getpass.getuser(),
        "ssh_private_key": str(tmp_path / "user"),
        "ssh_proxy_command": proxy,
    }
    (command,) = local["head_start_ray_commands"]
    for documented, port in {
        "--port=6379": f"--port={address.rpartition(':')[2]}",
        "--dashboard-port=8265": f"--dashboard-port={dashboard}",
        "--metrics-export-port=8080": f"--metrics-export-port={free_port()}",
        "TADVAE_STORAGE=/shared/tadvae": f"TADVAE_STORAGE={tmp_path}",
    }.items():
        assert documented in command
        command = command.replace(documented, port)
    command += " --node-ip-address=127.0.0.1 --num-cpus=3 --object-store-memory=200000000"
    local["head_start_ray_commands"] = [f"{command} --dashboard-agent-listen-port={free_port()}"]
    place = tmp_path / "local.yaml"
    place.write_text(yaml.safe_dump(local))

    here = {"TMPDIR": str(node.parent), "RAY_TMPDIR": str(node.parent)}  # ray up keeps its state there
    driver.run(["ray", "up", "-y", "--no-config-cache", str(place)], timeout=400, **here)
    token = Path(driver.environment["HOME"]) / ".ray/auth_token"
    assert (node / ".ray/auth_token").read_text() == token.read_text()
    there = Driver(driver.environment | {"RAY_ADDRESS": address})
    said = there.run(["tadvae", "doctor", "--storage", str(tmp_path), "--workers", "2"])
    assert "1 node" in said
    there.environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    job = there.run("ray job submit --working-dir . -- python -m pipelines train --help")
    assert "succeeded" in job
    assert "--workers" in job
