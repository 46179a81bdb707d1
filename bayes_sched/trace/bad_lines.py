"""The lines of a trace that could not be used: how many for which reason, and the first few of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

NUM_SHOWN = 5
"""This many bad lines are kept with their place."""

TORN = "torn last line"
"""Every writer that is killed leaves one: it counts, and never stops the reading."""


@dataclass(frozen=True, slots=True)
class BadLine:
    """One unusable line: its file, its 1-based number, the reason, and what it held (may be empty)."""

    source: str
    line: int
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True, slots=True)
class BadLines:
    """All unusable lines of a trace.

    Attributes
    ----------
    counts : Mapping of str to int
        Number of bad lines by reason, most frequent first.
    first : tuple of BadLine
        The first `NUM_SHOWN`, in the order of the files and lines.
    num_lines : int
        Lines looked at, good and bad: without blank ones and the noise of a log.
    num_tolerated : int
        Bad lines at the end of a file, where a writer or a copy was cut short.
    """

    counts: Mapping[str, int]
    first: tuple[BadLine, ...]
    num_lines: int
    num_tolerated: int = 0

    @property
    def num_bad(self) -> int:
        """Number of bad lines, the tolerated ones included."""
        return sum(self.counts.values())

    @property
    def share(self) -> float:
        """Share of bad lines in the lines looked at, the tolerated ones left out."""
        return (self.num_bad - self.num_tolerated) / self.num_lines if self.num_lines else 0.0

    @property
    def reasons(self) -> str:
        """Reasons with their counts, most frequent first: ``12 x not valid JSON, 3 x ...``."""
        shown = [f"{count:,} x {reason}" for reason, count in list(self.counts.items())[:NUM_SHOWN]]
        return ", ".join([*shown, *["..."][: len(self.counts) - NUM_SHOWN]])

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        if not self.num_bad:
            return f"All {self.num_lines:,} lines are usable."
        shares = f"{self.num_bad:,} of {self.num_lines:,} lines are unusable"
        return f"{shares}: {self.reasons}; first {self.first[0]}."


@dataclass(slots=True)
class BadLineTally:
    """Counts bad lines while files are read."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[BadLine] = field(default_factory=list)
    num_tolerated: int = 0

    def add(self, bad: BadLine, *, is_tolerated: bool = False) -> None:
        """Count one bad line."""
        self.counts[bad.reason] += 1
        self.num_tolerated += is_tolerated
        if len(self.first) < NUM_SHOWN:
            self.first.append(bad)

    def merge(self, other: "BadLineTally") -> None:
        """Add the bad lines of another tally; the first few stay in the order of files and lines."""
        self.counts += other.counts
        self.num_tolerated += other.num_tolerated
        joined = [*self.first, *other.first]
        order = {source: rank for rank, source in enumerate(dict.fromkeys(bad.source for bad in joined))}
        joined.sort(key=lambda bad: (order[bad.source], bad.line))
        self.first = joined[:NUM_SHOWN]

    def freeze(self, *, num_lines: int) -> BadLines:
        """Give the result over `num_lines` lines looked at."""
        return BadLines(
            counts=dict(self.counts.most_common()),
            first=tuple(self.first),
            num_lines=num_lines,
            num_tolerated=self.num_tolerated,
        )
