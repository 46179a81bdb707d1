"""What the library raises when a person, and not the library, has to act."""


class BayesSchedError(Exception):
    """Base of every error that this library raises on purpose."""


class InputError(BayesSchedError, ValueError):
    """What came in cannot be used; the message is one line that says what was met and what to do.

    Commands print the message and end with exit status 2.
    """
