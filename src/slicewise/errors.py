"""The one exception type for mistakes that a user can mend."""


class UserError(Exception):
    """Bad input: one line that names the flag, tag or file, what was found, what was expected, and the remedy.

    The command line prints the message and exits with status 1; it never shows a traceback for it. Bugs of our own are
    `AssertionError`s and keep their tracebacks.
    """
