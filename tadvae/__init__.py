"""tadvae: one interpretable perturbation model over many single-cell screens."""

import logging
import sys
from typing import TYPE_CHECKING, Any

from tadvae.base.terminal import print_text
from tadvae.base.version import __version__

__all__ = ["TADVAE", "UserError", "__version__"]


class _Say(logging.Handler):
    """What the library says goes to standard error; ``setLevel("WARNING")`` on the logger turns it off."""

    def emit(self, record: logging.LogRecord) -> None:
        print_text(f"tadvae: {record.getMessage()}", sys.stderr)


_log = logging.getLogger(__name__)
if not _log.handlers:
    _log.addHandler(_Say())
    _log.setLevel(logging.INFO)
    _log.propagate = False

if TYPE_CHECKING:
    from tadvae.base.errors import UserError
    from tadvae.model.tadvae import TADVAE


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: ``import tadvae`` alone loads no torch."""
    if name == "TADVAE":
        from tadvae.model.tadvae import TADVAE

        return TADVAE
    if name == "UserError":
        from tadvae.base.errors import UserError

        return UserError
    raise AttributeError(f"module 'tadvae' has no attribute {name!r}")
