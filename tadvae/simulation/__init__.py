"""Simulated screens with a known causal truth."""
