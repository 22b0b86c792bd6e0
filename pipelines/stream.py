"""Ray Data streams the store into a training worker: planned reads → decoded cells → packed batches.

Each worker streams the reads of its own plan, in order, so what a worker sees is a function of
``(seed, epoch, rank, world_size)`` and not of scheduling; see ``docs/decisions.md``. What travels through
Ray Data are either references to row groups, which threads of the worker read and decode
(``stream.decode: worker``), or rows that Ray tasks have decoded wherever there are CPUs (``tasks``).
"""

import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import pyarrow as pa
import ray
import ray.data

from tadvae.batch import Cells
from tadvae.prepare import CellReader, Read
from tadvae.store.plan import StreamConfig, Window
from tadvae.store.varint import one_array

READ_END = -1
"""Bag id of the row that ends a read: an empty read leaves a trace, however Ray cuts its blocks."""
READS_PER_EXECUTION = 4096
AHEAD = 4
"""Reads that a thread may be ahead: fewer, and it idles while batches are made of a whole window."""
FREE_READERS = 2
"""Reading tasks at once where no CPU bounds them."""
OBJECT_STORE_BYTES = 512 * 2**20
"""Most that one worker's stream may hold in the object store."""


def stream_reads(
    reader: CellReader, windows: Iterable[Window], config: StreamConfig, num_cpus: float = 1
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
    reads = (read for window in windows for read in window.reads)
    if config.decode == "tasks":
        return _decoded_by_tasks(reader, reads, num_cpus)
    return _decoded_here(reader, reads, config.threads)


def _decoded_here(
    reader: CellReader, reads: Iterator[Read], n_threads: int
) -> Iterator[tuple[np.ndarray, Cells]]:
    """Threads of this process decode, ahead of whoever takes what they read."""
    pending: deque[Future[tuple[np.ndarray, Cells]]] = deque()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="decode")
    try:
        for table in _stream(reads):
            for shard, group, bag_ids in _references(table):
                pending.append(pool.submit(reader.read, shard, group, bag_ids))
                if len(pending) > AHEAD * n_threads:
                    yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _decoded_by_tasks(
    reader: CellReader, reads: Iterator[Read], num_cpus: float
) -> Iterator[tuple[np.ndarray, Cells]]:
    """Ray tasks decode, wherever there are CPUs; the cells come through the object store."""
    shared = ray.put(reader)

    def read_rows(rows: pa.Table) -> pa.Table:
        source: CellReader = ray.get(shared)
        return pa.concat_tables([_rows(*source.read(*read)) for read in _references(rows)])

    return _split_reads(_stream(reads, read_rows, num_cpus))


def _stream(
    reads: Iterator[Read], transform: Callable[[pa.Table], pa.Table] | None = None, num_cpus: float = 1
) -> Iterator[pa.Table]:
    """References in order through Ray Data, which applies the transform to each of them."""
    while items := [
        {"shard": shard, "row_group": group, "bags": bag_ids.tolist()}
        for shard, group, bag_ids in itertools.islice(reads, READS_PER_EXECUTION)
    ]:
        # from_arrow would look at each block in a task of one CPU, which there may not be
        dataset = ray.data.from_items(items, override_num_blocks=1 if transform is None else len(items))
        if transform is not None:
            dataset = dataset.map_batches(
                transform,
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
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)


def _references(rows: pa.Table) -> Iterator[Read]:
    """Rows of the streamed table as what :meth:`CellReader.read` takes."""
    columns = (rows[name].to_pylist() for name in ("shard", "row_group", "bags"))
    for shard, group, bag_ids in zip(*columns, strict=True):
        yield shard, group, np.asarray(bag_ids, np.int64)


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
        gene_ids, offsets = _flat_list(table["gene_ids"])
        values, _ = _flat_list(table["values"])
        cells = Cells(gene_ids, values, offsets, table["total_counts"].to_numpy())
        start = 0
        for end in np.flatnonzero(bag == READ_END).tolist():
            yield np.concatenate([*bags, bag[start:end]]), Cells.concat([*parts, cells[start:end]])
            bags, parts, start = [], [], end + 1
        if start < len(bag):
            bags.append(bag[start:])
            parts.append(cells[start:])


def _flat_list(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets of a list column, also where it is a slice of another."""
    array = one_array(column)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0]


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
