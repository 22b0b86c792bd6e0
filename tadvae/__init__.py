"""tadvae: one interpretable perturbation model over many single-cell screens."""

__version__ = "0.1.0"
