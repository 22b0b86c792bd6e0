"""How the benchmarks measure: seconds, CPU seconds and memory of this process and all that it starts."""

import argparse
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

EVERY = 0.2
"""Seconds between two looks at the memory."""
RAYS_OWN = ("raylet", "gcs_server", "ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class Memory:
    """Peaks while the block runs, in bytes; a process counts what it does not share, shared pages once.

    Attributes
    ----------
    peak
        Of this process and Ray's workers together: proportional set sizes, where the system tells them.
    largest
        Resident set of the largest of these processes.
    """

    peak: int = 0
    largest: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(EVERY):
            total = largest = 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    if process.pid != me.pid and not _works(process):
                        continue
                    total += _proportional(process)
                    largest = max(largest, process.memory_info().rss)
                except psutil.Error:
                    continue
            self.peak, self.largest = max(self.peak, total), max(self.largest, largest)


def _works(process: psutil.Process) -> bool:
    """Whether a process does the project's work, not Ray's housekeeping."""
    title = (process.cmdline() or [""])[0]
    return title.startswith("ray::") and not title.startswith(RAYS_OWN)


def _proportional(process: psutil.Process) -> int:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    except OSError:
        return process.memory_info().rss
    (line,) = (line for line in text.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024
