"""The fuse: counts the profiler's own errors, and switches it off when there are too many."""

from bayes_sched_profiler.notices import warn

MAX_ERRORS = 20


class Fuse:
    """Counts errors; shared by everything that the profiler does in one process.

    Attributes
    ----------
    num_errors : int
        Errors so far.
    is_blown : bool
        There were `MAX_ERRORS`: nothing is recorded any more.
    """

    def __init__(self) -> None:
        self.num_errors = 0
        self.is_blown = False
        self._told: set[str] = set()

    def count(self, error: Exception, where: str) -> None:
        """Count an error of the profiler's own; the first of each kind is told. Never raises."""
        try:
            self.num_errors += 1
            kind = f"{where}: {type(error).__name__}"
            if kind not in self._told:
                self._told.add(kind)
                warn("error in the %s; serving goes on.", where, error=error)
            if self.num_errors >= MAX_ERRORS and not self.is_blown:
                self.is_blown = True
                warn("%d errors: switched off; serving goes on.", self.num_errors)
        except Exception:
            self.is_blown = True
