"""Training by one worker in the process that asks for it: no process is started, and Ray need not run.

What is trained, logged and kept is what one worker of Ray Train would, to the bit: a run may begin here and
go on there.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipelines.train.prefetch import read_ahead
from pipelines.train.rank import Rank, keep_weights, train_rank
from tadvae.cells.ragged import Cells
from tadvae.data.plan import Window
from tadvae.data.reader import CellReader
from tadvae.model.checkpoints import checkpoint_name
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.validation import Patience


def train_alone(
    run: RunFolder,
    store: Store,
    report: Callable[[dict[str, Any]], None] | None = None,
    device: torch.device | None = None,
) -> None:
    """Train a run that has begun, from its last checkpoint on, to its final weights.

    Parameters
    ----------
    report
        Called after every checkpoint with the record of the last step.
    device
        Where to train; None: on the CPU.
    """
    torch.set_num_threads(1)  # as Ray's workers have: other numbers of threads round differently
    rank = _OnlyRank(run, run.config(), report, device or torch.device("cpu"))
    train_rank(run, store, rank)
    names = run.checkpoints.names()
    best = rank.best()
    with run.checkpoints.folder_of(best if best in names else names[-1]) as folder:
        keep_weights(run, folder)


class _OnlyRank(Rank):
    """The one worker of a run: it reads with its own threads and keeps the checkpoints itself."""

    def __init__(
        self,
        run: RunFolder,
        config: ExperimentConfig,
        report: Callable[[dict[str, Any]], None] | None,
        device: torch.device,
    ) -> None:
        self.device = device
        self._run, self._config, self._report = run, config, report
        self._key = Patience(config.validation).key
        self._validated: list[dict[str, Any]] | None = None
        """Records of the steps with a validation; the log is read once, when it first has them all."""

    def parallel(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def checkpoint(self) -> AbstractContextManager[str] | None:
        return self._run.checkpoints.last()

    def reads(
        self, reader: CellReader, windows: Iterable[Window], n_threads: int
    ) -> Iterator[tuple[np.ndarray, Cells]]:
        return read_ahead(reader, (read for window in windows for read in window.reads), n_threads)

    def report(self, metrics: dict[str, Any], name: str, folder: Path | None) -> None:
        assert folder is not None  # of rank 0
        run = self._run
        run.checkpoints.write(name, folder)
        if self._validated is not None and self._key in metrics:
            self._validated.append(metrics)
        names = run.checkpoints.names()
        kept = names[-self._config.train.keep_checkpoints :]
        run.checkpoints.keep_only([*kept, self.best() or name])
        if self._report is not None:
            self._report(metrics)

    def best(self) -> str | None:
        """The checkpoint of the best validation where that decides, else None."""
        if self._config.validation.patience is None:
            return None
        if self._validated is None:
            self._validated = [record for record in self._run.steps() if self._key in record]
        if not self._validated:
            return None
        patience = Patience(self._config.validation)
        for record in self._validated:
            patience.add(record)
        return checkpoint_name(self._validated[int(np.argmax(patience.scores))]["step"] + 1)
