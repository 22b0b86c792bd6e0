"""Memory of the regression of mean effects, which grows with the square of the number of conditions."""

import os
from pathlib import Path

from tadvae.base.errors import UserError

MATRICES = 13
"""Matrices of n by n conditions that exist at one time: 9 covariance terms, their sum, its inverse, work."""
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def require_memory(n_singles: int, n_combinations: int) -> None:
    """Raise a UserError where the regression of so many conditions does not fit into the memory.

    Parameters
    ----------
    n_singles, n_combinations
        Training conditions (dataset, context, perturbation) of one target, and of several.
    """
    n = max(n_singles, n_combinations)
    needed, there = 8 * MATRICES * n**2, memory_of_this_machine()
    if there is not None and needed > there:
        raise UserError(
            f"the regression of mean effects needs about {needed / 2**30:,.0f} GiB for {n:,} training "
            f"conditions, as it compares each with each, and this machine has {there / 2**30:,.0f} GiB; use "
            "a machine with more, --set effects.weight=0 to train the network alone, or convert fewer "
            "perturbations."
        )


def memory_of_this_machine() -> int | None:
    """Bytes of memory that this process can have; None where the system does not say."""
    try:
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (ValueError, OSError, AttributeError):
        found = []
    for limit in _LIMITS:
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found.append(int(text))
    return min(found, default=None)
