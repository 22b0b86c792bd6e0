"""Progress of a number of tasks: a bar on a terminal, plain lines in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from tadvae.base.terminal import print_text, visible

console = Console(stderr=True)


class Steps:
    """Counts finished tasks and shows their number.

    On a terminal it draws a bar on standard error; otherwise it prints a line every few seconds and at the
    end.
    """

    def __init__(self, what: str, total: int, every_seconds: float = 5.0) -> None:
        self.what, self.total, self.done = what, total, 0
        self._every, self._last = every_seconds, time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        # A notebook forces colours (FORCE_COLOR), but every new state of a bar would be a line there.
        if console.is_terminal and console.file.isatty() and self.total:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total)
        return self

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count ``n`` more tasks; ``note`` is shown after the number."""
        self.done += n
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=n, description=visible(f"{self.what} {note}".rstrip()))
            return
        now = time.monotonic()
        if now - self._last >= self._every or self.done == self.total:
            self._last = now
            print_text(f"{self.what}: {self.done}/{self.total} {note}".rstrip(), sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
