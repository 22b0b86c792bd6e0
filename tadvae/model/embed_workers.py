"""Blocks of cells computed by several processes, each with a copy of the network."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait

import numpy as np
import torch

from tadvae.base.allocator import keep_freed_memory
from tadvae.base.errors import UserError
from tadvae.cells.normalize import PreprocessConfig
from tadvae.model.cell_file import open_cells
from tadvae.model.embed_blocks import Block, BlockReader, EmbedSettings, OpenedFile
from tadvae.model.new_cells import Panel
from tadvae.nn.network import TADVAEModule

AHEAD = 2
"""Blocks per process that are computed or wait to be written; more would only take memory."""


@dataclass(frozen=True)
class Work:
    """What a process is given at its start.

    Attributes
    ----------
    ids
        Ids of the pathways.
    panels, axes
        Of each file, which one process finds for all.
    genes
        See :class:`tadvae.model.embed_blocks.BlockReader`.
    """

    module: TADVAEModule
    ids: Sequence[str]
    preprocess: PreprocessConfig
    settings: EmbedSettings
    files: Sequence[str]
    panels: Sequence[Panel]
    axes: Sequence[tuple[np.ndarray, np.ndarray] | None]
    genes: dict[str, np.ndarray]


def by_workers(work: Work, blocks: Sequence[Block], workers: int) -> Iterator[dict[str, np.ndarray]]:
    """What is written of each block, in their order; computed by processes with one thread each.

    Raises
    ------
    UserError
        As in one process, or if a process was ended from outside.
    """
    context = multiprocessing.get_context("spawn")  # a fork copies the locks of torch's threads
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(work,))
    try:
        waiting: deque[Future[dict[str, np.ndarray]]] = deque()
        for block in blocks:
            if len(waiting) == AHEAD * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(_compute, block))
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"embed: one of the {workers} processes was ended from outside, perhaps because the memory was "
            "full; use fewer processes."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_readers: list[BlockReader] = []
"""That of this process."""
_files = ExitStack()
"""Its open files; they stay open until it ends."""


def _start(work: Work) -> None:
    """Open the files in a new process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    keep_freed_memory()
    opened = []
    for path, panel, axes in zip(work.files, work.panels, work.axes, strict=True):
        file = _files.enter_context(open_cells(path, work.settings.layer))
        opened.append(OpenedFile(file, panel, axes))
    _readers[:] = [BlockReader(work.module, work.preprocess, work.settings, opened, work.ids, work.genes)]


def _end_with_parent() -> None:
    """End this process when the first one was killed: nobody would tell it to."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _compute(block: Block) -> dict[str, np.ndarray]:
    return _readers[0](block)
