"""Whether what was read is a trace that can be used; if not, the line that tells a person why."""

import math
from collections.abc import Sequence

from bayes_sched.errors import InputError
from bayes_sched.trace.bad_lines import BadLines
from bayes_sched.trace.kinds import EXPECTED, likely_kind
from bayes_sched.trace.trace_file import TraceFile


def check_usable(files: Sequence[TraceFile], bad_lines: BadLines, *, max_bad_share: float) -> None:
    """Refuse files without a step, and traces of which too many lines are bad.

    Parameters
    ----------
    files : sequence of TraceFile
        All read to the end.
    bad_lines : BadLines
        The bad lines of all of them.
    max_bad_share : float
        Share of bad lines that is still accepted, in [0, 1].

    Raises
    ------
    InputError
        With the numbers, the first bad line, and what to do.
    """
    is_any_usable = any(file.num_steps for file in files)
    for file in files:
        if not file.num_steps and not (is_any_usable and _is_harmlessly_empty(file)):
            raise InputError(_nothing_usable(file))
    if bad_lines.share > max_bad_share:
        raise InputError(
            f"{bad_lines.num_bad:,} of {bad_lines.num_lines:,} lines ({bad_lines.share:.2%}) are unusable, "
            f"more than the {max_bad_share:.4g} allowed: {bad_lines.reasons}; first {bad_lines.first[0]}; "
            "repair the trace, or use its other lines with "
            f"--max-bad-share {_rounded_up(bad_lines.share):.4g}"
        )


def _rounded_up(share: float) -> float:
    return min(1.0, math.ceil(round(share * 100, 9)) / 100)  # 0.07 * 100 is a little more than 7


def _is_harmlessly_empty(file: TraceFile) -> bool:
    """Tell whether a server never served: it leaves an empty file or one torn line beside those of others."""
    return sum(file.bad.counts.values()) == file.bad.num_tolerated and file.num_looked_at <= 1


def _nothing_usable(file: TraceFile) -> str:
    bad_lines = file.bad.freeze(num_lines=file.num_looked_at)
    damage, head = file.stream.damage, file.stream.head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not file.num_looked_at:
        return f"{file.label} is empty: there is nothing to read"
    if damage and bad_lines.num_lines == 1:
        return f"{file.label} holds no complete step: its {damage}"
    if head.startswith(b"{") and bad_lines.num_bad == bad_lines.num_tolerated:
        return f"{file.label} holds no complete step: {bad_lines.first[0]}"
    if file.holds_damaged_steps:
        return (
            f"{file.label} holds no usable step, {bad_lines.num_bad:,} of {bad_lines.num_lines:,} lines are "
            f"bad: {bad_lines.reasons}; first {bad_lines.first[0]}; {EXPECTED}"
        )
    return f"{file.label} is no trace: it looks like {likely_kind(file.stream.head)}; {EXPECTED}"
