"""What the files say, what is only a guess, and whom to ask."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tadvae.base.errors import UserError


@dataclass(frozen=True)
class Question:
    """A question with numbered answers.

    Attributes
    ----------
    text
        The question, one sentence.
    choices
        Answers; the first is the best guess.
    free
        Whether any other text is an answer too.
    """

    text: str
    choices: tuple[str, ...]
    free: bool = False


Ask = Callable[[Question], str]
"""Asks a person; returns one of the choices, or free text where the question allows it."""


@dataclass
class Decisions:
    """Answers for one dataset, and which of them are guesses.

    Attributes
    ----------
    where
        The file, for questions and messages.
    ask
        Asks a person; None: nobody is there, the best guess is taken.
    reasons
        By setting (its path in the spec), why its value was guessed.
    """

    where: str
    ask: Ask | None
    reasons: dict[tuple[str, ...], str] = field(default_factory=dict)

    def choose(
        self, setting: tuple[str, ...], question: Question, *, reason: str, refuse: str | None = None
    ) -> str:
        """Ask for a setting, or take the first choice and note the reason.

        Parameters
        ----------
        refuse
            What to do instead of guessing where nobody can be asked, the end of a sentence; None: guess.
        """
        if self.ask is not None:
            return self.ask(Question(f"{self.where}: {question.text}", question.choices, question.free))
        if refuse is not None:
            raise UserError(f"{self.where}: {reason}; {refuse}.")
        self.reasons[setting] = reason
        return question.choices[0]

    def note(self, setting: tuple[str, ...], reason: str) -> None:
        """Note the reason of a guess that is not worth a question."""
        self.reasons[setting] = reason


def some(names: Any, most: int = 4) -> str:
    """The first few of some names, for messages."""
    listed = [str(name) if len(str(name)) <= 40 else str(name)[:39] + "…" for name in names]
    more = f", … ({len(listed)} in all)" if len(listed) > most else ""
    return ", ".join(f"'{name}'" for name in listed[:most]) + more
