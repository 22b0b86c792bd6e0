"""Settings of the quality control."""

from pydantic import Field

from tadvae.base.config import Config


class QcConfig(Config):
    """What counts as a finding, and how many cells are read at once."""

    fdr: float = Field(0.05, gt=0, lt=1)
    """False discovery rate of tests: of the targets' own expression, and of genes that respond."""
    min_cells: int = Field(20, ge=2)
    """Perturbations with fewer cells in a context are reported as small; their cells are not divided, nor are
    those of which fewer would be perturbed."""
    max_controls: int = Field(3000, ge=2)
    """Largest number of control cells of a context that perturbed cells are compared with."""
    max_genes: int = Field(40, ge=1)
    """Largest number of responding genes along which cells are divided, those with the strongest response."""
    min_genes: int = Field(5, ge=1)
    """Smallest number of responding genes; with fewer, escaped cells cannot be told apart."""
    shrinkage: float = Field(0.5, gt=0, le=1)
    """Weight of independent genes against the covariance of the control cells, from 0 to 1, in the direction
    along which cells are divided; 1: genes are independent."""
    cells_at_once: int = Field(32768, ge=1)
    """Largest number of perturbed cells in memory at once, unless one perturbation has more."""
