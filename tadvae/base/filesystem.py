"""Paths and URLs: one pyarrow filesystem for local disks, S3 and GCS."""

import copyreg
import errno
import os
import re
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import fs as pafs

from tadvae.base.errors import StorageError, UserError

LOCK = "tadvae-lock.json"
"""File that says which process writes into a folder, see :mod:`tadvae.base.lock`; no listing has it."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_S3_ATTEMPTS = 11
"""Attempts per S3 request. The wait doubles after each, from 25 ms, and sums to about 50 seconds."""


_SECRET = re.compile(r"secret|passw|pwd|token|key|\bsig|cred(?!ential_kind)|auth(?!ority)", re.I)
"""Names of options in a URL that hold something which nobody else may read."""
_VARIABLES = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"} | dict.fromkeys(
    ("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS"
)


def refuse_credentials(place: str) -> None:
    """Raise a UserError for a URL with credentials: it would be written into run.json and reports.

    The sentence repeats nothing of the URL but its scheme, because a secret may stand anywhere in it.
    """
    scheme, mark, rest = place.partition("://")
    if not mark or "/" in scheme:
        return
    scheme = scheme.lower()
    beginning, _, query = rest.partition("?")
    server = beginning.partition("/")[0]
    user, named, host = server.rpartition("@")
    port = host.rpartition(":")[2] if ":" in host and not host.endswith("]") else "0"
    found = bool(named) and (":" in user or (scheme in _VARIABLES and user != "anonymous"))
    # the slash of a secret ends what looks like the server: s3://KEY:SEC/RET@bucket
    found |= not port.isdecimal() or (scheme in _VARIABLES and ":" in host)
    for name, _, value in (option.partition("=") for option in re.split("[&;]", query)):
        found |= bool(_SECRET.search(name)) or "@" in value or "%40" in value
    if found:
        variables = _VARIABLES.get(scheme, "the environment variables of that service")
        raise UserError(
            f"{scheme}://…: the URL holds credentials, which would be written into files and messages; give "
            f"it without them, and export {variables}."
        )


def _retrying_s3(options: dict[str, Any]) -> pafs.S3FileSystem:
    """An S3 filesystem whose requests are retried."""
    retry = pafs.AwsDefaultS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
    return pafs.S3FileSystem(**options, retry_strategy=retry)


def _pickle_s3(filesystem: pafs.S3FileSystem) -> tuple[Any, ...]:
    _, (options,) = filesystem.__reduce__()
    return _retrying_s3, (options,)


# pyarrow drops the retry strategy when it pickles a filesystem, and Ray sends a pickled copy to every process
copyreg.pickle(pafs.S3FileSystem, _pickle_s3)


def absolute(place: str | os.PathLike[str]) -> str:
    """An absolute path, or a URL as it was given, for processes with another working directory."""
    text = os.fspath(place)
    refuse_credentials(text)
    return text if "://" in text else Location.of(text).path


@dataclass(frozen=True)
class Location:
    """A folder or file on some filesystem: ``Location.of("s3://bucket/run") / "model"``."""

    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, place: "str | os.PathLike[str] | Location") -> "Location":
        """Resolve a local path or a ``scheme://`` URL; an unusable URL is a UserError."""
        if isinstance(place, Location):
            return place
        text = os.fspath(place)
        refuse_credentials(text)
        if "://" not in text:
            return cls(pafs.LocalFileSystem(), str(Path(text).expanduser().absolute()))
        try:
            filesystem, path = pafs.FileSystem.from_uri(text)
        except (ValueError, OSError) as error:
            raise UserError(
                f"{text}: not a usable storage URL ({error}); expected a path, s3://… or gs://…."
            ) from None
        if isinstance(filesystem, pafs.S3FileSystem):
            make, arguments = _pickle_s3(filesystem)
            filesystem = make(*arguments)
        if not path:
            raise UserError(f"{text}: names no bucket; expected a path, s3://BUCKET/… or gs://BUCKET/….")
        return cls(filesystem, path)

    def __truediv__(self, name: str) -> "Location":
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether this is a path on this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    def sibling(self, suffix: str) -> "Location":
        """The location in the same folder with ``suffix`` added to the name."""
        return Location(self.filesystem, self.path.rstrip("/") + suffix)

    def inside(self, name: object, pattern: str, source: object) -> "Location":
        """A location in this folder that a file names: what is read from a file may not lead anywhere else.

        Parameters
        ----------
        name
            What the file says.
        pattern
            Regular expression of the names that are possible here.
        source
            The file, for the message.

        Raises
        ------
        UserError
            If the name does not match, or leads out of this folder, also by a symbolic link.
        """
        place = self / str(name)
        fits = isinstance(name, str) and re.fullmatch(pattern, name) is not None
        if not fits or not {".", ".."}.isdisjoint(str(name).split("/")):
            reason = f"expected a name like {pattern}"
        elif self.is_local and not _is_within(place.path, self.path):
            reason = "a symbolic link leads out of it"
        else:
            return place
        shown = repr(name) if len(repr(name)) <= 80 else repr(name)[:79] + "…"
        raise UserError(
            f"{source}: names {shown}, which is nothing inside of {self} ({reason}); restore the file, or do "
            "not use a folder that you do not trust."
        )

    def exists(self) -> bool:
        """Whether a file or folder is there; storage that does not answer is a UserError."""
        with self.reachable():
            result: bool = self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound
            return result

    def size(self) -> int | None:
        """The file's size in bytes, None where there is no such file."""
        with self.reachable():
            info = self.filesystem.get_file_info(self.path)
        return info.size if info.type == pafs.FileType.File else None

    def names(self) -> list[str]:
        """Sorted names in this folder; an absent folder has none."""
        return sorted(info.base_name for info in self.listing())

    def listing(self) -> list[pafs.FileInfo]:
        """What is in this folder, with sizes and times; an absent folder holds nothing."""
        with self.reachable():
            infos: list[pafs.FileInfo] = self.filesystem.get_file_info(
                pafs.FileSelector(self.path, allow_not_found=True)
            )
            return [info for info in infos if not info.base_name.startswith(LOCK)]

    def make_folder(self) -> None:
        """Create the folder and its parents."""
        with self.reachable():
            self.filesystem.create_dir(self.path, recursive=True)

    def require_regular(self) -> None:
        """Raise a UserError for a pipe or a device, whose reading may never end."""
        if self.is_local:
            mode = os.stat(self.path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise UserError(
                    f"{self}: a pipe or a device, expected a regular file; replace it by a copy of the file."
                )

    def read_bytes(self) -> bytes:
        """The file's whole content."""
        self.require_regular()
        with self.filesystem.open_input_stream(self.path) as stream:
            result: bytes = stream.read()
            return result

    def read_text(self) -> str:
        """The file's whole content as UTF-8 text."""
        return self.read_bytes().decode("utf-8")

    def write_bytes(self, data: bytes) -> None:
        """Write the file atomically: complete or not at all."""
        with self.replacing() as partial, partial.filesystem.open_output_stream(partial.path) as stream:
            stream.write(data)

    def write_text(self, text: str) -> None:
        """Write the text as UTF-8, atomically: complete or not at all."""
        self.write_bytes(text.encode("utf-8"))

    @contextmanager
    def replacing(self) -> Iterator["Location"]:
        """Yield a temporary location that replaces this one when the block ends without an error.

        An object store shows an object only once it is complete, so there the block writes in place.
        """
        with self.reachable():
            if not self.is_local:
                yield self
                return
            partial = self.sibling(f".{uuid.uuid4().hex[:8]}.tmp")
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            try:
                yield partial
                os.replace(partial.path, self.path)
            finally:
                Path(partial.path).unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove the file, or the folder with its content; it is no error if it does not exist."""
        with self.reachable():
            kind = self.filesystem.get_file_info(self.path).type
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind == pafs.FileType.File:
                self.filesystem.delete_file(self.path)

    @contextmanager
    def reachable(self) -> Iterator[None]:
        """Turn a storage error inside the block into a UserError of one sentence."""
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0][:200]
            if error.errno in _FULL:
                raise UserError(
                    f"{self}: cannot be written, the disk is full ({reason}); free some space or name "
                    "another place."
                ) from None
            fix = "path and its permissions" if self.is_local else "URL, the credentials and the network"
            raise StorageError(f"{self}: the storage cannot be used ({reason}); check the {fix}.") from None


def _is_within(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
