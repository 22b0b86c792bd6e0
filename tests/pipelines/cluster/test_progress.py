"""Progress where colours are forced but nothing can be drawn over: in a notebook."""

import io

import pytest
from rich.console import Console

from pipelines.cluster import progress


@pytest.mark.parametrize("drawn", [True, False])
def test_a_bar_is_drawn_on_terminals_alone(monkeypatch, drawn):
    file = io.StringIO()
    file.isatty = lambda: drawn
    monkeypatch.setattr(progress, "console", Console(file=file, force_terminal=True))
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with progress.Steps("steps", 2) as steps:
        steps.advance(2)
    assert bool(file.getvalue()) is drawn
