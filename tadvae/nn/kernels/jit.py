"""How the kernels are compiled, and the exponential that they share."""

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import overload

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


def exponential(z: float) -> float:
    """exp(z) for z ≤ 0; in single precision a polynomial, which the compiler can vectorise."""
    return math.exp(z)


def _exponential32(z: Any) -> Any:
    z = np.float32(-87.0) if z < np.float32(-87.0) else z
    n = np.floor(z * np.float32(1.442695041) + np.float32(0.5))
    # z = n ln 2 + r; ln 2 in two pieces, the first exact in few bits
    r = z - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    # Minimax polynomial of exp(r) on |r| ≤ ln 2 / 2 (Cephes expf, Moshier)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1.0)
    return y * np.int32((np.int32(n) + np.int32(127)) << 23).view(np.float32)


def _exponential64(z: Any) -> Any:
    return math.exp(z)


@overload(exponential, inline="always")
def _exponential(z: Any) -> Any:
    return _exponential32 if z == numba.float32 else _exponential64


@kernel
def group(keys: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Stable counting sort: where each key's items start (n + 1,), and the items by key."""
    starts = np.zeros(n + 1, np.int64)
    for key in keys:
        starts[key + 1] += 1
    for i in range(n):
        starts[i + 1] += starts[i]
    at = starts[:-1].copy()
    order = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        order[at[keys[i]]] = i
        at[keys[i]] += 1
    return starts, order
