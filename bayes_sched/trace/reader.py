"""Reads the step traces of vLLM schedulers: any of three formats, compressed or not, damaged or not."""

from __future__ import annotations

import hashlib
import json
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.trace.formats import CUT_REASONS, FIELDS, TORN, VLLM_LOG, LineError, Step, parse_lines
from bayes_sched.trace.opening import (
    EXPECTED,
    STDIN,
    Paths,
    TraceStream,
    expand_paths,
    likely_kind,
    result_name,
)

NUM_SHOWN = 5
"""This many bad lines are kept with their place, and this many reasons are told."""

WAIT_ONLY = (
    "the times of vLLM's own iteration lines are only the wait for the result: near the model run in "
    "synchronous mode, too small (down to 0) under asynchronous scheduling"
)

_KEYS = {
    "gpu": ("gpu", "gpu_name", "device_name", "device"),
    "llm": ("llm", "model", "model_name"),
}
SCHEDULER = ("max_num_batched_tokens", "max_num_seqs", "kv_cache_block_size", "num_kv_cache_blocks")
"""Settings of a server's scheduler, as vLLM names them."""

_FLOAT_FIELDS = {"latency_ms", "schedule_ms", "kv_cache_usage", "prefill_pairs", "timestamp", "step_ms"}
_pack = Struct(f"{len(FIELDS)}d").pack  # numbers of a step as bytes: a third of the time of an array's extend
_BATCH_BYTES = 2**20

type Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done, None where that is not known."""


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
    """All unusable lines of a trace."""

    counts: Mapping[str, int]  # number of bad lines by reason, most frequent first
    first: tuple[BadLine, ...]  # the first `NUM_SHOWN`, in the order of the files and lines
    num_lines: int  # lines looked at, good and bad: without blank ones and the noise of a log
    num_tolerated: int = 0  # bad lines at the end of a file, where a writer or a copy was cut short

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


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a trace."""

    path: str  # as given; - is standard input
    format: str  # documented, recorded or vllm-log; joined by + where a file mixes them
    sha256: str  # digest of the file's raw bytes
    num_lines: int  # all lines of the file, whatever they hold
    num_steps: int  # rows of the steps table that come from it


@dataclass(frozen=True, slots=True)
class Trace:
    """What `read_trace` read."""

    steps: pd.DataFrame
    """One row a scheduler step in the order of the files: ``batch_size`` (requests), ``total_tokens``,
    ``latency_ms``, and where the trace holds them ``num_prefill_reqs``, ``num_decode_reqs``, ``schedule_ms``,
    ``kv_cache_usage`` (share), ``num_waiting_reqs``, ``num_running_reqs``, ``context_tokens`` (in the KV
    cache before the step), ``prefill_pairs`` (query-key pairs of the prefill chunks), ``timestamp`` (s, of
    whatever clock wrote it; of a vLLM log, since the year began), ``step_ms`` (scheduling and model run as
    the trace tells it), ``prefill_tokens`` (sum of the prefill chunks), ``max_prefill_chunk`` (tokens; 0
    where nothing is prefilled); last ``source`` (categorical) and ``line`` (1-based). A column that no line
    holds is absent; NaN marks the rows that lack it. Idle steps are rows."""
    sources: tuple[Source, ...]
    """The files."""
    bad_lines: BadLines
    """The lines that could not be used."""
    sha256: str
    """The file's digest, or for several files the digest of their digests in order."""
    name: str
    """Default name of a result."""
    warnings: tuple[str, ...] = ()
    """What a person should know before trusting the trace."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """``gpu`` and ``llm`` where a side-car tells them."""

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        formats = ", ".join(sorted({source.format for source in self.sources}))
        files = f"{len(self.sources)} file" + "s" * (len(self.sources) != 1)
        return f"{len(self.steps):,} steps from {files} ({formats}). {self.bad_lines.text}"


def read_trace(paths: Paths, *, max_bad_share: float = 0.05, progress: Progress | None = None) -> Trace:
    """Read the step trace of a vLLM scheduler.

    The format of each line is recognised by what it holds (see :mod:`bayes_sched.trace.formats`), compression
    (gzip, zstd) by its first bytes. Lines that cannot be used are counted and left out.

    Parameters
    ----------
    paths : str, path, or sequence of them
        Files, patterns such as ``DIR/*.jsonl``, or ``-`` for standard input.
    max_bad_share : float
        Share of bad lines, in [0, 1], above which the trace is refused. Torn last lines do not count here.
    progress : callable, optional
        Called at each percent with a stage in words and the share of the files' bytes that is read; once,
        with None, where that is not known, as of standard input.

    Returns
    -------
    Trace
        The steps, and what there is to know about their reading.

    Raises
    ------
    InputError
        If a path cannot be read, a file is no trace, too many lines are bad, or no step is left.
    """
    if not 0 <= max_bad_share <= 1:
        raise InputError(f"max_bad_share is {max_bad_share}: give a share between 0 and 1")
    names, path_warnings = expand_paths(paths)
    files = [_File(name, label) for name, label in zip(names, _labels(names), strict=True)]
    bad, steps, num_bytes = _Tally(), _Steps(), _num_bytes(names)
    told: float | None = -1.0
    for file in files:
        for _ in file.read(steps):
            if progress is not None:
                num_read = sum(file.stream.num_bytes for file in files)
                share = min(1.0, round(num_read / num_bytes, 2)) if num_bytes else None
                if share != told:
                    progress("reading the trace", told := share)
        bad.merge(file.bad)
    bad_lines = bad.freeze(num_lines=sum(file.num_looked_at for file in files))
    _check_usable(files, bad_lines, max_bad_share)
    labels, sidecar_warnings = _read_labels(names)
    digests = [file.stream.sha256 for file in files]
    return Trace(
        steps=steps.table(files),
        sources=tuple(
            Source(f.path, "+".join(sorted(f.formats)) or "empty", digest, f.num_lines, f.num_steps)
            for f, digest in zip(files, digests, strict=True)
        ),
        bad_lines=bad_lines,
        sha256=digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        name=result_name(names),
        warnings=(*path_warnings, *_warnings(files), *sidecar_warnings),
        labels=labels,
    )


def _labels(paths: Sequence[str]) -> list[str]:
    """Name the files for people: without folders where that tells them apart."""
    names = ["standard input" if path == STDIN else Path(path).name for path in paths]
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def _num_bytes(paths: Sequence[str]) -> int:
    """Return the size of all files; 0 where it is not known."""
    try:
        return sum(map(os.path.getsize, paths))
    except OSError:
        return 0


@dataclass(slots=True)
class _Tally:
    """Counts bad lines while files are read."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[BadLine] = field(default_factory=list)
    num_tolerated: int = 0

    def add(self, bad: BadLine, *, is_tolerated: bool = False) -> None:
        self.counts[bad.reason] += 1
        self.num_tolerated += is_tolerated
        if len(self.first) < NUM_SHOWN:
            self.first.append(bad)

    def merge(self, other: _Tally) -> None:
        """Add another tally; the first few stay in the order of files and lines."""
        self.counts += other.counts
        self.num_tolerated += other.num_tolerated
        joined = [*self.first, *other.first]
        order = {source: rank for rank, source in enumerate(dict.fromkeys(bad.source for bad in joined))}
        self.first = sorted(joined, key=lambda bad: (order[bad.source], bad.line))[:NUM_SHOWN]

    def freeze(self, *, num_lines: int) -> BadLines:
        counts = dict(self.counts.most_common())
        return BadLines(counts, tuple(self.first), num_lines, self.num_tolerated)


class _Steps:
    """Collects steps as rows, and keeps them as the columns of the table, so that none is held twice."""

    def __init__(self) -> None:
        self._rows = bytearray()
        self._columns = [bytearray() for _ in FIELDS]
        self._lines = array("q")

    def add(self, steps: Mapping[int, Step]) -> None:
        """Add steps by their line numbers."""
        self._lines.extend(steps)
        self._rows += b"".join([_pack(*step.row) for step in steps.values()])
        if len(self._rows) > _BATCH_BYTES:
            self._settle()

    def _settle(self) -> None:
        rows = np.frombuffer(bytes(self._rows)).reshape(-1, len(FIELDS))
        self._rows.clear()
        for column, values in zip(self._columns, rows.T, strict=True):
            column += values.tobytes()

    def table(self, files: Sequence[_File]) -> pd.DataFrame:
        """Return the steps of the files, which were read in this order."""
        self._settle()
        columns: dict[str, object] = {}
        for name in FIELDS:
            values = np.frombuffer(self._columns.pop(0))
            is_missing = np.isnan(values)
            if not is_missing.all():
                is_integer = name not in _FLOAT_FIELDS and not is_missing.any()
                columns[name] = values.astype(np.int64) if is_integer else values
        codes = np.repeat(np.arange(len(files), dtype=np.int32), [file.num_steps for file in files])
        labels = pd.Index([file.label for file in files])
        columns["source"] = pd.Categorical.from_codes(codes, categories=labels)
        columns["line"] = np.frombuffer(self._lines, dtype=np.int64)
        return pd.DataFrame(columns, copy=False)


class _File:
    """Reads one file: its steps, its bad lines, and what else there is to say about it."""

    def __init__(self, path: str, label: str) -> None:
        self.path = path
        self.label = label
        self.stream = TraceStream(path, label=label)
        self.bad = _Tally()
        self.formats: Counter[str] = Counter()
        self.remarks: Counter[str] = Counter()
        """What was odd about steps that are used."""
        self.num_lines = 0
        self.num_looked_at = 0
        """Lines that are not blank and no noise of a log."""
        self.holds_damaged_steps = False
        """Some bad line is recognisably meant to be a step."""
        self._noise = _Tally()

    @property
    def num_steps(self) -> int:
        return self.formats.total()

    def read(self, steps: _Steps) -> Iterator[None]:
        """Read the file to its end, with a pause now and then.

        :class:`InputError` if it cannot be read, or begins as no trace does.
        """
        for block in self.stream.blocks():
            read = dict(enumerate(parse_lines(block), self.num_lines + 1))
            self.num_lines += len(read)
            found = {line: step for line, step in read.items() if isinstance(step, Step)}
            self.formats.update([step.format for step in found.values()])
            self.remarks.update([step.remark for step in found.values() if step.remark])
            steps.add(found)
            if len(found) < len(read):
                for line, error in read.items():
                    if isinstance(error, LineError):
                        self._refuse(line, error, is_ended=block.endswith(b"\n"))
            yield
        self.num_looked_at += self.num_steps
        if self.formats[VLLM_LOG]:
            self.num_looked_at -= sum(self._noise.counts.values())
        else:
            self.bad.merge(self._noise)
        damage = self.stream.damage
        if damage and not self.bad.counts[damage]:  # the end of the data happens to be the end of a line
            self.num_looked_at += 1
            self.bad.add(BadLine(self.label, self.num_lines + 1, damage), is_tolerated=True)

    def _refuse(self, line: int, error: LineError, *, is_ended: bool) -> None:
        self.num_looked_at += 1
        reason, detail = error.reason, error.detail
        cut = "" if is_ended else self.stream.damage or (TORN if reason in CUT_REASONS else "")
        if cut:
            reason, detail = cut, reason
        elif error.is_step:
            self.holds_damaged_steps = True
        tally = self._noise if error.is_noise else self.bad
        tally.add(BadLine(self.label, line, reason, detail), is_tolerated=bool(cut))


def _check_usable(files: Sequence[_File], bad_lines: BadLines, max_bad_share: float) -> None:
    """Refuse files without a step, and traces of which too many lines are bad, with what to do."""
    is_any_usable = any(file.num_steps for file in files)
    for file in files:
        # A server that never served leaves an empty file or one torn line beside those of others.
        is_harmless = file.bad.counts.total() == file.bad.num_tolerated and file.num_looked_at <= 1
        if not file.num_steps and not (is_any_usable and is_harmless):
            raise InputError(_nothing_usable(file))
    share = bad_lines.share
    if share > max_bad_share:
        accepted = min(1.0, math.ceil(round(share * 100, 9)) / 100)  # 0.07 * 100 is a little more than 7
        raise InputError(
            f"{bad_lines.num_bad:,} of {bad_lines.num_lines:,} lines ({share:.2%}) are unusable, more than "
            f"the {max_bad_share:.4g} allowed: {bad_lines.reasons}; first {bad_lines.first[0]}; "
            f"repair the trace, or use its other lines with max_bad_share {accepted:.4g}"
        )


def _nothing_usable(file: _File) -> str:
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


def _warnings(files: Sequence[_File]) -> list[str]:
    warnings = [f"{file.label} holds no step and is left out" for file in files if not file.num_steps]
    for file in files:
        if file.stream.damage:
            place = f"after line {file.num_lines:,}"
            warnings.append(f"{file.label}: {file.stream.damage} {place}; what followed is lost")
        for remark, count in file.remarks.items():
            warnings.append(f"{file.label}: in {count:,} of {file.num_steps:,} steps the {remark}")
    by_digest: dict[str, str] = {}
    for file in filter(lambda file: file.num_steps, files):
        twin = by_digest.setdefault(file.stream.sha256, file.label)
        if twin != file.label:
            warnings.append(f"{file.label} and {twin} hold the same bytes: their steps count twice")
    num_waits = sum(file.formats[VLLM_LOG] for file in files)
    if num_waits:
        warnings.append(f"{num_waits:,} steps: {WAIT_ONLY}")
    return warnings


def _read_labels(paths: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the labels that ``LOG.meta.json`` beside traces tell, and a sentence for each slip of them."""
    contents, warnings = _sidecars(paths)
    labels: dict[str, str] = {}
    for label, keys in _KEYS.items():
        texts = [[content.get(key) for key in keys] for content in contents]
        told = {text for each in texts for text in [t for t in each if isinstance(t, str) and t][:1]}
        if len(told) > 1:
            warnings.append(
                f"the side-cars disagree on the {label} ({', '.join(sorted(told))}): none is used"
            )
        elif told:
            labels[label] = told.pop()
    return labels, warnings


def read_scheduler(paths: Sequence[str]) -> dict[str, int]:
    """Read the settings in :data:`SCHEDULER` that side-cars of some traces tell and no two contradict."""
    contents, _ = _sidecars(paths)
    found = {}
    for name in SCHEDULER:
        told = {value for content in contents if type(value := content.get(name)) is int and value > 0}
        if len(told) == 1:
            found[name] = told.pop()
    return found


def _sidecars(paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the side-cars' objects, and a warning for each that cannot be read."""
    contents: list[dict[str, Any]] = []
    warnings: list[str] = []
    for sidecar in dict.fromkeys(_sidecar(path) for path in paths):
        if sidecar is None:
            continue
        try:
            content = json.loads(sidecar.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError):
            warnings.append(f"the side-car {sidecar.name} is unreadable and left out")
            continue
        contents += [content] if isinstance(content, dict) else []
    return contents, warnings


def _sidecar(path: str) -> Path | None:
    trace = Path(path)
    unpacked = trace.with_suffix("") if trace.suffix.lower() in {".gz", ".zst"} else trace
    logs = [log for log in (trace, unpacked, unpacked.with_suffix("")) if log.name]
    beside = [log.with_name(f"{log.name}.meta.json") for log in logs]
    return next((file for file in beside if path != STDIN and file.is_file()), None)
