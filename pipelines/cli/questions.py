"""Questions on the terminal: the one place where a command reads what a person types."""

import sys

from tadvae.base.errors import UserError
from tadvae.base.terminal import print_text
from tadvae.draft_spec.decisions import Question

SHOWN = 20
"""Answers that are listed; others can be typed."""


def on_a_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: Question) -> str:
    """Print a question with numbered answers until one of them, or a free answer, is given.

    An empty line takes the first answer. The end of the input is a UserError.
    """
    print_text(question.text)
    for i, choice in enumerate(question.choices[:SHOWN], start=1):
        print_text(f"  {i}) {choice}")
    how = "number" if not question.free else "number, or another answer"
    while True:
        print_text(f"{how} [1: {question.choices[0]}]")
        try:
            typed = input("> ").strip()
        except EOFError:
            raise UserError(
                "the input ended at a question; answer it, or use --yes to take the best guesses."
            ) from None
        if not typed:
            return question.choices[0]
        if typed.isascii() and typed.isdecimal() and 1 <= int(typed) <= min(len(question.choices), SHOWN):
            return question.choices[int(typed) - 1]
        if typed in question.choices or question.free:
            return typed
        print_text(f"expected a number from 1 to {min(len(question.choices), SHOWN)}, or an answer as listed")
