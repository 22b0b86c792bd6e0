"""Records of the trials of a sweep: one small JSON file per trial, updated at every event.

::

    SWEEP/sweep.yaml            settings and space, resolved
    SWEEP/sweep.json            store, versions
    SWEEP/trials/0003/trial.json
    SWEEP/trials/0003/run/      a run, as `tadvae train` writes it
    SWEEP/tune/                 Ray Tune's own files, while it runs

Nothing else is needed to resume a sweep or to show it: Ray Tune's files are pickles, which are never read.
"""

import json
from typing import Any, Literal

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tune.config import SweepConfig

SWEEP, ABOUT, TRIALS = "sweep.yaml", "sweep.json", "trials"
CELLS_SEEN = "cells_seen"
Status = Literal["running", "finished", "stopped", "failed"]


class TrialRecord(Config):
    """One trial."""

    number: int
    """Number of the trial, from 0."""
    values: dict[str, Any]
    """Values of the parameters that the search chose, by dotted key."""
    settings: dict[str, Any]
    """These values and the settings derived from them, by dotted key."""
    status: Status = "running"
    """State of the trial.

    - ``running``: not yet ended, or interrupted.
    - ``finished``: trained to the end.
    - ``stopped``: stopped early by successive halving.
    - ``failed``: ended with an error.
    """
    reason: str = ""
    """Why the trial stopped or failed."""
    curve: list[dict[str, float]] = []
    """One entry per validation: epoch, cells_seen, loss and the validation metrics."""
    seconds: float = 0.0
    """Time that the trial has run, in seconds."""

    def value(self, metric: str) -> float | None:
        """The metric at the trial's last validation."""
        return self.curve[-1].get(metric) if self.curve else None


def trial_folder(sweep: Location, number: int) -> Location:
    """Folder of a trial's record and run."""
    return sweep / f"{TRIALS}/{number:04d}"


def write_record(sweep: Location, record: TrialRecord) -> None:
    """Write a trial's record, replacing the previous one."""
    folder = trial_folder(sweep, record.number)
    folder.make_folder()
    (folder / "trial.json").write_text(json.dumps(record.model_dump(), indent=1))


def read_records(sweep: Location) -> list[TrialRecord]:
    """All trials by number; a damaged record is a UserError."""
    found = []
    for name in (sweep / TRIALS).names():
        place = sweep / f"{TRIALS}/{name}/trial.json"
        if not place.exists():
            continue
        try:
            record = TrialRecord.parse(json.loads(place.read_text()), str(place))
            if name != f"{record.number:04d}":  # its run would be looked for in another folder
                raise ValueError(f"number {record.number}")
            found.append(record)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{place}: not the record of a trial ({str(error)[:120]}); delete the trial's folder, and it "
                "will be run again."
            ) from None
    return sorted(found, key=lambda record: record.number)


def read_sweep(sweep: Location) -> SweepConfig:
    """The sweep's resolved settings; a folder without them is a UserError."""
    place = sweep / SWEEP
    if not place.exists():
        raise UserError(f"{sweep}: no sweep (it has no {SWEEP}); start one by `tadvae tune run`.")
    return SweepConfig.load_text(place.read_text(), str(place))


def best_of(records: list[TrialRecord], config: SweepConfig) -> TrialRecord | None:
    """The best finished trial by its last validation; the best of all trials if none has finished."""
    scored = [record for record in records if record.value(config.metric) is not None]
    pool = [record for record in scored if record.status == "finished"] or scored
    sign = 1.0 if config.mode == "max" else -1.0
    return max(pool, key=lambda record: sign * (record.value(config.metric) or 0.0), default=None)
