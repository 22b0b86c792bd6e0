"""A line about the whole sweep, again and again while it runs."""

import math
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from tadvae.base.terminal import print_text
from tune.config import SweepConfig
from tune.records import TrialRecord, best_of

EVERY_SECONDS = 15.0
"""Seconds between two lines."""


class Heartbeat:
    """Prints a line at regular intervals, from a thread of its own, whatever the program waits for.

    Attributes
    ----------
    line
        Returns the line; may be replaced while the program goes on.
    """

    def __init__(self, line: Callable[[], str], every_seconds: float = EVERY_SECONDS) -> None:
        self.line = line
        self._every, self._stop = every_seconds, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="sweep-progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _beat(self) -> None:
        while not self._stop.wait(self._every):
            print_text(self.line())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def progress(records: Sequence[TrialRecord], config: SweepConfig, at_once: int) -> str:
    """How many trials are done and running, the best so far, and the time left, in one line.

    Parameters
    ----------
    records
        Of all trials that have started, with the time that they have run until now.
    at_once
        Number of trials that can run at the same time.
    """
    n = {status: sum(r.status == status for r in records) for status in ("running", "failed", "stopped")}
    done = len(records) - n["running"]
    ended = ", ".join(f"{n[status]} {status}" for status in ("stopped", "failed") if n[status])
    best = best_of(list(records), config)
    found = "no value yet"
    if best is not None:
        found = f"best {config.metric} {best.value(config.metric):.4f} (trial {best.number:04d})"
    left = seconds_left(records, config, at_once)
    time = "time left not known yet" if left is None else f"about {duration(left)} left"
    about = f" ({ended})" if ended else ""
    return f"{done} of {config.n_trials} trials done{about}, {n['running']} running; {found}; {time}"


def seconds_left(records: Sequence[TrialRecord], config: SweepConfig, at_once: int) -> float | None:
    """Estimate how long the sweep still takes; None before the first validation of any trial.

    A trial takes as long as those that ended did on average, and one that is running as long as its epochs
    so far say. Settings differ in their speed, so this is rough.
    """
    ended = [r.seconds for r in records if r.status in ("finished", "stopped")]
    running = [r for r in records if r.status == "running"]
    whole = {r.number: r.seconds * config.experiment.train.epochs / _epochs(r) for r in running if r.curve}
    known = ended or list(whole.values())
    if not known:
        return None
    mean = sum(known) / len(known)
    rests = [max(whole.get(r.number, mean) - r.seconds, 0.0) for r in running]
    waiting = max(config.n_trials - len(records), 0)
    slots = max(min(at_once, len(rests) + waiting), 1)
    return max((sum(rests) + waiting * mean) / slots, *rests, 0.0)


def _epochs(record: TrialRecord) -> float:
    return record.curve[-1]["epoch"] + 1


def duration(seconds: float) -> str:
    """A time in seconds, minutes or hours, rounded up."""
    if seconds <= 90:
        return f"{math.ceil(seconds)} s"
    if seconds <= 90 * 60:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"
