"""The numba options that all compiled loops share."""

from collections.abc import Callable
from typing import Any

import numba

# Fast-math without "nnan" and "ninf": -inf is the maximum of an empty set, and the NaN of a diverged model
# must be passed on. "reassoc" allows vectorised sums, whose order of summation depends on the CPU.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call, without the GIL; the result is cached on disk where possible.

    numba checks only the kernel's own file for changes. After a change of a function that other files
    inline, such as :func:`tadvae.nn.kernels.exponential.exponential`, remove ``__pycache__``.
    """
    options: Any = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable cache folder
        return numba.njit(**options)(function)
