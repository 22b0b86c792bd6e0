"""Checksums of the files of a folder, in a file that ``sha256sum -c SHA256SUMS`` reads too.

A folder that an earlier version wrote has none; its files are read without a comparison.
"""

import hashlib
import io
import re
from collections.abc import Mapping
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n\0]+)")


def sha256(data: bytes) -> str:
    """Checksum of some bytes, as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


def write_sums(folder: Location, sums: Mapping[str, str]) -> None:
    """Write the checksums of a folder's files; paths are relative to the folder.

    Write them before the file that makes the folder complete: whoever finds that file then finds these too.
    """
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
    (folder / SUMS).write_text("".join(lines))


def sums_of(folder: Location, names: list[str]) -> dict[str, str]:
    """Checksums of some files that have just been written; an absent one is left out."""
    return {name: sha256((folder / name).read_bytes()) for name in names if (folder / name).exists()}


class CheckedFolder:
    """Reads the files of a folder; each is compared with its checksum where the folder has checksums.

    Parameters
    ----------
    what
        What the folder is, for messages: a store, a run.
    fix
        What the user can do about a damaged file, for messages.
    """

    def __init__(self, place: Location, what: str, fix: str) -> None:
        self.place, self._what, self._fix = place, what, fix

    @cached_property
    def sums(self) -> dict[str, str] | None:
        """Checksum by file name; None where the folder has none.

        Raises
        ------
        UserError
            If the file of the checksums is damaged.
        """
        place = self.place / SUMS
        if not place.exists():
            return None
        with place.reachable():
            lines = place.read_bytes().decode("utf-8", "replace").splitlines()
        found = [_LINE.fullmatch(line) for line in lines]
        if not found or None in found:
            raise UserError(f"{place}: damaged list of checksums; {self._fix}.")
        return {match[2]: match[1] for match in found if match is not None}

    def read(self, name: str) -> bytes:
        """Content of a file, compared with its checksum.

        Raises
        ------
        UserError
            If the file is not the one that was written, or no regular file.
        OSError
            If it cannot be read.
        """
        data = (self.place / name).read_bytes()
        self.compare(name, data)
        return data

    def table(self, name: str) -> pa.Table:
        """A Parquet file; one that cannot be read is a UserError."""
        try:
            return pq.read_table(io.BytesIO(self.read(name)))
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:160]
            raise UserError(f"{self.place / name}: missing or damaged ({reason}); {self._fix}.") from None

    def compare(self, name: str, data: bytes, required: bool = True) -> None:
        """Raise a UserError if the content of a file is not what was written.

        Parameters
        ----------
        required
            Whether a folder that has checksums must have one of this file.
        """
        if self.sums is None or (name not in self.sums and not required):
            return
        if name not in self.sums or sha256(data) != self.sums[name]:
            reason = "its checksum is not that" if name in self.sums else "it has no checksum"
            raise UserError(
                f"{self.place / name} does not belong to this {self._what} ({reason} in {SUMS}); "
                f"{self._fix}, or delete {SUMS} if the change is yours."
            )

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files in their order, and before the last one the checksums of all, old and new."""
        *first, last = files
        for name in first:
            (self.place / name).write_bytes(files[name])
        new = {name: sha256(data) for name, data in files.items()}
        write_sums(self.place, {**(self.sums or {}), **new})
        (self.place / last).write_bytes(files[last])
