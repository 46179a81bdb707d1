"""The short way for sound lines: a typed JSON decoder takes what is plainly right and leaves the rest.

Nearly every line of a trace is plain ASCII, valid JSON, and holds numbers of the right type in their range.
`quick_row` reads those four times as fast as a look at one field after the other. Whatever is unusual about a
line, damaged or not, it gives None, and the careful way of `bayes_sched.trace.formats` decides: what is read
and why something is refused is said there alone.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import compress, takewhile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, DecodeError, Meta, Struct, UnsetType

_ENDINGS = re.compile(r"(\.(gz|zst|zstd|jsonl|ndjson|json|log|txt))+$", re.IGNORECASE)
_MAX_LENGTH = 80


def result_name(paths: Sequence[str]) -> str:
    """Name the result of reading some files.

    Parameters
    ----------
    paths : sequence of str
        As given; ``-`` is standard input.

    Returns
    -------
    str
        Letters, digits, ``.``, ``_`` and ``-``, fit for a folder. Of several files it is the beginning that
        their names share up to a separator, or the first name and how many more there are.
    """
    stems = ["stdin" if path == "-" else _stem(path) for path in paths]
    name = stems[0]
    if len(stems) > 1:
        name = _shared_start(stems) or f"{stems[0]}-and-{len(stems) - 1}-more"
    return _slug(name)


def _shared_start(stems: Sequence[str]) -> str:
    """Give the beginning that all names share, up to a separator; empty if it is too short to help."""
    columns = zip(*[stem + "-" for stem in stems], strict=False)
    shared = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    start = shared[: max(map(shared.rfind, "-_. ")) + 1].rstrip("-_. ")
    return start if len(start) > 2 else ""


def _stem(path: str) -> str:
    return _ENDINGS.sub("", Path(path).name)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_MAX_LENGTH].strip("-._") or "trace"


MAX_COUNT = 10**9
"""More requests or tokens than this in one step is damage. Sums and products of counts stay finite."""
MAX_MS = 1e9
"""A step of more than eleven days is damage."""
MAX_USAGE = 100.0
MAX_TIMESTAMP = 1e19
"""Room for a clock in nanoseconds."""

_INTEGERS_ONLY = {int}


class LineError(ValueError):
    """A line that is no usable step.

    Attributes
    ----------
    reason : str
        One of few texts, fit for counting.
    detail : str
        What this very line held; may be empty.
    is_noise : bool
        The line is no damage when it stands amid vLLM's own log.
    is_step : bool
        The line is recognisably meant to be a step.
    """

    def __init__(
        self, reason: str, *, detail: str = "", is_noise: bool = False, is_step: bool = True
    ) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.is_noise = is_noise
        self.is_step = is_step


def number(record: Mapping[str, Any], field: str, *, high: float, required: bool = False) -> float:
    """Give a number in [0, high]; NaN where an optional one is absent, null or NaN.

    Raises
    ------
    LineError
        If it is anything else.
    """
    value: Any = record.get(field)
    kind = type(value)
    if kind is float or kind is int:  # not isinstance: True is an int to it
        if 0 <= value <= high:
            return value  # type: ignore[no-any-return]
        if value != value and not required:
            return math.nan
    elif value is None and not required:
        return math.nan
    raise _refusal(record, field, value, high)


def count(record: Mapping[str, Any], field: str, *, required: bool = False) -> float:
    """Give a whole number in [0, MAX_COUNT]; NaN where an optional one is absent, null or NaN.

    Raises
    ------
    LineError
        If it is anything else.
    """
    value: Any = record.get(field)
    if type(value) is int and 0 <= value <= MAX_COUNT:  # the way of nearly every field of nearly every line
        return value
    value = number(record, field, high=MAX_COUNT, required=required)
    if value != value or value.is_integer():
        return value  # type: ignore[no-any-return]
    raise LineError(f"{field} is not a whole number", detail=repr(value))


def _refusal(record: Mapping[str, Any], field: str, value: object, high: float) -> LineError:
    if field not in record:
        return LineError(f"missing field {field}")
    if isinstance(value, float) and math.isnan(value):
        return LineError(f"{field} is NaN")
    if isinstance(value, int | float) and not isinstance(value, bool):
        reason = "negative" if value < 0 else f"above {high:.0e}"
        # An integer in JSON may be too large for any format of a float.
        is_printable = isinstance(value, float) or abs(value) < 10**300
        return LineError(f"{field} is {reason}", detail=f"{value:.6g}" if is_printable else "")
    return LineError(f"{field} is {_kind(value)}", detail=shorten(json.dumps(value)))


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def sizes_of(
    record: Mapping[str, Any], field: str, count_field: str = "", num_expected: float | None = None
) -> list[int] | None:
    """Give a list of whole numbers in [0, MAX_COUNT]; None where it is absent or null.

    Raises
    ------
    LineError
        If it is anything else, or its length is not `num_expected`, which `count_field` tells.
    """
    sizes = record.get(field)
    if sizes is None:
        return None
    if type(sizes) is not list:
        raise LineError(f"{field} is {_kind(sizes)}, not a list", detail=shorten(json.dumps(sizes)))
    if sizes.count(1) != len(sizes):  # the chunks of a decode step need no closer look
        if set(map(type, sizes)) != _INTEGERS_ONLY:
            raise LineError(f"{field} holds something else than whole numbers")
        if min(sizes) < 0 or max(sizes) > MAX_COUNT:
            raise LineError(f"{field} holds a number outside 0 to {MAX_COUNT:.0e}")
    if num_expected is not None and len(sizes) != num_expected:
        raise LineError(
            f"{field} contradicts {count_field}",
            detail=f"{len(sizes)} entries where {num_expected:.0f} are due",
        )
    return sizes


def shorten(text: str, width: int = 60) -> str:
    """Make a foreign text fit for a message: printable and not long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."


DOCUMENTED = "documented"
RECORDED = "recorded"
VLLM_LOG = "vllm-log"

FIELDS = (
    "batch_size",
    "total_tokens",
    "latency_ms",
    "num_prefill_reqs",
    "num_decode_reqs",
    "schedule_ms",
    "kv_cache_usage",
    "num_waiting_reqs",
    "num_running_reqs",
    "context_tokens",
    "prefill_pairs",
    "timestamp",
    "step_ms",
    "prefill_tokens",
    "max_prefill_chunk",
)
"""Columns of a step, in the order of `Step.row`."""

NOT_A_STEP = "JSON without the fields of a scheduler step"
NOT_TEXT = "not UTF-8 text"
NOT_JSON = "not valid JSON"
NUL_BYTE = "holds a NUL byte"
PLAIN_TEXT = "neither JSON nor a vLLM iteration line"
BROKEN_ITERATION = "incomplete vLLM iteration line"
CUT_REASONS = frozenset({NOT_TEXT, NOT_JSON, NUL_BYTE, BROKEN_ITERATION})
"""What a line looks like whose end is missing."""

_BOM = b"\xef\xbb\xbf"
_NAN = math.nan
_DECODER = json.JSONDecoder()
_ITERATION = re.compile(
    rb"Iteration\(\d+\):\s*(\d{1,9}) context requests,\s*(\d{1,9}) context tokens,"
    rb"\s*(\d{1,9}) generation requests,\s*(\d{1,9}) generation tokens,"
    rb"\s*iteration elapsed time:\s*(\d{1,9}(?:\.\d+)?)\s*ms(?P<dummy>\s*\(dummy\))?"
    rb"(?:.*?KV cache usage:\s*(\d{1,3}(?:\.\d+)?)\s*%)?"
)
_CLOCK = re.compile(rb"(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)")


class Step(NamedTuple):
    """One step as read: its format, its numbers in the order of `FIELDS` (NaN: not in the line), a remark."""

    format: str
    row: tuple[float, ...]
    remark: str = ""


def parse_line(line: bytes) -> Step | None:
    """Read one line of a trace in whichever of the three formats it is.

    Parameters
    ----------
    line : bytes
        The line, with or without its end.

    Returns
    -------
    Step or None
        None for a blank line.

    Raises
    ------
    LineError
        If the line is no usable step.
    """
    if not line.startswith(b"{"):
        line = line.removeprefix(_BOM).strip()
        if not line:
            return None
        if not line.startswith(b"{"):
            return _parse_text(line)
    quick = quick_row(line)
    return parse_record(line) if quick is None else tuple.__new__(Step, (*quick, ""))


def parse_record(line: bytes) -> Step:
    """Read one line of JSON field by field, as `parse_line` does where anything about it is unusual.

    Raises
    ------
    LineError
        If the line is no usable step.
    """
    record = _load(line)
    if "num_prefill_reqs" in record or "num_decode_reqs" in record:
        return _parse_documented(record)
    if "chunk_sizes" in record:
        return _parse_recorded(record)
    if "total_scheduled_tokens" in record or "model_run_duration_ms" in record:
        raise LineError("missing field num_prefill_reqs or chunk_sizes")
    raise LineError(NOT_A_STEP, detail="fields " + shorten(", ".join(record)), is_step=False)


def _load(line: bytes) -> dict[str, Any]:
    record: dict[str, Any]  # what begins with a brace and is valid JSON is an object
    try:
        text = line.decode()
        record, end = _DECODER.raw_decode(text)  # json.loads would look for space around it, at some cost
    except UnicodeDecodeError:
        raise LineError(NOT_TEXT, is_step=False) from None
    except (ValueError, RecursionError) as error:
        if b"\0" in line:
            raise LineError(NUL_BYTE) from None
        raise LineError(NOT_JSON, detail=shorten(str(error)), is_step=False) from None
    if end != len(text) and text[end:].strip():
        reason = NUL_BYTE if b"\0" in line else NOT_JSON
        raise LineError(reason, detail="something follows the object", is_step=False)
    return record


def _parse_documented(record: dict[str, Any]) -> Step:
    latency_ms = number(record, "model_run_duration_ms", high=MAX_MS, required=True)
    total_tokens = count(record, "total_scheduled_tokens", required=True)
    num_prefill = count(record, "num_prefill_reqs", required=True)
    num_decode = count(record, "num_decode_reqs", required=True)
    prefill = sizes_of(record, "prefill_chunk_sizes", "num_prefill_reqs", num_prefill)
    decode = sizes_of(record, "decode_chunk_sizes", "num_decode_reqs", num_decode)
    prefill_context = sizes_of(record, "prefill_context_lens", "num_prefill_reqs", num_prefill)
    decode_context = sizes_of(record, "decode_context_lens", "num_decode_reqs", num_decode)
    prefill_tokens, max_prefill_chunk = _chunk_figures(prefill)
    context_tokens = prefill_pairs = _NAN
    if prefill_context is not None and decode_context is not None:
        context_tokens = sum(prefill_context) + sum(decode_context)
    if prefill is not None and prefill_context is not None:
        prefill_pairs = query_key_pairs(prefill, prefill_context)
    remark = ""
    if prefill is not None and decode is not None and sum(prefill) + sum(decode) != total_tokens:
        # B and S stand in fields of their own: the step is usable, what the chunks tell is not.
        remark = "chunk sizes do not sum to total_scheduled_tokens (which is used)"
        prefill_pairs = prefill_tokens = max_prefill_chunk = _NAN
    counts = (num_prefill + num_decode, total_tokens, latency_ms, num_prefill, num_decode)
    surroundings = _surroundings(record, context_tokens, prefill_pairs)
    return Step(DOCUMENTED, (*counts, *surroundings, prefill_tokens, max_prefill_chunk), remark)


def _parse_recorded(record: dict[str, Any]) -> Step:
    latency_ms = number(record, "model_run_duration_ms", high=MAX_MS, required=True)
    total_tokens = count(record, "total_scheduled_tokens", required=True)
    chunks = sizes_of(record, "chunk_sizes")
    if chunks is None:
        raise LineError("chunk_sizes is null")
    if sum(chunks) != total_tokens:
        raise LineError(
            "chunk_sizes contradicts total_scheduled_tokens",
            detail=f"sum {sum(chunks)}, total {total_tokens}",
        )
    computed = sizes_of(record, "all_computed_tokens", "chunk_sizes", len(chunks))
    num_decode = chunks.count(1)
    num_prefill = len(chunks) - num_decode
    context_tokens = prefill_pairs = _NAN
    if computed is not None:
        context_tokens = sum(computed)
        is_prefill = [size > 1 for size in chunks] if num_prefill else []
        prefill_pairs = query_key_pairs([*compress(chunks, is_prefill)], [*compress(computed, is_prefill)])
    counts = (len(chunks), total_tokens, latency_ms, num_prefill, num_decode)
    surroundings = _surroundings(record, context_tokens, prefill_pairs)
    prefill_figures = _chunk_figures([size for size in chunks if size > 1])
    return Step(RECORDED, (*counts, *surroundings, *prefill_figures))


def _surroundings(record: dict[str, Any], context_tokens: float, prefill_pairs: float) -> tuple[float, ...]:
    return (
        number(record, "schedule_duration_ms", high=MAX_MS),
        number(record, "kv_cache_usage", high=MAX_USAGE),
        count(record, "num_waiting_reqs"),
        count(record, "num_running_reqs"),
        context_tokens,
        prefill_pairs,
        number(record, "timestamp", high=MAX_TIMESTAMP),
        number(record, "total_step_duration_ms", high=MAX_MS),
    )


def _chunk_figures(prefill: list[int] | None) -> tuple[float, float]:
    """Sum and largest of the prefill chunks; a step that prefills nothing has zeros."""
    return (_NAN, _NAN) if prefill is None else (sum(prefill), max(prefill, default=0))


def _parse_text(line: bytes) -> Step:
    match = _ITERATION.search(line)
    if match is None:
        if b"Iteration(" in line and b" context " in line:
            raise LineError(BROKEN_ITERATION)
        reason = NUL_BYTE if b"\0" in line else PLAIN_TEXT
        detail = shorten(line[:80].decode(errors="replace"))
        raise LineError(reason, detail=detail, is_noise=True, is_step=False)
    num_prefill, prefill_tokens, num_decode, decode_tokens = map(int, match.group(1, 2, 3, 4))
    if match["dummy"]:
        # A dummy batch only keeps the ranks in step: nothing was scheduled in it.
        num_prefill = prefill_tokens = num_decode = decode_tokens = 0
    usage = match.group(7)
    kv_cache_usage = float(usage) / 100 if usage else _NAN
    counts = (
        num_prefill + num_decode,
        prefill_tokens + decode_tokens,
        float(match.group(5)),
        num_prefill,
        num_decode,
    )
    timestamp = _log_seconds(line[: match.start()])
    unknown = (_NAN, _NAN, _NAN, _NAN)
    rest = (timestamp, _NAN, prefill_tokens, _NAN)
    return Step(VLLM_LOG, (*counts, _NAN, kv_cache_usage, *unknown, *rest))


def _log_seconds(prefix: bytes) -> float:
    """Seconds since the year began: the log tells no year, so one with a 29 February is assumed."""
    clock = _CLOCK.search(prefix)
    if clock is None:
        return _NAN
    month, day, hour, minute, second = map(int, clock.groups())
    try:
        return (datetime(2000, month, day, hour, minute, second) - datetime(2000, 1, 1)).total_seconds()
    except ValueError:
        return _NAN


EXPECTED = (
    "expected one JSON object a line with num_prefill_reqs, num_decode_reqs, total_scheduled_tokens and "
    "model_run_duration_ms (or chunk_sizes in place of the two counts), or a vLLM log written under "
    "--enable-logging-iteration-details"
)

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive (or an Excel or NumPy file, which are ZIP archives): unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 or netCDF file, a saved fit perhaps"),
    (b"CDF\x01", "a netCDF file"),
    (b"CDF\x02", "a netCDF file"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"BZh", "bzip2 data: unpack it with bunzip2 first"),
    (b"\xfd7zXZ\0", "xz data: unpack it with unxz first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (b"\x04\x22\x4d\x18", "LZ4 data: unpack it first"),
    (b"\x1f\x8b", "data compressed twice: unpack it once first"),
    (b"\x28\xb5\x2f\xfd", "data compressed twice: unpack it once first"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
)


def foreign_kind(head: bytes) -> str | None:
    """Name the kind of a file that cannot be a trace, by its magic bytes.

    Parameters
    ----------
    head : bytes
        The first bytes of the file, decompressed; 512 are enough.

    Returns
    -------
    str or None
        None if nothing speaks against a trace.
    """
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def likely_kind(head: bytes) -> str:
    """Guess what a file without a single step is.

    Parameters
    ----------
    head : bytes
        The first bytes of the file, decompressed; some thousand are good.

    Returns
    -------
    str
        For example ``a CSV table``.
    """
    num_control = sum(byte < 9 or 13 < byte < 27 or 27 < byte < 32 for byte in head)
    if num_control > len(head) / 100:
        return "binary data"
    text = head.decode(errors="replace").removeprefix("\ufeff").strip()
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return "an empty file"
    if text[:200].lower().startswith(("<!doctype html", "<html")):
        return "an HTML page"
    if text.startswith("["):
        return "a JSON array: write its objects one a line, for example with jq -c '.[]'"
    if text.startswith("{"):
        return _likely_json(lines)
    return _likely_table(lines)


def _likely_json(lines: list[str]) -> str:
    try:
        fields = ", ".join(json.loads(lines[0]))
    except ValueError:
        return "JSON over several lines: write one object a line, for example with jq -c ."
    return f"JSON lines of another kind, with the fields {fields[:80]}" if fields else "empty JSON objects"


def _likely_table(lines: list[str]) -> str:
    for separator, name in ((",", "a CSV table"), ("\t", "a table with tabs"), (";", "a CSV table")):
        counts = [line.count(separator) for line in lines[:3]]
        if counts[0] > 0 and len(set(counts)) == 1 and (len(counts) > 1 or counts[0] > 1):
            return name
    start = "".join(c if c.isprintable() else "?" for c in lines[0][:40])
    return f"plain text that begins with {start!r}"


_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Milliseconds = Annotated[float, Meta(ge=0, le=MAX_MS)]
_Sizes = list[_Count]

_NAN_TEXT = float("nan")


class _Record(Struct, gc=False):
    """The fields that are read, of the documented schema and of its recorded variant."""

    model_run_duration_ms: _Milliseconds
    total_scheduled_tokens: _Count
    num_prefill_reqs: _Count | UnsetType = UNSET
    num_decode_reqs: _Count | UnsetType = UNSET
    prefill_chunk_sizes: _Sizes | None = None
    decode_chunk_sizes: _Sizes | None = None
    prefill_context_lens: _Sizes | None = None
    decode_context_lens: _Sizes | None = None
    chunk_sizes: _Sizes | UnsetType = UNSET
    all_computed_tokens: _Sizes | None = None
    schedule_duration_ms: _Milliseconds | None = None
    total_step_duration_ms: _Milliseconds | None = None
    kv_cache_usage: Annotated[float, Meta(ge=0, le=MAX_USAGE)] | None = None
    num_waiting_reqs: _Count | None = None
    num_running_reqs: _Count | None = None
    timestamp: Annotated[float, Meta(ge=0, le=MAX_TIMESTAMP)] | None = None


_decode = msgspec.json.Decoder(_Record).decode


def quick_row(line: bytes) -> tuple[str, tuple[float, ...]] | None:
    """Read one line if nothing about it is unusual.

    Parameters
    ----------
    line : bytes
        Begins with a brace.

    Returns
    -------
    tuple of str and tuple of float, or None
        The format and the numbers in the order of `bayes_sched.trace.formats.FIELDS`; None leaves the
        judgement to `bayes_sched.trace.formats.parse_line`.
    """
    if not line.isascii():  # text in fields that are not read goes unchecked by the decoder
        return None
    try:
        record = _decode(line)
    except (DecodeError, RecursionError):
        return None
    if record.num_prefill_reqs is not UNSET and record.num_decode_reqs is not UNSET:
        return _documented(record, record.num_prefill_reqs, record.num_decode_reqs)
    if record.num_prefill_reqs is UNSET and record.num_decode_reqs is UNSET:
        return _recorded(record)
    return None


def _documented(record: _Record, num_prefill: int, num_decode: int) -> tuple[str, tuple[float, ...]] | None:
    prefill, decode = record.prefill_chunk_sizes, record.decode_chunk_sizes
    if prefill is None or decode is None or len(prefill) != num_prefill or len(decode) != num_decode:
        return None
    total_tokens, prefill_tokens = record.total_scheduled_tokens, sum(prefill)
    if prefill_tokens + sum(decode) != total_tokens:
        return None
    context_tokens = pairs = _NAN_TEXT
    prefill_context, decode_context = record.prefill_context_lens, record.decode_context_lens
    if prefill_context is not None:
        if len(prefill_context) != num_prefill:
            return None
        pairs = query_key_pairs(prefill, prefill_context)
    if decode_context is not None:
        if len(decode_context) != num_decode:
            return None
        if prefill_context is not None:
            context_tokens = sum(prefill_context) + sum(decode_context)
    counts = (num_prefill + num_decode, total_tokens, record.model_run_duration_ms, num_prefill, num_decode)
    chunks = (prefill_tokens, max(prefill, default=0))
    return "documented", (*counts, *_quick_surroundings(record, context_tokens, pairs), *chunks)


def _recorded(record: _Record) -> tuple[str, tuple[float, ...]] | None:
    chunks, computed = record.chunk_sizes, record.all_computed_tokens
    if chunks is UNSET or computed is None or len(chunks) != len(computed):
        return None
    total_tokens = record.total_scheduled_tokens
    if sum(chunks) != total_tokens:
        return None
    num_decode = chunks.count(1)
    num_prefill = len(chunks) - num_decode
    pairs, prefill_tokens, largest = 0, total_tokens - num_decode, 0
    if num_prefill:
        largest = max(chunks)
        pairs = query_key_pairs(
            [c for c in chunks if c != 1], [k for c, k in zip(chunks, computed, strict=True) if c != 1]
        )
    counts = (len(chunks), total_tokens, record.model_run_duration_ms, num_prefill, num_decode)
    return "recorded", (*counts, *_quick_surroundings(record, sum(computed), pairs), prefill_tokens, largest)


def _quick_surroundings(record: _Record, context_tokens: float, pairs: float) -> tuple[float, ...]:
    schedule_ms, step_ms, usage = (
        record.schedule_duration_ms,
        record.total_step_duration_ms,
        record.kv_cache_usage,
    )
    waiting, running, timestamp = record.num_waiting_reqs, record.num_running_reqs, record.timestamp
    return (
        _NAN_TEXT if schedule_ms is None else schedule_ms,
        _NAN_TEXT if usage is None else usage,
        _NAN_TEXT if waiting is None else waiting,
        _NAN_TEXT if running is None else running,
        context_tokens,
        pairs,
        _NAN_TEXT if timestamp is None else timestamp,
        _NAN_TEXT if step_ms is None else step_ms,
    )


def query_key_pairs(chunks: list[int], contexts: list[int]) -> int:
    """Query-key pairs of prefill chunks: c k + c (c + 1) / 2 for c tokens after k computed ones."""
    return sum(c * k + c * (c + 1) // 2 for c, k in zip(chunks, contexts, strict=True))
