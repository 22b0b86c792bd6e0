"""One command at a time writes into a folder: a file in it names the host and the process.

The file is rewritten every few seconds while its process lives. A lock is left behind where a process was
killed: on the same host that is seen at once, on another host by a file that no longer changes.
"""

import errno
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tadvae.base.documents import parse_json
from tadvae.base.errors import StorageError, UserError
from tadvae.base.filesystem import LOCK, Location

_LOG = logging.getLogger(__name__)
BEAT = 15.0
"""Seconds between two rewritings of a lock."""
WAIT = 50.0
"""Seconds after which a lock of another host that did not change is left behind."""
SETTLE = 1.0
"""Seconds in which two commands that write a lock to an object store see which came last."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    host: str
    """Name of its machine."""
    machine: str
    """Start of the machine and its process numbers: two containers may have one name."""
    pid: int
    """Number of the process."""
    started: str
    """Start of the process: numbers are used again."""
    token: str
    """Tells two holders of one process apart."""
    beat: int = 0
    """Rewritings of the lock so far."""

    @classmethod
    def this_process(cls) -> "Holder":
        """A new holder."""
        return cls(socket.gethostname(), _machine(), os.getpid(), _started(os.getpid()), uuid.uuid4().hex)

    @property
    def is_gone(self) -> bool:
        """Whether it is known that the process has ended; of another machine nothing is known."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            pass
        return _started(self.pid) != self.started


def _machine() -> str:
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _started(pid: int) -> str:
    try:  # the name of the program, in parentheses, may hold spaces
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if words[0] in "ZX" else words[19]  # ended, but its parent did not ask yet
    except (OSError, IndexError):
        return ""


class Lock:
    """A held lock; see :func:`locked`."""

    def __init__(self, folder: Location, holder: Holder) -> None:
        self._folder, self._holder = folder, holder
        self._guard, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @contextmanager
    def moving_to(self, folder: Location) -> Iterator[None]:
        """Follow the folder, which the block moves to its new place."""
        with self._guard:
            yield
            self._folder = folder

    @property
    def is_lost(self) -> bool:
        """Whether the file is gone, or is another's: the folder was removed, or the lock was."""
        found = _read(self._folder)
        return found is None or found.token != self._holder.token

    def require(self) -> None:
        """Raise a UserError where the lock is lost: what was written before is lost too."""
        if self.is_lost:
            raise UserError(
                f"{self._folder}: this folder, or its file {LOCK}, was removed while the command was writing "
                "into it; give the same command again."
            )

    def _beat(self) -> None:
        while not self._end.wait(BEAT):
            with self._guard, suppress(UserError, OSError):
                if self.is_lost:  # writing would make the folder again
                    return
                self._holder = replace(self._holder, beat=self._holder.beat + 1)
                _write(self._folder, self._holder)

    def release(self) -> None:
        """Delete the file."""
        self._end.set()
        self._thread.join()
        with suppress(UserError, OSError):
            if not self.is_lost:
                (self._folder / LOCK).delete()


@contextmanager
def locked(folder: Location) -> Iterator[Lock]:
    """Hold the lock of an output folder inside the block; new folders that stay empty are deleted.

    Raises
    ------
    UserError
        If another command writes into the folder, or the folder was removed inside the block.
    """
    new = _absent(folder)
    try:
        lock = Lock(folder, _take(folder))
    except BaseException:
        _delete_empty(new)
        raise
    try:
        yield lock
    except Exception as error:
        if isinstance(error, StorageError) or not isinstance(error, UserError):
            lock.require()
        raise
    else:
        lock.require()
    finally:
        lock.release()
        _delete_empty(new)


def _absent(folder: Location) -> list[Location]:
    """The folder and those above it that do not exist yet, the deepest first."""
    if not folder.is_local:
        return [] if folder.exists() else [folder]
    places = [Path(folder.path), *Path(folder.path).parents]
    return [Location.of(place) for place in places if not place.exists()]


def _delete_empty(folders: list[Location]) -> None:
    for folder in folders:
        with suppress(UserError, OSError):
            if folder.is_local:
                os.rmdir(folder.path)
            elif not folder.names():
                folder.delete()


def _take(folder: Location) -> Holder:
    mine = Holder.this_process()
    while not _create(folder, mine):
        found = _read(folder)
        if found is None:
            continue
        if not found.is_gone and _is_alive(folder, found):
            raise UserError(
                f"{folder}: process {found.pid} on {found.host} is writing into this folder; wait until it "
                f"has ended or name another folder, and if there is no such process delete {folder / LOCK}."
            )
        _delete_left(folder, found, mine)
    return mine


def _delete_left(folder: Location, found: Holder, mine: Holder) -> None:
    """Delete the lock of a process that is gone, but not one that another command wrote meanwhile."""
    if not folder.is_local:
        (folder / LOCK).delete()
        return
    place = Path(folder.path, LOCK)
    aside = place.with_name(f"{LOCK}.{mine.token}.old")
    with suppress(FileNotFoundError, FileExistsError):
        os.rename(place, aside)
        try:
            if parse_json(aside.read_bytes()).get("token") != found.token:
                os.link(aside, place)
        finally:
            aside.unlink()


def _is_alive(folder: Location, found: Holder) -> bool:
    """Whether a lock is kept up; one of this machine is, as its process lives."""
    if (found.host, found.machine) == (socket.gethostname(), _machine()):
        return True
    _LOG.warning(
        "%s: process %d on %s was writing into this folder; waiting up to %d s for a sign of it…",
        folder, found.pid, found.host, WAIT,
    )  # fmt: skip
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        time.sleep(min(1.0, WAIT / 10))
        if _read(folder) != found:
            return True
    return False


def _create(folder: Location, mine: Holder) -> bool:
    """Write the lock where there is none."""
    place = folder / LOCK
    folder.make_folder()
    if folder.is_local:
        with folder.reachable():
            return _create_on_disk(Path(place.path), mine)
    if place.exists():
        return False
    _write(folder, mine)  # an object store writes over what another wrote meanwhile: the last one has it
    time.sleep(SETTLE)
    found = _read(folder)
    return found is not None and found.token == mine.token


def _create_on_disk(place: Path, mine: Holder) -> bool:
    """Write the file with its whole content, or not at all."""
    new = place.with_name(f"{LOCK}.{mine.token}.new")
    try:
        new.write_text(_text(mine))
        os.link(new, place)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        with suppress(FileExistsError), place.open("x") as file:  # a disk without links
            file.write(_text(mine))
            return True
        return False
    finally:
        new.unlink(missing_ok=True)
    return True


def _read(folder: Location) -> Holder | None:
    """The holder of the lock; None where there is none."""
    for _ in range(10):
        try:
            with folder.reachable():
                try:
                    data = (folder / LOCK).read_bytes()
                except FileNotFoundError:
                    return None
            return Holder(**_checked(parse_json(data)))
        except (ValueError, TypeError):
            time.sleep(0.1)  # its process is about to write it
    raise UserError(
        f"{folder / LOCK}: expected the name of a process, found other content; if no command writes into "
        "this folder, delete the file."
    )


def _checked(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict) or type(data.get("pid")) is not int or data["pid"] < 1:
        raise ValueError
    if not all(isinstance(data.get(name), str) for name in ("host", "machine", "started", "token")):
        raise ValueError
    return data


def _write(folder: Location, holder: Holder) -> None:
    (folder / LOCK).write_text(_text(holder))


def _text(holder: Holder) -> str:
    return json.dumps(asdict(holder))
