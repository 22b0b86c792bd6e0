"""The console for output of commands: coloured on a terminal (``NO_COLOR`` is respected), plain elsewhere."""

from rich.console import Console

WIDTH_OF_A_LOG = 160
"""Characters per line if the output is not a terminal."""
out = Console()
if not out.is_terminal:
    out = Console(width=WIDTH_OF_A_LOG)
