"""Where the steps of a run are shown besides its own log: one class for each tool.

Trackers run in the driver and are handed the records of :class:`pipelines.records.StepRecords`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tensorboardX import SummaryWriter

from tadvae.errors import UserError
from tadvae.experiment import ExperimentConfig
from tadvae.filesystem import Location

NOT_PLOTTED = {"step", "time", "epoch", "seconds", "wait"}


class Tracker(Protocol):
    """Shows a run's steps somewhere."""

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take some steps, in order."""

    def close(self) -> None:
        """Take no more."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``, one a driver.

    They are made in a temporary folder and copied as they grow: an object store cannot append to a file, and
    where the run's disk is full the writer's thread would die and everybody wait for it. What cannot be
    copied is left out; the run's own log has it.
    """

    def __init__(self, run: Location) -> None:
        self._out = run / "tensorboard"
        self._local = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._local.name, flush_secs=10)

    def log(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write one scalar for each quantity and step."""
        for record in records:
            seconds = max(record["seconds"], 1e-9)
            values = {name: value for name, value in record.items() if name not in NOT_PLOTTED}
            values |= {"cells_per_second": record["cells"] / seconds, "wait_share": record["wait"] / seconds}
            for name, value in values.items():
                self._writer.add_scalar(f"train/{name}", value, record["step"], walltime=record["time"])
        self._copy()

    def close(self) -> None:
        """End the file."""
        self._writer.close()
        self._copy()
        self._local.cleanup()

    def _copy(self) -> None:
        if self._writer.file_writer is not None:
            self._writer.flush()
        with suppress(UserError, OSError):
            self._out.make_folder()
            for file in Path(self._local.name).iterdir():
                (self._out / file.name).write_bytes(file.read_bytes())


def trackers(run: Location, config: ExperimentConfig) -> list[Tracker]:
    """Those that the config asks for."""
    return [TensorBoard(run)] if config.train.tensorboard else []
