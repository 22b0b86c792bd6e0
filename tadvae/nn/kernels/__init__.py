"""CPU kernels of the pathway layer (numba), and what they share.

:mod:`tadvae.nn.attention` decides where they run and falls back to plain torch; nothing here is imported
before the first call, so numba may be absent.
"""
