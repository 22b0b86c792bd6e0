"""Ray Data streams the store into a training worker: planned reads → decoded cells → packed batches.

Each worker streams the reads of its own plan, in order, so what a worker sees is a function of
``(seed, epoch, rank, world_size)`` and not of scheduling; see ``docs/decisions.md``. What travels through
Ray Data are references to row groups, which threads of the worker read and decode.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import ray.data

from pipelines.train.prefetch import read_ahead
from tadvae.cells.ragged import Cells
from tadvae.data.plan import Window
from tadvae.data.reader import CellReader, Read

READS_PER_EXECUTION = 4096
OBJECT_STORE_BYTES = 512 * 2**20
"""Most that one worker's stream may hold in the object store."""


def stream_reads(
    reader: CellReader, windows: Iterable[Window], n_threads: int
) -> Iterator[tuple[np.ndarray, Cells]]:
    """Read what the windows plan, through Ray Data, in order.

    The windows may span many epochs: starting an execution costs Ray Data about a second, so there is one
    for thousands of reads, not one an epoch.

    Parameters
    ----------
    n_threads
        Threads of this process that read and decode, ahead of whoever takes what they read.

    Returns
    -------
    For every read of every window: the bag id of each row, and the cells.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that bars are off
    reads = (read for window in windows for read in window.reads)
    return read_ahead(reader, (read for table in _stream(reads) for read in _references(table)), n_threads)


def _stream(reads: Iterator[Read]) -> Iterator[pa.Table]:
    """References in order through Ray Data."""
    while items := [
        {"shard": shard, "row_group": group, "bags": bag_ids.tolist()}
        for shard, group, bag_ids in itertools.islice(reads, READS_PER_EXECUTION)
    ]:
        # from_arrow would look at each block in a task of one CPU, which there may not be
        dataset = ray.data.from_items(items, override_num_blocks=1)
        dataset.context.enable_progress_bars = False
        options = dataset.context.execution_options
        options.preserve_order = True
        options.verbose_progress = False
        options.resource_limits = options.resource_limits.copy(object_store_memory=OBJECT_STORE_BYTES)
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _references(rows: pa.Table) -> Iterator[Read]:
    """Rows of the streamed table as what :meth:`CellReader.read` takes."""
    columns = (rows[name].to_pylist() for name in ("shard", "row_group", "bags"))
    for shard, group, bag_ids in zip(*columns, strict=True):
        yield shard, group, np.asarray(bag_ids, np.int64)
