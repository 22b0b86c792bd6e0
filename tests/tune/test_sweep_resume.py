"""A sweep goes on after its driver was killed, with a Ray of its own or the session's."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from process_end import kill_what_stays
from sweep_runs import WITHOUT_A_CLUSTER, main_exits

from tadvae.base.errors import UserError
from tadvae.base.filesystem import LOCK, Location
from tune.records import read_records
from tune.sweep import run_sweep

ROOT = Path(__file__).parents[2]


def assert_private(family: list[psutil.Process]) -> None:
    """A Ray of this machine: no server for other machines, and no folder for other users."""
    addresses, folders = set(), set()
    for process in family:
        with suppress(psutil.Error):
            addresses |= {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
            folders |= set(
                re.findall(r"[= ](/[^= ]*/tadvae-[^/ ]+)(?=/r/session_)", " ".join(process.cmdline()))
            )
    assert len(addresses) >= 1
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    (folder,) = folders
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.stat(Path.home() / ".ray/auth_token").st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_repeating(ray_cluster, store, space_file, tmp_path, capfd):
    """SIGKILL ends a driver with a Ray of its own in the middle; another goes on, on the session's Ray."""
    out = tmp_path / "sweep"
    command = ["tune", "run", str(store.folder), "--out", str(out)]
    settings = ["--config", str(space_file), "--trials", "3", "--max-concurrent", "1"]
    settings += ["--set", "scheduler.grace_epochs=2", "--set", "experiment.train.epochs=6"]
    deep = tmp_path / "net/scratch/people/longusername/slurm_jobdir/1355700/tmp.t0016/and/deeper"
    deep.mkdir(parents=True)
    with (tmp_path / "first.log").open("wb") as text:
        driver = subprocess.Popen(
            [sys.executable, "-m", *command, *settings],
            stdout=text,
            stderr=text,
            cwd=ROOT,
            env={**WITHOUT_A_CLUSTER, "TMPDIR": str(deep)},  # too long for Ray's sockets
            start_new_session=True,
        )
        family: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 400
            while not (out / LOCK).exists():
                assert driver.poll() is None, (tmp_path / "first.log").read_text()
                time.sleep(0.05)
            main_exits([*command, "--resume"], code=2)
            assert f"process {driver.pid} on " in capfd.readouterr().err
            looked = False
            while time.monotonic() < deadline and driver.poll() is None:
                records = read_records(Location.of(out)) if out.exists() else []
                ended = [r for r in records if r.status != "running"]
                if not looked and any(r.curve for r in records):  # workers of the first trial are there
                    assert_private(psutil.Process(driver.pid).children(recursive=True))
                    looked = True
                if ended and any(r.status == "running" and r.curve for r in records):
                    driver.send_signal(signal.SIGSTOP)  # so that no trial ends before it is killed
                    if any(r.status == "running" and r.curve for r in read_records(Location.of(out))):
                        break
                    driver.send_signal(signal.SIGCONT)
                time.sleep(0.05)
            assert driver.poll() is None, (tmp_path / "first.log").read_text()
            assert looked
            family = psutil.Process(driver.pid).children(recursive=True)
        finally:
            driver.kill()  # SIGKILL
            driver.wait()
            kill_what_stays(family)
    assert driver.returncode == -signal.SIGKILL
    before = {r.number: r for r in read_records(Location.of(out))}
    ended = [r for r in before.values() if r.status != "running"]
    stopped_at = next(r for r in before.values() if r.status == "running")
    touched = {r.number: _touched(out, r.number) for r in ended}
    assert ended
    assert stopped_at.curve

    capfd.readouterr()
    main_exits([*command, "--resume"])
    said = capfd.readouterr().out
    assert f"{len(ended)} trials have ended, 1 continue, {3 - len(ended)} to run" in said
    after = {r.number: r for r in read_records(Location.of(out))}
    assert sorted(after) == [0, 1, 2]
    assert all(r.status in ("finished", "stopped") for r in after.values())
    for record in ended:
        assert after[record.number] == record
        assert _touched(out, record.number) == touched[record.number]
        assert f"\ntrial {record.number:04d}:" not in said  # lines about the sweep may name it as the best
    assert f"trial {stopped_at.number:04d}: continues" in said
    again = after[stopped_at.number]
    assert again.values == stopped_at.values
    assert again.curve[: len(stopped_at.curve)] == stopped_at.curve
    cells = [p["cells_seen"] for p in again.curve]
    assert cells == sorted(set(cells))
    assert len({str(r.values) for r in after.values()}) == 3
    assert not (out / "tune").exists()


def _touched(out: Path, number: int) -> dict[str, int]:
    """When each file of a trial was last written."""
    folder = out / f"trials/{number:04d}"
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_resume_needs_the_sweeps_own_store(store, tmp_path):
    (tmp_path / "sweep.json").write_text('{"vocabulary_hash": "0123456789abcdef"}')
    (tmp_path / "sweep.yaml").write_text(
        "experiment: {validation: {every: 1}}\nparameters: {seed: {choice: [1, 2]}}\n"
    )
    with pytest.raises(UserError, match="another gene vocabulary"):
        run_sweep(str(store.folder), str(tmp_path), None, resume=True)
