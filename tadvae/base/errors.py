"""The error class for input that the user can fix."""


class UserError(Exception):
    """Bad input: one sentence that says what is wrong, where, what was expected and how to fix it.

    The command line prints only this sentence and exits with code 2. Raise it before anything is
    written.
    """


class StorageError(UserError):
    """Storage that does not answer: unlike other bad input, it may be there again at the next attempt."""
