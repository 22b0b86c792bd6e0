"""Where the time of a run went, from its log."""

from dataclasses import dataclass

import numpy as np

from tadvae.model.run_folder import RunFolder


@dataclass(frozen=True)
class Phases:
    """Seconds on rank 0, of the last start of a run and what followed.

    Attributes
    ----------
    start
        Until the training loop began: Ray Train's workers, imports, the store's tables, the network.
    first_batch
        From there until the first batch was there.
    step
        Median of a step without its waiting.
    wait
        Share of the steps' time in which the step waited for data, without the first batch.
    checkpoint, report
        Median of writing a checkpoint's files, and of handing them to Ray Train.
    cells_a_second
        Of all workers, in steps.
    """

    start: float
    first_batch: float
    step: float
    wait: float
    checkpoint: float
    report: float
    cells_a_second: float

    def __str__(self) -> str:
        return (
            f"start {self.start:.1f} s, first batch {self.first_batch:.1f} s, step {self.step:.3f} s "
            f"(waiting for data {self.wait:.1%}), checkpoint {self.checkpoint:.2f} s, "
            f"report {self.report:.2f} s, {self.cells_a_second:,.0f} cells/s"
        )


def phases(run: RunFolder, called: float) -> Phases | None:
    """Of the steps since the last start of workers; None where there were none.

    Parameters
    ----------
    called
        When the trainer was started, in seconds since the epoch.
    """
    records = run.steps()
    starts = [i for i, record in enumerate(records) if "first_batch" in record]
    if not starts or records[-1]["time"] < called:
        return None
    records = records[starts[-1] :]
    first, later = records[0], records[1:] or records
    begun = first["time"] - (first["seconds"] - first["wait"]) - first["first_batch"]
    seconds = sum(record["seconds"] for record in later)

    def median(name: str) -> float:
        values = [record[name] for record in records if name in record]
        return float(np.median(values)) if values else 0.0

    return Phases(
        start=begun - called,
        first_batch=first["first_batch"],
        step=float(np.median([record["seconds"] - record["wait"] for record in later])),
        wait=sum(record["wait"] for record in later) / seconds,
        checkpoint=median("checkpoint"),
        report=median("report"),
        cells_a_second=sum(record["cells"] for record in later) / seconds,
    )
