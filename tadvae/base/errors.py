"""The error class for input that the user can fix."""

import re


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, what was expected and how to fix it.

    The command line prints only this sentence and exits with code 2. Raise it before anything is
    written.
    """


class StorageError(UserError):
    """Storage that does not answer: unlike other bad input, it may be there again at the next attempt."""


def require(fits: object, reason: str) -> None:
    """Raise a ValueError where what a file says does not fit; whoever read it adds the file."""
    if not fits:
        raise ValueError(reason)


def sentence_in(text: str) -> str | None:
    """The sentence of the last UserError in the text of a traceback of another process, None without one."""
    found = re.findall(r"(?:UserError|StorageError): (.+)", text)
    return found[-1] if found else None


def clause(error: Exception) -> str:
    """The message of an error of another library, shortened to fit into a sentence in parentheses."""
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return re.sub(r"\s+", " ", str(text)).split(". ")[0].rstrip(".")[:200]
