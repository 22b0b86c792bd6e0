"""Times one pass over the cells of a screen, inside a program's environment.

Every batch is made the same: arrays of gene numbers (int64), values (float32, log1p of counts per ten
thousand) and offsets (int64), which torch takes without a copy. Needs numpy and scipy only. A pass ends after
``LONGEST`` CPU seconds, or ``LONGEST_WALL`` seconds.
"""

import json
import resource
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy import sparse

BATCH, LONGEST, LONGEST_WALL, TARGET_SUM = 64, 25.0, 60.0, 1e4


def normalised(X: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gene numbers, normalised values and offsets of raw counts (n, G)."""
    data, offsets = X.data.astype(np.float32, copy=True), X.indptr.astype(np.int64)
    sizes = np.diff(offsets)
    total = np.add.reduceat(np.r_[data, 0], offsets[:-1]) * (sizes > 0)
    data *= np.repeat(TARGET_SUM / np.maximum(total, 1), sizes).astype(np.float32)
    np.log1p(data, out=data)
    return X.indices.astype(np.int64), data, offsets


def measure(
    batches: Iterable[sparse.csr_matrix], out: Path, prepared: Path | None, controls: float = 0.0
) -> None:
    """Pass over batches; ``prepared`` is what the program made of the file to read from, if it did.

    ``controls`` is the share of a batch's rows that are control cells besides, which do not count as cells.
    """
    start_wall, start_cpu = time.perf_counter(), time.process_time()
    first, cells, tokens = 0.0, 0, 0
    for X in batches:
        ids, _, _ = normalised(X)
        cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start_wall
        first = first or wall
        cells, tokens = cells + round(X.shape[0] * (1 - controls)), tokens + len(ids)
        if cpu > LONGEST or wall > LONGEST_WALL:
            break
    finish(out, cells, tokens, first, cpu, wall, prepared)  # without what a program waits for at its end


def finish(
    out: Path, cells: int, tokens: int, first: float, cpu: float, wall: float, prepared: Path | None
) -> None:
    """Write what a pass took."""
    found = {"cells": cells, "tokens": tokens, "first": first, "cpu": cpu, "wall": wall}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if prepared is not None:
        files = [prepared] if prepared.is_file() else prepared.rglob("*")
        found["bytes"] = sum(place.stat().st_size for place in files if place.is_file())
    (out / "pass.json").write_text(json.dumps(found))
