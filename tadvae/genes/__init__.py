"""Mapping of gene identifiers to one vocabulary."""
