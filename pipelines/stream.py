"""Ray Data streams the store into a training worker: planned reads → rows → packed batches.

Each worker streams the reads of its own plan, in order, so what a worker sees is a function of
``(seed, epoch, rank, world_size)`` and not of scheduling; see ``docs/decisions.md``. Reading, selection and
normalisation run as Ray Data tasks wherever there are CPUs; the worker only puts batches together.
"""

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tadvae.batch import Cells
from tadvae.prepare import CellReader
from tadvae.store.decode import flat_column
from tadvae.store.plan import Window

READ_END = -1
"""Bag id of the row that ends a read: an empty read leaves a trace, however Ray cuts its blocks."""
READS_PER_EXECUTION = 4096
FREE_READERS = 2
"""Reading tasks at once where no CPU bounds them."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Most that one worker's stream may hold in the object store."""


def stream_reads(
    reader: CellReader, windows: Iterable[Window], num_cpus: float = 1
) -> Iterator[tuple[np.ndarray, Cells]]:
    """Read what the windows plan, through Ray Data, in order.

    The windows may span many epochs: starting an execution costs Ray Data about a second, so there is one
    for thousands of reads, not one an epoch.

    Parameters
    ----------
    num_cpus
        What a reading task asks for; 0 where training workers may hold every CPU.

    Yields
    ------
    For every read of every window: the bag id of each row, and the cells.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that bars are off
    shared = ray.put(reader)
    reads = (read for window in windows for read in window.reads)

    def read_rows(rows: pa.Table) -> pa.Table:
        source: CellReader = ray.get(shared)
        parts = []
        for shard, group, bag_ids in zip(
            *(rows[name].to_pylist() for name in rows.column_names), strict=True
        ):
            parts.append(_rows(*source.read(shard, group, np.asarray(bag_ids, np.int64))))
        return pa.concat_tables(parts)

    while items := [
        {"shard": shard, "row_group": group, "bags": bag_ids.tolist()}
        for shard, group, bag_ids in itertools.islice(reads, READS_PER_EXECUTION)
    ]:
        # from_arrow would look at each block in a task of one CPU, which there may not be
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            read_rows,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=num_cpus,
            concurrency=None if num_cpus else FREE_READERS,
        )
        dataset.context.enable_progress_bars = False
        options = dataset.context.execution_options
        options.preserve_order = True
        options.verbose_progress = False
        options.resource_limits = options.resource_limits.copy(object_store_memory=OBJECT_STORE_BYTES)
        yield from _split_reads(
            dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        )


def _rows(bag_of_row: np.ndarray, cells: Cells) -> pa.Table:
    """A read as Arrow rows, with the row that ends it."""
    offsets = pa.array(np.append(cells.offsets, cells.offsets[-1]).astype(np.int32))
    return pa.table(
        {
            "bag": np.append(bag_of_row, READ_END).astype(np.int64),
            "total_counts": np.append(cells.total_counts, 0.0),
            "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(cells.gene_ids.astype(np.int32))),
            "values": pa.ListArray.from_arrays(offsets, pa.array(cells.values)),
        }
    )


def _split_reads(tables: Iterator[pa.Table]) -> Iterator[tuple[np.ndarray, Cells]]:
    """Cut the stream of rows at the rows that end a read."""
    bags: list[np.ndarray] = []
    parts: list[Cells] = []
    for table in tables:
        bag = table["bag"].to_numpy()
        gene_ids, offsets = flat_column(table, "gene_ids")
        values, _ = flat_column(table, "values")
        cells = Cells(gene_ids, values, offsets, table["total_counts"].to_numpy())
        start = 0
        for end in np.flatnonzero(bag == READ_END).tolist():
            yield np.concatenate([*bags, bag[start:end]]), Cells.concat([*parts, cells[start:end]])
            bags, parts, start = [], [], end + 1
        if start < len(bag):
            bags.append(bag[start:])
            parts.append(cells[start:])


class Prefetcher:
    """Runs an iterator in a thread, a few items ahead of whoever takes them."""

    def __init__(self, make: Callable[[], Iterator[Any]], ahead: int = 2) -> None:
        self._make = make
        self._items: queue.Queue[tuple[str, Any]] = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def take(self) -> Any:
        """The next item; an error of the iterator is raised here, its end is a RuntimeError."""
        kind, item = self._items.get()
        if kind == "error":
            raise item
        if kind == "end":
            raise RuntimeError("the stream ended before its plan")
        return item

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def _work(self) -> None:
        try:
            for item in self._make():
                if not self._put(("item", item)):
                    return
            self._put(("end", None))
        except BaseException as error:  # noqa: BLE001 - raised again by take, in the taker's thread
            self._put(("error", error))

    def _put(self, item: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
