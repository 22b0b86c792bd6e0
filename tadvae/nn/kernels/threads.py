"""Run a kernel on parts of its work, in as many threads as torch uses.

numba's own threads are not used: its default pool terminates the process if two Python threads enter it at
once, and its OpenMP pool does so after a fork. The kernels release the GIL, so Python threads run in
parallel.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

PARTS = 16
"""Largest number of parts. It is a constant, so that sums over parts have the same order, and results are
reproducible bit for bit, with any number of threads."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def cut(weights_before: np.ndarray) -> np.ndarray:
    """Bounds of at most :data:`PARTS` spans of about equal weight, shape (n_parts + 1,) int64.

    Parameters
    ----------
    weights_before
        Cumulative weight of n items, from 0, shape (n + 1,).
    """
    n = len(weights_before) - 1
    goals = np.linspace(0, weights_before[-1], min(PARTS, n) + 1)[1:-1]
    inner = np.searchsorted(weights_before, goals)
    return np.concatenate([[0], inner, [n]]).astype(np.int64)


def run(kernel: Callable[..., None], bounds: np.ndarray, *arguments: Any) -> None:
    """Call ``kernel(part, first, last, *arguments)`` for every span."""
    spans = bounds.tolist()
    parts = [(i, a, b) for i, (a, b) in enumerate(itertools.pairwise(spans)) if b > a]
    n_threads = min(torch.get_num_threads(), len(parts))
    if n_threads <= 1:
        for part in parts:
            kernel(*part, *arguments)
        return
    queue = iter(parts)  # next() of a list's iterator is atomic under the GIL

    def work() -> None:
        for part in queue:
            kernel(*part, *arguments)

    others = [_pool(n_threads - 1).submit(work) for _ in range(n_threads - 1)]
    work()
    for other in others:
        other.result()


def _pool(n_threads: int) -> ThreadPoolExecutor:
    """The thread pool of this process; a forked process needs its own, because threads are not forked."""
    key = os.getpid(), n_threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(n_threads, thread_name_prefix="tadvae-kernel")
    return _pools[key]
