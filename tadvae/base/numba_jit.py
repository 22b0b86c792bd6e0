"""How the compiled loops are compiled."""

from collections.abc import Callable
from typing import Any

import numba

# No "nnan" and "ninf": -inf is the maximum of an empty set, and a diverged model's NaN must come through.
_FAST = {"contract", "reassoc", "nsz", "arcp"}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile on first use, without the GIL; kept on disk where there is a folder to keep it in.

    numba notices a change of the kernel's own file only: after a change of :func:`exponential` touch the
    others, or remove ``__pycache__``.
    """
    options: Any = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no writable cache folder
        return numba.njit(**options)(function)
