"""Names of files on a terminal: every code is written out, and nothing else is changed."""

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadvae.base.terminal import print_text, visible

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("KLF1+ctrl_β", "KLF1+ctrl_β"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_is_shown(name, shown):
    assert visible(name) == shown


@given(st.text())
@settings(max_examples=60)
def test_no_code_is_left(name):
    assert visible(name).isprintable()


def test_lines_stay(capsys):
    print_text("a\tb\nc\x1b[2J")
    assert capsys.readouterr().out == "a\tb\nc\\x1b[2J\n"


def test_nothing_is_printed_otherwise():
    """One place prints, so that no name reaches a terminal as it is."""
    places = [path for name in ("tadvae", "pipelines", "tune") for path in (ROOT / name).rglob("*.py")]
    callers = set()
    for path in places:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                callers.add(str(path.relative_to(ROOT)))
    assert callers == {"tadvae/base/terminal.py"}
