"""Callback of Ray Tune: writes the records of the trials, and prints one line per event."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune import Callback

from tadvae.base.errors import sentence_in
from tadvae.base.filesystem import Location
from tadvae.base.terminal import print_text
from tune.config import SweepConfig
from tune.records import CELLS_SEEN, TrialRecord, write_record
from tune.search import Halving, TrainAll
from tune.shown import assignments

KEPT = ("epoch", CELLS_SEEN, "loss", "val_pearson_delta", "val_l2", "val_rmse", "val_cosine_logfc")


class Journal(Callback):
    """Writes the records of a sweep; no other code does.

    Attributes
    ----------
    records
        Records of the trials, by number.
    """

    def __init__(
        self,
        sweep: Location,
        config: SweepConfig,
        earlier: Sequence[TrialRecord],
        scheduler: Halving | TrainAll,
    ) -> None:
        self.sweep, self.config, self.scheduler = sweep, config, scheduler
        self.records = {record.number: record for record in earlier}
        self._began: dict[int, tuple[float, float]] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called when a trial starts or continues."""
        number, values = trial.config["number"], trial.config["values"]
        fresh = TrialRecord(number=number, values=values, settings=self.config.settings(values))
        record = self.records.get(number, fresh)
        self._began[number] = (time.monotonic(), record.seconds)
        self._write(record)
        began = "continues" if record.curve else "starts"
        print_text(f"trial {number:04d}: {began}: {assignments(values)}")

    def now(self) -> list[TrialRecord]:
        """All records; of trials that are running, with the time until now."""
        return [
            self._timed(record) if record.number in self._began and record.status == "running" else record
            for record in list(self.records.values())
        ]

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Record a validation, unless the record already has it."""
        record = self.records[trial.config["number"]]
        if self.config.metric not in result:
            return
        if record.curve and result[CELLS_SEEN] <= record.curve[-1][CELLS_SEEN]:
            return
        point = {key: float(result[key]) for key in KEPT if key in result}
        self._write(record.model_copy(update={"curve": [*record.curve, point]}))
        epochs = self.config.experiment.train.epochs
        print_text(
            f"trial {record.number:04d}: epoch {int(point['epoch']) + 1}/{epochs} "
            f"{self.config.metric} {point[self.config.metric]:.4f} loss {point['loss']:.4f}"
        )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the end of a trial, whether it finished or the scheduler stopped it."""
        reason = self.scheduler.reasons.get(trial.trial_id, "")
        if reason and trial.last_result:  # Ray Tune may not have passed on the report that stopped it
            self.on_trial_result(iteration, trials, trial, trial.last_result)
        record = self.records[trial.config["number"]]
        self._end(record, "stopped" if reason else "finished", reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record a failed trial; the sweep continues."""
        self._end(self.records[trial.config["number"]], "failed", reason_of(_error_text(trial)))

    def _end(self, record: TrialRecord, status: str, reason: str) -> None:
        self._write(record.model_copy(update={"status": status, "reason": reason}))
        print_text(f"trial {record.number:04d}: {status}{': ' + reason if reason else ''}")

    def _write(self, record: TrialRecord) -> None:
        record = self._timed(record)
        self.records[record.number] = record
        write_record(self.sweep, record)

    def _timed(self, record: TrialRecord) -> TrialRecord:
        began, before = self._began[record.number]
        return record.model_copy(update={"seconds": round(before + time.monotonic() - began, 2)})


def _error_text(trial: Any) -> str:
    """Text of the error file that Ray Tune wrote for a trial on this machine."""
    place = trial.error_file
    return Path(place).read_text(encoding="utf-8") if place and Path(place).exists() else ""


def reason_of(text: str) -> str:
    """Shorten a traceback to one line: the sentence of a UserError, else the last line."""
    if (sentence := sentence_in(text)) is not None:
        return sentence
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without an error message"
