"""The log of a run: records of its steps, kept in pieces, one file each.

The files are named in :mod:`tadvae.model.run_folder`.
"""

import json
import os
import re
import uuid
from typing import Any

from tadvae.base.checksums import CheckedFolder
from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location

ABOUT, LOG = "run.json", "log"
_PIECE = re.compile(r"(steps|bags)-(\d+)(-\d+)?\.jsonl")


class LoggedRun:
    """A run that writes its log; :class:`tadvae.model.run_folder.RunFolder` has all its other files too.

    Attributes
    ----------
    place
        The folder of the run, on any filesystem.
    """

    def __init__(self, place: str | os.PathLike[str] | Location) -> None:
        self.place = Location.of(place)

    def __str__(self) -> str:
        return str(self.place)

    @property
    def is_begun(self) -> bool:
        """Whether a run has begun here: all but its weights and log is written."""
        return (self.place / ABOUT).exists()

    def write_steps(self, records: list[dict[str, Any]]) -> None:
        """Write records of steps as one piece of the log; one of the same first step is replaced."""
        self._write_lines(f"steps-{records[0]['step']:09d}.jsonl", records)

    def write_bags(self, records: list[dict[str, Any]], rank: int) -> None:
        """Write which bags a rank saw in some steps."""
        self._write_lines(f"bags-{records[0]['step']:09d}-{rank:05d}.jsonl", records)

    def write_restart(self, about: dict[str, Any]) -> None:
        """Write what a restart does again; several restarts at one step are all kept."""
        name = f"{LOG}/restart-{about['step']:09d}-{uuid.uuid4().hex[:8]}.json"
        (self.place / name).write_text(json.dumps(about, indent=1))

    def log_pieces(self) -> dict[str, int | None]:
        """Names of the pieces with steps, in their order, and when each was written, in nanoseconds."""
        infos = sorted((self.place / LOG).listing(), key=lambda info: info.base_name)
        return {info.base_name: info.mtime_ns for info in infos if _is_piece(info.base_name, "steps")}

    def log_piece(self, name: str) -> list[dict[str, Any]]:
        """Records of one piece."""
        return self._piece(name, self._files)

    def steps(self) -> list[dict[str, Any]]:
        """Records of all steps, in their order."""
        files = self._files  # the checksums are read once for all pieces
        return [record for name in self.log_pieces() for record in self._piece(name, files)]

    def forget_steps_from(self, step: int) -> int | None:
        """Delete what the log has of a step and those after it: they are about to be made again.

        Returns
        -------
        How many steps were deleted; None where there is no log at all yet.
        """
        names = [name for name in (self.place / LOG).names() if _is_piece(name, "steps", "bags")]
        deleted = 0
        for name in names:
            if int(name.split("-")[1].removesuffix(".jsonl")) >= step:
                deleted += len(self.log_piece(name)) if name.startswith("steps-") else 0
                (self.place / LOG / name).delete()
        return deleted if names else None

    @property
    def _files(self) -> CheckedFolder:
        """Files of the folder as they are now; they change while a run goes on."""
        return CheckedFolder(self.place, "run", "copy it again, or train it again")

    def _piece(self, piece: str, files: CheckedFolder) -> list[dict[str, Any]]:
        name = f"{LOG}/{piece}"
        data = (self.place / name).read_bytes()
        files.compare(name, data, required=False)  # a run that goes on has none of its log
        return self._lines(name, data)

    def _lines(self, name: str, data: bytes) -> list[dict[str, Any]]:
        try:
            records = [parse_json(line) for line in data.decode("utf-8").splitlines()]
            if not all(
                isinstance(record, dict) and isinstance(record.get("step"), int) for record in records
            ):
                raise ValueError("a line without a step")
        except ValueError as error:
            raise self._damaged(name, type(error).__name__) from None
        return records

    def _write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        if not self.is_begun:  # writing would make a folder that is no run
            raise UserError(
                f"{self}: the run's folder, or {ABOUT} in it, was removed while the command was writing "
                "into it; give the same command again."
            )
        (self.place / LOG / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    def _damaged(self, name: str, reason: str, what: str = "run") -> UserError:
        return UserError(f"{self}: damaged {what} ({name}: {reason}); copy it again, or train it again.")


def _is_piece(name: str, *kinds: str) -> bool:
    found = _PIECE.fullmatch(name)
    return found is not None and found[1] in kinds
