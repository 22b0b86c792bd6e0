"""What a sweep keeps of its trials: one small JSON file each, written as things happen.

::

    SWEEP/sweep.yaml            settings and space, resolved
    SWEEP/sweep.json            store, versions
    SWEEP/trials/0003/trial.json
    SWEEP/trials/0003/run/      what `tadvae train` would have left
    SWEEP/tune/                 Ray Tune's own files, while it runs

Nothing else is needed to resume a sweep or to table it: Ray Tune's files are pickles, and never read.
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
    values: dict[str, Any]
    """What the search chose, by dotted key."""
    settings: dict[str, Any]
    """The same with what follows from it."""
    status: Status = "running"
    reason: str = ""
    """Why it stopped or failed."""
    curve: list[dict[str, float]] = []
    """One entry a validation: epoch, cells_seen, loss and the validation metrics."""
    seconds: float = 0.0

    def value(self, metric: str) -> float | None:
        """The metric at the trial's last validation."""
        return self.curve[-1].get(metric) if self.curve else None


def trial_folder(sweep: Location, number: int) -> Location:
    """Where a trial's record and run are."""
    return sweep / f"{TRIALS}/{number:04d}"


def write_record(sweep: Location, record: TrialRecord) -> None:
    """Replace a trial's record."""
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
            found.append(TrialRecord.parse(json.loads(place.read_text()), str(place)))
        except ValueError as error:
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
    """The best finished trial by its last validation; of all trials where none has finished."""
    scored = [record for record in records if record.value(config.metric) is not None]
    pool = [record for record in scored if record.status == "finished"] or scored
    sign = 1.0 if config.mode == "max" else -1.0
    return max(pool, key=lambda record: sign * (record.value(config.metric) or 0.0), default=None)
