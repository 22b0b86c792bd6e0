"""Progress for people: a bar on a terminal, plain lines in a log."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipelines.cluster.progress import Steps
from tadvae.base.errors import UserError
from tadvae.model.run_folder import RunFolder

if TYPE_CHECKING:  # imports torch, which a conversion's workers do not need
    from pipelines.train.trackers import Tracker


class StepLog:
    """Shows a run's log as it grows, from the driver.

    The workers write the log to the run's folder (they may be on other machines); a thread here reads new
    pieces, shows the last step of each and hands all steps to the trackers.
    """

    def __init__(
        self,
        run: RunFolder,
        n_bags: int,
        epochs: int,
        trackers: "Sequence[Tracker]" = (),
        every_seconds: float = 1.0,
    ) -> None:
        self._run = run
        self._n_bags, self._epochs = n_bags, epochs
        self._trackers = trackers
        self._every = every_seconds
        self._steps = Steps("training bags", n_bags * epochs)
        self._stop = threading.Event()
        self._seen = run.log_pieces()  # of an earlier driver
        self._thread = threading.Thread(target=self._follow, name="step-log", daemon=True)

    def __enter__(self) -> Self:
        self._steps.__enter__()
        self._thread.start()
        return self

    def _follow(self) -> None:
        while not self._stop.wait(self._every):
            self._show()

    def _show(self) -> None:
        try:
            for name, written in self._run.log_pieces().items():
                if self._seen.get(name) != written:
                    self._show_piece(self._run.log_piece(name))
                    self._seen[name] = written
        except (UserError, OSError):
            return  # storage that does not answer, or a piece that a restart takes away: look again later

    def _show_piece(self, records: list[dict[str, Any]]) -> None:
        last = records[-1]
        seconds = sum(record["seconds"] for record in records)
        wait = sum(record["wait"] for record in records) / max(seconds, 1e-9)
        note = (
            f"epoch {last['epoch'] + 1}/{self._epochs} step {last['step'] + 1} loss {last['loss']:.4f} "
            f"reconstruction {last['reconstruction']:.4f} mmd {last['mmd']:.4f} workers {last['workers']} "
            f"{sum(r['cells'] for r in records) / max(seconds, 1e-9):,.0f} cells/s wait {wait:.0%}"
        )
        for tracker in self._trackers:
            tracker.log(records)
        self._steps.advance(round(last["epochs_done"] * self._n_bags) - self._steps.done, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._show()
        for tracker in self._trackers:
            tracker.close()
        self._steps.__exit__(kind, error, trace)
