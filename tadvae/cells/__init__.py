"""Ragged cells, their normalisation, and the compiled loops over them."""
