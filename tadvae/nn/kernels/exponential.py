"""How the kernels are compiled, and the exponential that they share."""

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload


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
