"""What the library raises when a person has to act, and what a fit may fail with."""

from typing import Final


class BayesSchedError(Exception):
    """Base of every error that this library raises on purpose."""


class InputError(BayesSchedError, ValueError):
    """What came in cannot be used; the message is one line that says what was met and what to do.

    Commands print the message and end with exit status 2.
    """


FIT_ERRORS: Final = (ArithmeticError, RuntimeError, ValueError)
"""What a fit of a study may fail with, without ending the study: :class:`InputError` is among them."""


def error_text(error: Exception) -> str:
    """Return kind and message of an error as one line of at most some 200 characters, for a table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
