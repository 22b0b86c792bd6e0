"""Sparse (ragged) cells, their normalisation, and the compiled loops over them."""
