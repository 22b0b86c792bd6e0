"""Folders and the token of a local Ray: for one user alone, and with a short path."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.cluster.private import LONGEST, private_folder, private_token

DEEP = "net/scratch/people/longusername/slurm_jobdir/1355700/tmp.t0016/and/deeper"


def mode(place):
    return stat.S_IMODE(os.stat(place).st_mode)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", None)


def test_a_long_tmpdir_is_not_used(short, monkeypatch, tmp_path):
    (tmp_path / DEEP).mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / DEEP))
    folder = private_folder()
    assert len(folder) <= LONGEST + len("/tadvae-12345678")
    assert mode(folder) == 0o700
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / DEEP))
    assert Path(private_folder()).parent == Path("/tmp")


def test_ray_tmpdir_comes_first_and_one_that_is_not_there_is_passed_over(short, monkeypatch):
    mine = private_folder()
    monkeypatch.setenv("RAY_TMPDIR", mine)
    monkeypatch.setattr("pipelines.cluster.private.LONGEST", 200)
    assert os.path.dirname(private_folder()) == mine
    monkeypatch.setenv("RAY_TMPDIR", "/no/such")
    assert os.path.dirname(private_folder()) != "/no/such"


def test_no_folder_at_all(short, monkeypatch, refused):
    monkeypatch.setattr("pipelines.cluster.private.LONGEST", 1)
    assert "RAY_TMPDIR" in refused(private_folder)


def test_the_folder_goes_with_its_process(short):
    program = (
        "from pipelines.cluster.private import private_folder; f = private_folder();"
        "open(f + '/x', 'w').close(); print(f)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not Path(done.stdout.strip()).exists()


def test_the_folder_of_a_killed_process_goes_with_the_next_start(short, monkeypatch, tmp_path_factory):
    """And those of living processes, of others, and what only has the name stay."""
    monkeypatch.setenv("RAY_TMPDIR", place := tempfile.mkdtemp(dir="/tmp"))
    program = (
        "import os, signal; from pipelines.cluster.private import private_folder; print(private_folder(), "
        "flush=True); os.kill(os.getpid(), signal.SIGKILL) if os.environ['DIE'] else input()"
    )
    command = [sys.executable, "-c", program]
    try:
        for name in ("tadvae-empty", "tadvae-named/owner", "other"):
            Path(place, name).mkdir(parents=True)
        away = tmp_path_factory.mktemp("away")
        (away / "owner").touch()
        Path(place, "tadvae-link").symlink_to(away)
        lives = subprocess.Popen(
            command, env={**os.environ, "DIE": ""}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        living = lives.stdout.readline().strip()
        killed = subprocess.run(command, env={**os.environ, "DIE": "1"}, capture_output=True, text=True)
        dead = killed.stdout.strip()
        assert killed.returncode == -9
        assert Path(dead).is_dir()
        mine = private_folder()
        names = ["other", "tadvae-empty", "tadvae-link", "tadvae-named", os.path.basename(living)]
        assert sorted(os.listdir(place)) == sorted([*names, os.path.basename(mine)])
        assert (away / "owner").exists()
        lives.communicate("\n")
        assert not Path(living).exists()
    finally:
        shutil.rmtree(place)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_token_is_private_and_stays(home):
    private_token()
    token = home / ".ray/auth_token"
    word = token.read_text()
    assert len(word) == 64
    assert mode(token) == 0o600
    assert mode(token.parent) == 0o700
    token.chmod(0o644)  # as Ray makes it
    private_token()
    assert (token.read_text(), mode(token)) == (word, 0o600)
    assert os.listdir(home / ".ray") == ["auth_token"]


@pytest.mark.parametrize("variable", ["RAY_AUTH_MODE=disabled", "RAY_AUTH_TOKEN=x", "RAY_AUTH_TOKEN_PATH=/x"])
def test_another_token_is_left_alone(home, monkeypatch, variable):
    monkeypatch.setenv(*variable.split("="))
    private_token()
    assert not (home / ".ray").exists()
