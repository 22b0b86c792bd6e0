"""Threads that work ahead of a training step: reading and decoding cells, making batches."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy as np

from tadvae.cells.ragged import Cells
from tadvae.data.reader import CellReader, Read

AHEAD = 4
"""Reads that a thread may be ahead: fewer, and it idles while batches are made of a whole window."""


def read_ahead(
    reader: CellReader, reads: Iterable[Read], n_threads: int
) -> Iterator[tuple[np.ndarray, Cells]]:
    """Read in order, with threads of this process that read and decode ahead of whoever takes the cells.

    Yields
    ------
    For every read: the bag id of each row, and the cells.
    """
    pending: deque[Future[tuple[np.ndarray, Cells]]] = deque()
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="decode")
    try:
        for shard, group, bag_ids in reads:
            pending.append(pool.submit(reader.read, shard, group, bag_ids))
            if len(pending) > AHEAD * n_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
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
        except BaseException as error:  # noqa: BLE001 - raised again by __next__, in the taker's thread
            self._put(("error", error))

    def _put(self, item: tuple[str, Any]) -> bool:
        while not self._stop.is_set():
            try:
                self._items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
