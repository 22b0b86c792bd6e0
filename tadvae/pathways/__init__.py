"""Pathways: reading files of gene sets, and matching them to a gene vocabulary."""
