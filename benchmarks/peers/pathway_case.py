"""Reads a case of pathways and writes activities, inside a program's environment.

Needs numpy and pandas only; see :mod:`peers.exchange` for the files.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Callable  # noqa: UP035 - Python 3.8 runs this file too

import numpy as np
import pandas as pd

MIN_GENES = 5
AGAIN = ", again"
"""End of the name of a method's second training, with another seed."""
BUDGET = 10.0
"""Seconds of CPU after which a training on one file of cells stops, at the end of the epoch."""


def read_gmt(place: Path) -> dict[str, list[str]]:
    """Genes by pathway, each once."""
    lines = [line.split("\t") for line in place.read_text().splitlines()]
    return {line[0]: list(dict.fromkeys(line[2:])) for line in lines}


def each_file(
    case: Path, out: Path, method: str, activity: Callable[[Path, dict[str, list[str]]], pd.DataFrame]
) -> None:
    """Write the activities of every file of cells that has none yet; an error is written in their place."""
    about = json.loads((case / "case.json").read_text())
    sets = read_gmt(case / about["pathways"])
    folder = out / method
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in about["cells"].items():
        done = folder / f"{name}.npz"
        if done.exists():
            continue
        start = time.process_time()
        try:
            found = activity(case / place, sets)
        except Exception as error:  # noqa: BLE001 - said in the table
            (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
            return
        save(done, found, time.process_time() - start)


def save(done: Path, activity: pd.DataFrame, seconds: float, training: float = 0.0) -> None:
    """Write activities (n, P) at once, with the CPU seconds that they took, and a training before.

    The largest resident set until now, in bytes, goes with them.
    """
    partial = done.with_suffix(".partial.npz")
    names = np.array(activity.columns, dtype=np.str_)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    np.savez_compressed(
        partial,
        activity=activity.to_numpy(np.float32),
        pathways=names,
        seconds=seconds,
        training=training,
        peak=peak,
    )
    partial.rename(done)
