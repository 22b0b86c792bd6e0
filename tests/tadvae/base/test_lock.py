"""One command at a time writes into a folder; what a killed one left behind is recognised."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, replace

import pytest
from pyarrow import fs as pafs

from tadvae.base import lock as module
from tadvae.base.errors import StorageError, UserError
from tadvae.base.filesystem import LOCK, Location
from tadvae.base.lock import Holder, locked

HOLD = """
import sys, time
from tadvae.base.filesystem import Location
from tadvae.base.lock import locked
with locked(Location.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["disk", "object store"])
def folder(request, tmp_path, monkeypatch):
    """An output folder that does not exist yet, on the disk and on what is no disk for the program."""
    monkeypatch.setattr(module, "SETTLE", 0.05)
    monkeypatch.setattr(module, "WAIT", 0.5)
    if request.param == "disk":
        return Location.of(tmp_path / "a/b/run")
    return Location(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "run")


@pytest.fixture
def another(tmp_path):
    """A process that holds the lock of a folder."""
    started = []

    def another(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield another
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def left_by(folder, **other):
    """Leave the lock of another process."""
    holder = replace(Holder.this_process(), **other)
    folder.make_folder()
    (folder / LOCK).write_text(json.dumps(asdict(holder)))
    return holder


def test_a_lock_comes_and_goes(folder, refused):
    with locked(folder):
        assert (folder / LOCK).exists()
        assert folder.names() == []  # it is no content
        sentence = refused(locked(folder).__enter__)
        for word in (str(folder), str(os.getpid()), os.uname().nodename, LOCK):
            assert word in sentence
        (folder / "file").write_text("x")
    assert folder.names() == ["file"]
    assert not (folder / LOCK).exists()
    with locked(folder):
        pass
    assert folder.names() == ["file"]


def test_nothing_is_left_where_nothing_was_written(folder, tmp_path):
    with pytest.raises(UserError), locked(folder):
        raise UserError("no.")
    assert not list(tmp_path.iterdir())


def test_a_killed_process_on_this_host(another, tmp_path, refused):
    folder = Location.of(tmp_path / "run")
    process = another(folder.path)
    sentence = refused(locked(folder).__enter__)
    assert f"process {process.pid} on " in sentence
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert (folder / LOCK).exists()
    with locked(folder):
        pass
    process.wait()


def test_a_number_that_is_used_again(folder):
    left_by(folder, started="1")
    with locked(folder):
        pass


@pytest.mark.parametrize("other", [{"host": "node7"}, {"machine": "another container of this name"}])
def test_a_lock_of_another_host_that_nobody_keeps_up(folder, other, capsys):
    left_by(folder, pid=1234567, **other)
    with locked(folder):
        pass
    assert "process 1234567 on" in capsys.readouterr().err


def test_a_lock_of_another_host_that_is_kept_up(folder, refused, monkeypatch):
    monkeypatch.setattr(module, "WAIT", 5.0)
    holder = left_by(folder, host="node7", pid=77)
    sleep = time.sleep

    def another_beat(seconds):
        sleep(0.01)
        (folder / LOCK).write_text(json.dumps(asdict(replace(holder, beat=1))))

    monkeypatch.setattr(module.time, "sleep", another_beat)
    began = time.monotonic()
    sentence = refused(locked(folder).__enter__)
    assert time.monotonic() - began < 4
    assert "process 77 on node7 " in sentence
    assert f"delete {folder / LOCK}" in sentence


def test_a_lock_is_kept_up(folder, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    with locked(folder):
        seen = set()
        while len(seen) < 3:
            seen.add((folder / LOCK).read_text())
    assert not (folder / LOCK).exists()


def test_a_folder_that_is_removed(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    folder = Location.of(tmp_path / "run")

    def work(error):
        with locked(folder):
            (folder / "file").write_text("x")
            shutil.rmtree(folder.path)
            time.sleep(0.1)
            assert not folder.exists()  # and the lock does not make it again
            if error is not None:
                raise error

    for error in (None, FileNotFoundError("file"), RuntimeError("of Ray"), StorageError("x: gone.")):
        sentence = refused(work, error)
        assert str(folder) in sentence
        assert "was removed" in sentence
    assert refused(work, UserError("its own.")) == "its own."


def test_a_folder_that_moves(tmp_path):
    with locked(Location.of(tmp_path / "new.partial")) as lock, lock.moving_to(Location.of(tmp_path / "new")):
        os.rename(tmp_path / "new.partial", tmp_path / "new")
    assert os.listdir(tmp_path) == ["new"]
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": -1}', '{"pid": "1"}', "[" * 1000])
def test_a_lock_that_is_none(folder, refused, text):
    folder.make_folder()
    (folder / LOCK).write_text(text)
    assert str(folder / LOCK) in refused(locked(folder).__enter__)


def race(path, start, inside, most, won):
    start.wait(30)
    with suppress(UserError), locked(Location.of(path)):
        with inside:
            inside.value += 1
            most.value = max(most.value, inside.value)
            won.value += 1
        time.sleep(0.2)
        with inside:
            inside.value -= 1


@pytest.mark.parametrize("left", [False, True])
def test_of_several_at_once_one_wins(tmp_path, left):
    folder = Location.of(tmp_path / "run")
    if left:
        left_by(folder, started="1")
    context = multiprocessing.get_context("fork")
    start, inside, most, won = context.Barrier(4), *(context.Value("i", 0) for _ in range(3))
    several = [context.Process(target=race, args=(folder.path, start, inside, most, won)) for _ in range(4)]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert (most.value, inside.value) == (1, 0)
    assert won.value >= 1
