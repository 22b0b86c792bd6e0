"""Memory and CPU seconds of this process together with Ray's workers."""

import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import psutil

EVERY = 0.1
"""Seconds between two samples of the memory."""
IDLE = "ray::IDLE"


class Memory:
    """Peaks while the block runs, in bytes.

    Attributes
    ----------
    peak
        Of this process and Ray's workers together, shared pages counted once (proportional set sizes).
    largest
        Resident set of the largest of them.
    """

    def __init__(self) -> None:
        self.peak = self.largest = 0
        self._done = threading.Event()

    def __enter__(self) -> Self:
        gc.collect()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            sizes = [size for process in workers() if (size := _sizes(process)) is not None]
            self.peak = max(self.peak, sum(proportional for proportional, _ in sizes))
            self.largest = max(self.largest, *(resident for _, resident in sizes))


def workers() -> list[psutil.Process]:
    """This process and Ray's workers, without Ray's own servers."""
    me = psutil.Process()
    return [me, *(child for child in me.children(recursive=True) if _title(child).startswith("ray::"))]


def cpu_seconds() -> float:
    """CPU seconds so far of this process and of Ray's workers that are alive."""
    total = 0.0
    for process in workers():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def fastest(made: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each, the least of several interleaved rounds."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, step in made.items():
            start = time.perf_counter()
            step()
            best[name] = min(best.get(name, float("inf")), time.perf_counter() - start)
    return best


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def _sizes(process: psutil.Process) -> tuple[int, int] | None:
    """Proportional and resident set size; None where it is gone."""
    try:
        resident = process.memory_info().rss
        place = Path(f"/proc/{process.pid}/smaps_rollup")
        if not place.exists():  # not on Linux, or it has just ended
            return resident, resident
        line = next(line for line in place.read_text().splitlines() if line.startswith("Pss:"))
        return int(line.split()[1]) * 1024, resident
    except (psutil.Error, OSError, StopIteration):
        return None
