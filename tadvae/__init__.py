"""tadvae: one interpretable perturbation model over many single-cell screens."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["TADVAE", "UserError", "__version__"]

if TYPE_CHECKING:
    from tadvae.errors import UserError
    from tadvae.model import TADVAE


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import tadvae`` alone loads no torch."""
    if name == "TADVAE":
        from tadvae.model import TADVAE

        return TADVAE
    if name == "UserError":
        from tadvae.errors import UserError

        return UserError
    raise AttributeError(f"module 'tadvae' has no attribute {name!r}")
