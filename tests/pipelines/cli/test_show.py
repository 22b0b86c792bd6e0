"""Tables and sentences of the command line with names as a stranger's file may have them."""

import io
import sys

import pytest
from rich.table import Table

from pipelines.cli import show
from pipelines.cli.main import main
from pipelines.cluster.ray_log import say

NAMES = [
    "[/x]",
    "[bold]KLF1[/bold]",
    "[link=https://x.org]y[/link]",
    ":smile:",
    "\x1b]0;owned\x07",
    "a\nb",
    "[red]",
]


def shown(name):
    return name.replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\n", "\\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name, capsys):
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    show.out.print(table)
    show.out.print(f"{name}: done")
    say(name)
    printed = capsys.readouterr()
    assert printed.out.count(shown(name)) == 4
    assert "\x1b" not in printed.out + printed.err


def test_inspect_and_an_error_with_such_names(screen, write_spec, convert_here, capsys):
    screen.obs["condition"] = screen.obs["condition"].replace({"G1": "[/x]", "G2": "\x1b]0;g\x07"})
    screen.obs["line"] = screen.obs["line"].replace({"K562": "[bold]"})
    spec = write_spec(screen)
    store = convert_here(spec)
    main_ends(["inspect", str(store.folder)], 0)
    out = capsys.readouterr().out
    assert "[/x]" in out
    assert "\\x1b]0;g\\x07" in out
    assert "[bold]" in out
    main_ends(["inspect", "no\x1b[2J\nstore"], 2)
    assert "tadvae: " in (err := capsys.readouterr().err)
    assert "no\\x1b[2J\\nstore" in err
    assert len(err.splitlines()) == 1


def main_ends(words, code):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert (ended.value.code or 0) == code


def test_an_output_that_has_no_such_letters(screen, write_spec, convert_here, monkeypatch):
    screen.obs["condition"] = screen.obs["condition"].replace({"G1": "IFN-β"})
    store = convert_here(write_spec(screen))
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), "ascii", "strict"))
    main_ends(["inspect", str(store.folder)], 0)
    sys.stdout.flush()
    assert b"IFN-\\u03b2" in sys.stdout.buffer.getvalue()
    main_ends(["inspect", "größe"], 2)
    sys.stderr.flush()
    assert b"gr\\xf6\\xdfe" in sys.stderr.buffer.getvalue()
