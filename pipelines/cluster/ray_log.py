"""What Ray says goes to a log file, so that a command prints the program's own lines alone.

Ray writes to the terminal in two ways: its loggers in this process, and lines of its workers, which it sends
to this process to be printed. Both are kept in one file per process, which is named where a command fails.
"""

import logging
import os
import sys
import threading
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from tadvae.base.terminal import print_text

LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve", "ray.rllib")
"""Loggers of Ray that have handlers of their own for the terminal."""
KEPT_FILES = 20
"""Older files of the folder are deleted."""
OWN = "tadvae: "
"""How lines of this program begin that a worker writes for the user."""


class RayLog:
    """The log file of this process; it is made when Ray first says something.

    Attributes
    ----------
    verbose
        Print everything as Ray does, and write no file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.verbose = False
        self._folder = folder
        self._lock = threading.Lock()

    @cached_property
    def place(self) -> Path:
        """The file, whether it exists or not: in the user's cache, unless a folder was given."""
        import pooch  # slow to import, and needed only once Ray runs

        folder = self._folder or Path(pooch.os_cache("tadvae")) / "logs"
        return folder / f"ray-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"

    def write(self, text: str) -> None:
        """Add a line; where no file can be written, it is lost."""
        with self._lock:
            try:
                if not self.place.exists():
                    self._begin()
                with self.place.open("a", encoding="utf-8") as file:
                    file.write(text.rstrip("\n") + "\n")
            except OSError:
                return

    def _begin(self) -> None:
        self.place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in sorted(self.place.parent.glob("ray-*.log"))[: 1 - KEPT_FILES]:
            old.unlink(missing_ok=True)

    def capture(self) -> None:
        """Send what Ray says from now on to the file, in a process that is connected to Ray."""
        if self.verbose:
            return
        handler = _ToFile(self)
        for name in LOGGERS:
            logger = logging.getLogger(name)
            logger.handlers = [handler]
            logger.propagate = False
        try:
            from ray._private.ray_logging import global_worker_stdstream_dispatcher as lines
        except ImportError:  # another Ray: its workers' lines are printed as ever
            return
        lines.remove_handler("ray_print_logs")
        lines.add_handler("ray_print_logs", self._worker_lines)  # Ray removes that name when it is shut down

    def _worker_lines(self, batch: dict[str, Any]) -> None:
        if batch.get("pid") == "autoscaler":  # the state of the cluster every five seconds
            return
        who = batch.get("actor_name") or batch.get("task_name") or "worker"
        for line in batch["lines"]:
            if line.startswith(OWN):
                print_text(line, sys.stderr)
            self.write(f"({who} pid={batch.get('pid')}) {line}")

    def mention(self) -> str:
        """Name the file, for the end of an error; empty where Ray said nothing."""
        return f"Ray's own messages are in {self.place}" if self.place.exists() else ""


class _ToFile(logging.Handler):
    def __init__(self, log: RayLog) -> None:
        super().__init__()
        self._log = log
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))


RAY_LOG = RayLog()


def say(text: str) -> None:
    """Tell on standard error what is being waited for."""
    print_text(OWN + text, sys.stderr)
