"""A run's log, as its workers write it: one line a step, a file for every restart, gauges for Prometheus.

The log goes in pieces named by their first step, each written just before the checkpoint that covers it: a
step that is made again after a failure replaces its old line instead of doubling it.
"""

import time
from collections import Counter
from typing import Any

from pipelines.cluster.ray_log import say
from pipelines.train.metrics import TrainingMetrics
from tadvae.data.plan import rank_bags
from tadvae.model.run_folder import RunFolder
from tadvae.training.checkpoint import Position
from tadvae.training.epochs import StepDone
from tadvae.training.training_set import TrainingSet


class StepRecords:
    """Steps since the last checkpoint.

    Parameters
    ----------
    run
    rank, world_size
        Rank 0 writes; every rank shows how long it waits for data.
    log_bags
        Every rank also writes which bags its steps saw, as ``log/bags-STEP-RANK.jsonl``.
    """

    def __init__(self, run: RunFolder, rank: int, world_size: int, log_bags: bool) -> None:
        self._run, self._rank, self._world_size, self._log_bags = run, rank, world_size, log_bags
        self._metrics = TrainingMetrics(run.place.name, rank)
        self._records: list[dict[str, Any]] = []
        self._bags: list[dict[str, Any]] = []
        self._begun = time.perf_counter()
        self._first = True
        self._reported: dict[str, float] = {}

    def reported(self, checkpoint: float, report: float) -> None:
        """Keep how long the last checkpoint and report took; the next step's record says it."""
        self._reported = {"checkpoint": checkpoint, "report": report}

    def add(self, done: StepDone) -> None:
        """Keep one step."""
        position, step = done.position, done.position.global_step - 1
        cells, tokens, n_bags = done.sizes
        # what a record is called goes to Ray Tune as it is, where "done" alone would end the trial
        record = {"step": step, "epoch": position.epoch, "epochs_done": done.epochs_done}
        record |= {"time": time.time(), "workers": self._world_size, "cells_seen": position.cells_seen}
        record |= {"cells": cells, "tokens": tokens, "bags": n_bags}
        record |= {"wait": done.wait, "seconds": done.seconds, **done.terms}
        if self._first:
            record["first_batch"] = time.perf_counter() - self._begun - (done.seconds - done.wait)
            self._first = False
        record |= self._reported
        self._reported = {}
        self._records.append(record)
        if self._log_bags:
            self._bags.append({"step": step, "epoch": position.epoch, "bags": done.bags})
        self._metrics.show(record, done.terms, done.skipped)

    def extend(self, scores: dict[str, float]) -> None:
        """Add scores of a validation to the last step, if there is one since the last checkpoint."""
        if self._records:
            self._records[-1] |= scores

    def write(self) -> dict[str, Any]:
        """Write what was kept and begin anew; returns the last step's record."""
        if not self._records:
            return {}
        last = self._records[-1]
        if self._rank == 0:
            self._run.write_steps(self._records)
        if self._log_bags:
            self._run.write_bags(self._bags, self._rank)
        self._records, self._bags = [], []
        return last


def log_restart(run: RunFolder, data: TrainingSet, start: Position) -> None:
    """Say what a restart does again, and take from the log the steps that it makes again.

    A first start has nothing to say. Of the bags that an epoch has shown up to the checkpoint none is shown
    again, except for those that make equal shares for all ranks; they are named.
    """
    again = run.forget_steps_from(start.global_step)
    if again is None:
        return
    left = data.left(start.epoch, start.earlier)
    shown: Counter[int] = Counter()
    for rank in range(start.world_size):
        reads, _ = rank_bags(left, data.config.seed, start.epoch, rank, start.world_size)
        shown.update(bag for _, _, ids in reads for bag in ids.tolist())
    repeated = sorted(bag for bag, times in shown.items() if times > 1)
    about = {
        "step": start.global_step,
        "epoch": start.epoch,
        "steps_of_this_stretch": start.step,
        "workers": start.world_size,
        "earlier_stretches": [{"workers": n, "bags_of_each": each} for n, each in start.earlier],
        "steps_made_again": again,
        "bags_of_the_epoch": len(data.bags),
        "bags_of_this_stretch": len(left),
        "bags_repeated": repeated,
    }
    run.write_restart(about)
    say(
        f"restart at epoch {start.epoch + 1}, step {start.global_step}, with {start.world_size} workers: "
        f"{again} logged steps after the last checkpoint are made again; {len(repeated)} bags "
        "of this epoch are repeated to give every worker an equal share"
    )
