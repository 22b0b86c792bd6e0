"""The console for output of commands: coloured on a terminal (``NO_COLOR`` is respected), plain elsewhere."""

from typing import Any

from rich.console import Console
from rich.text import Text

from tadvae.base.terminal import visible

WIDTH_OF_A_LOG = 160
"""Characters per line if the output is not a terminal."""


class _Console(Console):
    """Takes every text as it is, in tables too: brackets are no styles, and control codes are written out."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


out = _Console()
if not out.file.isatty():  # in a notebook colours are forced, but it has no width
    out = _Console(width=WIDTH_OF_A_LOG)
