"""The exponential function of the kernels, in a form that the compiler can vectorise."""

import math
from typing import Any

import numba
import numpy as np
from numba.extending import overload


def exponential(z: float) -> float:
    """exp(z) for z ≤ 0; in single precision a polynomial, which the compiler can vectorise."""
    return math.exp(z)


def _exponential32(z: Any) -> Any:
    # math.exp is a call of the C library, which would end the vectorisation of the loop around it.
    # Below −87 the result is no normal float32 any more, and the exponent written below would be wrong.
    z = np.float32(-87.0) if z < np.float32(-87.0) else z
    n = np.floor(z * np.float32(1.442695041) + np.float32(0.5))
    # z = n ln 2 + r. ln 2 is subtracted in two parts, the first with few bits: n times it is then exact, and
    # r keeps all its digits.
    r = z - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    # Minimax polynomial of exp(r) on |r| ≤ ln 2 / 2 (Cephes expf, Moshier)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1.0)
    # exp(z) = 2ⁿ exp(r): n + 127, shifted by 23 bits, is the float32 2ⁿ in binary
    return y * np.int32((np.int32(n) + np.int32(127)) << 23).view(np.float32)


def _exponential64(z: Any) -> Any:
    return math.exp(z)


@overload(exponential, inline="always")
def _exponential(z: Any) -> Any:
    return _exponential32 if z == numba.float32 else _exponential64
