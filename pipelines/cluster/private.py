"""What a Ray on this machine keeps in files: for this user alone, in a folder with a short path."""

import atexit
import fcntl
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tadvae.base.errors import UserError

_SOCKET = len("/tadvae-12345678/r/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.1")
LONGEST = (103 if sys.platform == "darwin" else 107) - _SOCKET
"""Most bytes of the path of the folder above Ray's: the path of a Unix socket has a limit."""
_PREFIX, _OWNER = "tadvae-", "owner"


def private_folder() -> str:
    """Make a folder for Ray's sockets, logs and spilled data, which is deleted when this process ends.

    Ray lets every user read and write its folders, so they are in one that only this user enters: in
    ``RAY_TMPDIR``, else in the folder for temporary files, or in ``/tmp`` where that path is too long. Those
    of processes that were killed are deleted first.
    """
    parents = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"]
    for parent in filter(None, parents):
        place = os.path.realpath(parent)
        if len(os.fsencode(place)) > LONGEST:
            continue
        with suppress(OSError):
            _delete_left(place)
            folder = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
            atexit.register(_delete, folder, os.getpid())
            _hold(folder)
            return folder
    raise UserError(
        f"Ray needs a folder for its sockets that can be written and whose path has at most {LONGEST} "
        "characters, found none; set RAY_TMPDIR to such a folder on this machine's disk."
    )


def _hold(folder: str) -> None:
    """Lock a file in the folder for as long as this process lives; it has its name once it is locked."""
    new = os.open(f"{folder}/{_OWNER}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    fcntl.flock(new, fcntl.LOCK_EX)  # no other process inherits it: Python's files are closed there
    os.rename(f"{folder}/{_OWNER}.new", f"{folder}/{_OWNER}")


def _delete_left(place: str) -> None:
    """Delete this user's folders whose process was killed: the system has let go of its lock."""
    for folder in Path(place).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            owner = os.open(folder / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(owner)


def _delete(folder: str, owner: int) -> None:
    for _ in range(20):  # Ray's processes may still write their last lines
        if os.getpid() != owner or not os.path.exists(folder):
            return
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def private_token() -> None:
    """See that the token which a local Ray asks for is there, and that no other user reads it.

    Ray would make the same file, but readable for everyone.
    """
    given = os.environ.get("RAY_AUTH_MODE", "token").lower() != "token"
    if given or os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    place = Path.home() / ".ray/auth_token"
    with suppress(OSError):  # where it cannot be written, Ray says so
        place.parent.mkdir(mode=0o700, exist_ok=True)
        new = place.with_name(f"auth_token.{os.getpid()}")
        new.unlink(missing_ok=True)
        new.touch(0o600, exist_ok=False)
        try:
            new.write_text(secrets.token_hex(32))
            with suppress(FileExistsError):
                os.link(new, place)  # whole or not at all: another process may look for it
        finally:
            new.unlink(missing_ok=True)
        if place.stat().st_mode & 0o077:
            place.chmod(0o600)
