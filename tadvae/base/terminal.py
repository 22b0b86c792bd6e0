"""Text for a terminal: names come from files, and may hold codes that a terminal obeys."""

import sys
from typing import TextIO


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with what cannot be seen (control codes, escapes, reversed order) written out.

    Examples
    --------
    >>> print(visible("KLF1" + chr(27) + "[2J"))
    KLF1\x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in text)


def print_text(text: object, file: TextIO | None = None) -> None:
    """Print to standard output, or another file, at once; only line breaks and tabs stay as they are."""
    print(visible(str(text), keep="\n\t"), file=file or sys.stdout, flush=True)
