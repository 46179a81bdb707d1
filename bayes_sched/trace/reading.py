"""Reads the step traces of vLLM schedulers: any of three formats, compressed or not, damaged or not."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.trace.bad_lines import BadLines, BadLineTally
from bayes_sched.trace.formats import FIELDS, VLLM_LOG
from bayes_sched.trace.names import result_name
from bayes_sched.trace.opening import STDIN, Paths, expand_paths
from bayes_sched.trace.sidecar import read_labels
from bayes_sched.trace.trace_file import TraceFile
from bayes_sched.trace.verdict import check_usable

WAIT_ONLY = (
    "the times of vLLM's own iteration lines are only the wait for the result: near the model run in "
    "synchronous mode, too small (down to 0) under asynchronous scheduling"
)

_FLOAT_FIELDS = {"latency_ms", "schedule_ms", "kv_cache_usage", "prefill_pairs", "timestamp", "step_ms"}


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a trace.

    Attributes
    ----------
    path : str
        As given; ``-`` is standard input.
    format : str
        ``documented``, ``recorded`` or ``vllm-log``; joined by ``+`` where a file mixes them.
    sha256 : str
        Digest of the file's raw bytes.
    num_lines : int
        All lines of the file, whatever they hold.
    num_steps : int
        Rows of the steps table that come from it.
    """

    path: str
    format: str
    sha256: str
    num_lines: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Trace:
    """What `read_trace` read.

    Attributes
    ----------
    steps : DataFrame
        One row a scheduler step in the order of the files: ``batch_size`` (requests), ``total_tokens``,
        ``latency_ms``, and where the trace holds them ``num_prefill_reqs``, ``num_decode_reqs``,
        ``schedule_ms``, ``kv_cache_usage`` (share), ``num_waiting_reqs``, ``num_running_reqs``,
        ``context_tokens`` (in the KV cache before the step), ``prefill_pairs`` (query-key pairs of the
        prefill chunks), ``timestamp`` (s, of whatever clock wrote it; of a vLLM log, since the year began),
        ``step_ms`` (scheduling and model run as the trace tells it), ``prefill_tokens`` (sum of the prefill
        chunks), ``max_prefill_chunk`` (tokens; 0 where nothing is prefilled);
        last ``source`` (categorical) and ``line`` (1-based). A column that no line holds is absent; NaN marks
        the rows that lack it. Idle steps are rows.
    sources : tuple of Source
        The files.
    bad_lines : BadLines
        The lines that could not be used.
    sha256 : str
        The file's digest, or for several files the digest of their digests in order.
    name : str
        Default name of a result.
    warnings : tuple of str
        What a person should know before trusting the trace.
    labels : Mapping of str to str
        ``gpu`` and ``llm`` where a side-car tells them.
    """

    steps: pd.DataFrame
    sources: tuple[Source, ...]
    bad_lines: BadLines
    sha256: str
    name: str
    warnings: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        formats = ", ".join(sorted({source.format for source in self.sources}))
        files = f"{len(self.sources)} file" + "s" * (len(self.sources) != 1)
        return f"{len(self.steps):,} steps from {files} ({formats}). {self.bad_lines.text}"


def read_trace(paths: Paths, *, max_bad_share: float = 0.05) -> Trace:
    """Read the step trace of a vLLM scheduler.

    The format of each line is recognised by what it holds (see `bayes_sched.trace.formats`), compression
    (gzip, zstd) by its first bytes. Lines that cannot be used are counted and left out.

    Parameters
    ----------
    paths : str, path, or sequence of them
        Files, patterns such as ``DIR/*.jsonl``, or ``-`` for standard input.
    max_bad_share : float
        Share of bad lines, in [0, 1], above which the trace is refused. Torn last lines do not count here.

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
        raise InputError(f"--max-bad-share is {max_bad_share}: give a share between 0 and 1")
    names, path_warnings = expand_paths(paths)
    files = [TraceFile(name, label=label) for name, label in zip(names, _labels(names), strict=True)]
    for file in files:
        file.read()
    bad_lines = _joined_bad_lines(files)
    check_usable(files, bad_lines, max_bad_share=max_bad_share)
    sidecar_labels, sidecar_warnings = read_labels(names)
    digests = [file.stream.sha256 for file in files]
    return Trace(
        steps=_steps_table(files),
        sources=tuple(_source(file) for file in files),
        bad_lines=bad_lines,
        sha256=digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        name=result_name(names),
        warnings=(*path_warnings, *_reading_warnings(files), *sidecar_warnings),
        labels=sidecar_labels,
    )


def _labels(paths: Sequence[str]) -> list[str]:
    """Names of the files for people: without folders where that tells them apart."""
    names = ["standard input" if path == STDIN else Path(path).name for path in paths]
    return [path if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]


def _source(file: TraceFile) -> Source:
    return Source(
        path=file.path,
        format="+".join(sorted(file.formats)) or "empty",
        sha256=file.stream.sha256,
        num_lines=file.num_lines,
        num_steps=file.num_steps,
    )


def _joined_bad_lines(files: Sequence[TraceFile]) -> BadLines:
    joined = BadLineTally()
    for file in files:
        joined.merge(file.bad)
    return joined.freeze(num_lines=sum(file.num_looked_at for file in files))


def _reading_warnings(files: Sequence[TraceFile]) -> list[str]:
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


def _steps_table(files: Sequence[TraceFile]) -> pd.DataFrame:
    numbers = files[0].numbers if len(files) == 1 else np.concatenate([file.numbers for file in files])
    columns: dict[str, object] = {}
    for index, name in enumerate(FIELDS):
        values = numbers[:, index]
        is_missing = np.isnan(values)
        if is_missing.all():
            continue
        is_integer = name not in _FLOAT_FIELDS and not is_missing.any()
        columns[name] = values.astype(np.int64) if is_integer else values.copy()
    codes = np.repeat(np.arange(len(files)), [file.num_steps for file in files])
    columns["source"] = pd.Categorical.from_codes(codes, categories=pd.Index([file.label for file in files]))
    columns["line"] = numbers[:, -1].astype(np.int64)
    return pd.DataFrame(columns)
