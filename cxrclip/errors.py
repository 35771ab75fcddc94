"""The one error this library raises for faults in what the user gave it."""

from __future__ import annotations


class InputError(ValueError):
    """A file, a row or a parameter that cannot be used.

    The message is one line: what is wrong, where (file, row, column) and what to do about it.
    Command lines print it without a traceback and exit with status 2.
    """
