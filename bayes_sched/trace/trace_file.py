"""One file of a trace, read into a flat array of numbers."""

from collections import Counter
from struct import Struct

import numpy as np
import numpy.typing as npt

from bayes_sched.trace.bad_lines import TORN, BadLine, BadLineTally
from bayes_sched.trace.fields import LineError
from bayes_sched.trace.formats import CUT_REASONS, FIELDS, VLLM_LOG, parse_line
from bayes_sched.trace.opening import MAX_LINE_BYTES, TraceStream

_TOO_LONG = f"longer than {MAX_LINE_BYTES // 2**20} MiB"
_WIDTH = len(FIELDS) + 1
_pack = Struct(f"{_WIDTH}d").pack  # numbers of a step as bytes: a third of the time of an array's extend


class TraceFile:
    """Reads one file: its steps, its bad lines, and what else there is to say about it.

    Attributes
    ----------
    path, label : str
        As given, and as shown to people.
    stream : TraceStream
        Where the lines come from: digest, damage, first bytes.
    bad : BadLineTally
        Lines that could not be used.
    formats, remarks : Counter of str
        Steps by format, and by what was odd about them though they are used.
    num_lines : int
        All lines.
    num_looked_at : int
        Lines that are not blank and no noise of a log.
    holds_damaged_steps : bool
        Some bad line is recognisably meant to be a step.
    """

    def __init__(self, path: str, *, label: str) -> None:
        self.path = path
        self.label = label
        self.stream = TraceStream(path, label=label)
        self.bad = BadLineTally()
        self.formats: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        self.num_lines = 0
        self.num_looked_at = 0
        self.holds_damaged_steps = False
        self._noise = BadLineTally()
        self._numbers = bytearray()

    @property
    def num_steps(self) -> int:
        """Number of steps read."""
        return len(self._numbers) // (8 * _WIDTH)

    @property
    def numbers(self) -> npt.NDArray[np.float64]:
        """`FIELDS` and the line number of each step, dims (step, field); NaN: not in the line."""
        if not self._numbers:
            return np.empty((0, _WIDTH))
        return np.frombuffer(self._numbers).reshape(-1, _WIDTH)

    def read(self) -> None:
        """Read the file to its end.

        Raises
        ------
        InputError
            If it cannot be read, or its first bytes tell that it is no trace.
        """
        for line, is_ended in self.stream.lines():
            self.num_lines += 1
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise LineError(_TOO_LONG, is_step=False)
                step = parse_line(line)
            except LineError as error:
                self._refuse(error, is_ended=is_ended)
                continue
            if step is not None:
                self._take(*step)
        self.num_looked_at += self.num_steps
        if self.formats[VLLM_LOG]:
            self.num_looked_at -= sum(self._noise.counts.values())
        else:
            self.bad.merge(self._noise)
        damage = self.stream.damage
        if damage and not self.bad.counts[damage]:  # the end of the data happens to be the end of a line
            self.num_looked_at += 1
            self.bad.add(BadLine(self.label, self.num_lines + 1, damage), is_tolerated=True)

    def _take(self, kind: str, row: tuple[float, ...], remark: str) -> None:
        self.formats[kind] += 1
        if remark:
            self.remarks[remark] += 1
        self._numbers += _pack(*row, self.num_lines)

    def _refuse(self, error: LineError, *, is_ended: bool) -> None:
        self.num_looked_at += 1
        reason, detail = error.reason, error.detail
        cut = "" if is_ended else self.stream.damage or (TORN if reason in CUT_REASONS else "")
        if cut:
            reason, detail = cut, reason
        elif error.is_step:
            self.holds_damaged_steps = True
        tally = self._noise if error.is_noise else self.bad
        tally.add(BadLine(self.label, self.num_lines, reason, detail), is_tolerated=bool(cut))
