"""The folder of a run's checkpoints, whether Ray Train keeps them or the run itself."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tadvae.base.filesystem import Location

CHECKPOINT = r"step-\d+"
"""Names of checkpoints."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints that it keeps."""
_WHOLE = "whole"
"""Empty file that a run writes last into its own checkpoint: without it, other files may be missing."""


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint after a number of steps; names sort by it."""
    return f"step-{step:09d}"


@dataclass(frozen=True)
class Checkpoints:
    """The only reader and writer of a run's checkpoints, beside Ray Train.

    Attributes
    ----------
    place
        The folder, on any filesystem.
    """

    place: Location

    @property
    def are_of_ray_train(self) -> bool:
        """Whether Ray Train keeps them."""
        return (self.place / SNAPSHOT).exists()

    def write(self, name: str, folder: Path) -> None:
        """Copy the files of a checkpoint from a folder of this machine."""
        self.delete(name)  # half of it may be there
        for file in folder.iterdir():
            (self.place / name / file.name).write_bytes(file.read_bytes())
        (self.place / name / _WHOLE).write_bytes(b"")

    def names(self) -> list[str]:
        """Names of what :meth:`write` has written, the latest last."""
        return [name for name in self.place.names() if (self.place / name / _WHOLE).exists()]

    def last(self) -> AbstractContextManager[str] | None:
        """The latest checkpoint, see :meth:`folder_of`; None where there is none."""
        names = self.names()
        return self.folder_of(names[-1]) if names else None

    @contextmanager
    def folder_of(self, name: str) -> Iterator[str]:
        """Yield a folder of this machine that holds a checkpoint, inside the block."""
        place = self.place.inside(name, CHECKPOINT, self.place)
        if place.is_local:
            yield place.path
            return
        with tempfile.TemporaryDirectory() as folder:
            for file in place.names():
                (Path(folder) / file).write_bytes((place / file).read_bytes())
            yield folder

    def delete(self, name: str) -> None:
        """Delete one checkpoint, half of which may be written."""
        self.place.inside(name, CHECKPOINT, self.place).delete()

    def keep_only(self, kept: Collection[str]) -> None:
        """Delete all other checkpoints that :meth:`write` has written."""
        for name in self.names():
            if name not in kept:
                self.delete(name)
