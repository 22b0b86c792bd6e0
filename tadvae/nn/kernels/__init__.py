"""CPU kernels of the pathway layer, compiled by numba.

:mod:`tadvae.nn.attention` decides when they are used and falls back to plain torch. Nothing here is imported
before the first call, so the network also works without numba.
"""
