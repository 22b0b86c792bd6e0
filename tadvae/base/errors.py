"""The one error that a user can mend."""


class UserError(Exception):
    """Bad input: one sentence naming what, where, what was expected, and the mend.

    The command line prints the sentence alone and exits with code 2. Raise it before anything is
    written.
    """
