"""One line of a trace to one step, whichever of the three formats the line is in.

================  =====================================================================================
``documented``    JSON with ``num_prefill_reqs`` and ``num_decode_reqs``
``recorded``      JSON with ``chunk_sizes`` in place of the two counts
``vllm-log``      text: what vLLM logs under ``--enable-logging-iteration-details``
================  =====================================================================================

A line of JSON is decoded in one of two ways and then interpreted in one. Nearly every line is plain ASCII,
valid JSON, and holds numbers of the right type in their range: `decode_quickly` takes those, and
`decode_lines` many of them at once. Whatever is unusual about a line, damaged or not, they leave to
`decode_carefully`, and what is refused and why is said there.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from math import sumprod
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, DecodeError, Meta, Struct, UnsetType

from bayes_sched.trace.opening import MAX_LINE_BYTES

DOCUMENTED, RECORDED, VLLM_LOG = "documented", "recorded", "vllm-log"

FIELDS = (
    *("batch_size", "total_tokens", "latency_ms", "num_prefill_reqs", "num_decode_reqs", "schedule_ms"),
    *("kv_cache_usage", "num_waiting_reqs", "num_running_reqs", "context_tokens", "prefill_pairs"),
    *("timestamp", "step_ms", "prefill_tokens", "max_prefill_chunk"),
)
"""Columns of a step, in the order of `Step.row`."""

MAX_COUNT = 10**9
"""More requests or tokens than this in one step is damage. Sums and products of counts stay finite."""
MAX_MS = 1e9
"""A step of more than eleven days is damage."""
MAX_USAGE = 100.0
MAX_TIMESTAMP = 1e19
"""Room for a clock in nanoseconds."""
YEAR_2001_S, YEAR_2100_S = 978_307_200.0, 4_102_444_800.0
"""Numbers of seconds between them are Unix time."""

NOT_A_STEP = "JSON without the fields of a scheduler step"
NOT_TEXT = "not UTF-8 text"
NOT_JSON = "not valid JSON"
OFF_TOTAL = "chunk sizes do not sum to total_scheduled_tokens (which is used)"
NUL_BYTE = "holds a NUL byte"
PLAIN_TEXT = "neither JSON nor a vLLM iteration line"
BROKEN_ITERATION = "incomplete vLLM iteration line"
TOO_LONG = f"longer than {MAX_LINE_BYTES // 2**20} MiB"
TORN = "torn last line"
"""Every writer that is killed leaves one: it counts, and never stops the reading."""
CUT_REASONS = frozenset({NOT_TEXT, NOT_JSON, NUL_BYTE, BROKEN_ITERATION})
"""What a line looks like whose end is missing."""

_BOM = b"\xef\xbb\xbf"
_NAN = math.nan
_INTEGERS_ONLY = {int}
_DECODER = json.JSONDecoder()
_ITERATION = re.compile(
    rb"Iteration\(\d+\):\s*(\d{1,9}) context requests,\s*(\d{1,9}) context tokens,"
    rb"\s*(\d{1,9}) generation requests,\s*(\d{1,9}) generation tokens,"
    rb"\s*iteration elapsed time:\s*(\d{1,9}(?:\.\d+)?)\s*ms(?P<dummy>\s*\(dummy\))?"
    rb"(?:.*?KV cache usage:\s*(\d{1,3}(?:\.\d+)?)\s*%)?"
)
_CLOCK = re.compile(rb"(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)")


class LineError(ValueError):
    """A line that is no usable step, for one of few reasons, and with what this very line held."""

    def __init__(
        self, reason: str, *, detail: str = "", is_noise: bool = False, is_step: bool = True
    ) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail
        self.is_noise = is_noise  # no damage when it stands amid vLLM's own log
        self.is_step = is_step  # recognisably meant to be one


class Step(Struct, frozen=True, gc=False):
    """One step as read: its format, its numbers in the order of `FIELDS` (NaN: not in the line), a remark."""

    format: str
    row: tuple[float, ...]
    remark: str = ""


def parse_lines(block: bytes) -> Iterator[Step | LineError | None]:
    """Read lines with their ends: of each its step, None if it is blank, or why it is no usable step."""
    lines = decode_lines(block) or block.removesuffix(b"\n").split(b"\n")
    for line in lines:
        try:
            yield parse_line(line) if isinstance(line, bytes) else interpret(line)
        except LineError as error:
            yield error


def parse_line(line: bytes) -> Step | None:
    """Read one line, with or without its end; None if it is blank, `LineError` if it is no usable step."""
    if len(line) > MAX_LINE_BYTES:
        raise LineError(TOO_LONG, is_step=False)
    if not line.startswith(b"{"):
        line = line.removeprefix(_BOM).strip()
        if not line:
            return None
        if not line.startswith(b"{"):
            return _iteration(line)
    record = decode_quickly(line)
    return interpret(decode_carefully(line) if record is None else record)


_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Milliseconds = Annotated[float, Meta(ge=0, le=MAX_MS)]
_Sizes = list[_Count]


class _Record(Struct, gc=False, kw_only=True):
    """The fields that are read of both variants of the schema."""

    model_run_duration_ms: _Milliseconds
    total_scheduled_tokens: _Count
    schedule_duration_ms: _Milliseconds | None = None
    total_step_duration_ms: _Milliseconds | None = None
    kv_cache_usage: Annotated[float, Meta(ge=0, le=MAX_USAGE)] | None = None
    num_waiting_reqs: _Count | None = None
    num_running_reqs: _Count | None = None
    timestamp: Annotated[float, Meta(ge=0, le=MAX_TIMESTAMP)] | None = None


class Documented(_Record, gc=False, kw_only=True):
    """The fields that are read of the documented schema."""

    num_prefill_reqs: _Count
    num_decode_reqs: _Count
    prefill_chunk_sizes: _Sizes | None = None
    decode_chunk_sizes: _Sizes | None = None
    prefill_context_lens: _Sizes | None = None
    decode_context_lens: _Sizes | None = None


class Recorded(_Record, gc=False, kw_only=True):
    """The fields that are read of its recorded variant, which holds none of the two counts."""

    chunk_sizes: _Sizes
    all_computed_tokens: _Sizes | None = None
    num_prefill_reqs: UnsetType = UNSET
    num_decode_reqs: UnsetType = UNSET


Record = Documented | Recorded

_DECODERS: tuple[msgspec.json.Decoder[Any], ...] = (
    msgspec.json.Decoder(Recorded),
    msgspec.json.Decoder(Documented),
)


def _decoder(line: bytes) -> msgspec.json.Decoder[Any]:
    """Return what decodes a line if it is of either variant, and refuses it else."""
    return _DECODERS[b'"num_prefill_reqs"' in line]


def decode_quickly(line: bytes) -> Record | None:
    """Decode a line that begins with a brace if nothing about it is unusual."""
    if not line.isascii():  # text in fields that are not read goes unchecked by the decoder
        return None
    try:
        return _decoder(line).decode(line)  # type: ignore[no-any-return]
    except (DecodeError, RecursionError):
        return None


def decode_lines(block: bytes) -> list[Record] | None:
    """Decode lines with their ends if nothing about any is unusual, and all are of one variant."""
    num_lines = block.count(b"\n")
    # To the decoder an end of line is any other space. This one stands between objects alone, and as there
    # are as many objects as lines, no line holds two of them.
    is_plain = block.count(b"}\n{") == num_lines - 1 and block.endswith(b"}\n") and block.isascii()
    if not is_plain or len(block) > MAX_LINE_BYTES:
        return None
    try:
        records: list[Record] = _decoder(block[: block.find(b"\n")]).decode_lines(block)
    except (DecodeError, RecursionError):
        return None
    return records if len(records) == num_lines else None


def decode_carefully(line: bytes) -> Record:
    """Decode a line of JSON field by field; `LineError` names the first one that cannot be used."""
    fields = _load(line)
    is_documented = "num_prefill_reqs" in fields or "num_decode_reqs" in fields
    if not is_documented and "chunk_sizes" not in fields:
        if "total_scheduled_tokens" in fields or "model_run_duration_ms" in fields:
            raise LineError("missing field num_prefill_reqs or chunk_sizes")
        raise LineError(NOT_A_STEP, detail="fields " + shorten(", ".join(fields)), is_step=False)
    read: dict[str, Any] = {
        "model_run_duration_ms": _number(fields, "model_run_duration_ms", MAX_MS, required=True),
        "total_scheduled_tokens": _count(fields, "total_scheduled_tokens", required=True),
    }
    if is_documented:
        read |= {
            name: _count(fields, name, required=True) for name in ("num_prefill_reqs", "num_decode_reqs")
        }
        read |= {
            f"{kind}_{what}": _sizes(fields, f"{kind}_{what}")
            for what in ("chunk_sizes", "context_lens")
            for kind in ("prefill", "decode")
        }
    else:
        read |= {name: _sizes(fields, name) for name in ("chunk_sizes", "all_computed_tokens")}
        if read["chunk_sizes"] is None:
            raise LineError("chunk_sizes is null")
    read["schedule_duration_ms"] = _number(fields, "schedule_duration_ms", MAX_MS)
    read["kv_cache_usage"] = _number(fields, "kv_cache_usage", MAX_USAGE)
    read |= {name: _count(fields, name) for name in ("num_waiting_reqs", "num_running_reqs")}
    read["timestamp"] = _number(fields, "timestamp", MAX_TIMESTAMP)
    read["total_step_duration_ms"] = _number(fields, "total_step_duration_ms", MAX_MS)
    return Documented(**read) if is_documented else Recorded(**read)


def _load(line: bytes) -> dict[str, Any]:
    record: dict[str, Any]  # what begins with a brace and is valid JSON is an object
    try:
        text = line.decode()
        record, end = _DECODER.raw_decode(text)
    except UnicodeDecodeError:
        raise LineError(NOT_TEXT, is_step=False) from None
    except (ValueError, RecursionError) as error:
        if b"\0" in line:
            raise LineError(NUL_BYTE) from None
        raise LineError(NOT_JSON, detail=shorten(str(error)), is_step=False) from None
    if text[end:].strip():
        reason = NUL_BYTE if b"\0" in line else NOT_JSON
        raise LineError(reason, detail="something follows the object", is_step=False)
    return record


def _number(fields: Mapping[str, Any], name: str, high: float, *, required: bool = False) -> float | None:
    """Return a number in [0, high]; None where an optional one is absent, null or NaN."""
    value: Any = fields.get(name)
    if type(value) in (float, int) and 0 <= value <= high:  # not isinstance: True is an int to it
        return value  # type: ignore[no-any-return]
    is_nan = isinstance(value, float) and math.isnan(value)
    if not required and (value is None or is_nan):
        return None
    if name not in fields:
        raise LineError(f"missing field {name}")
    if is_nan:
        raise LineError(f"{name} is NaN")
    if type(value) not in (float, int):
        raise LineError(f"{name} is {_kind(value)}", detail=shorten(json.dumps(value)))
    reason = "negative" if value < 0 else f"above {high:.0e}"
    # An integer in JSON may be too large for any format of a float.
    is_printable = isinstance(value, float) or abs(value) < 10**300
    raise LineError(f"{name} is {reason}", detail=f"{value:.6g}" if is_printable else "")


def _count(fields: Mapping[str, Any], name: str, *, required: bool = False) -> int | None:
    """Return a whole number in [0, MAX_COUNT]; None where an optional one is absent, null or NaN."""
    value = _number(fields, name, MAX_COUNT, required=required)
    if value is not None and value != int(value):
        raise LineError(f"{name} is not a whole number", detail=repr(value))
    return None if value is None else int(value)


def _sizes(fields: Mapping[str, Any], name: str) -> list[int] | None:
    """Return a list of whole numbers in [0, MAX_COUNT]; None where it is absent or null."""
    sizes = fields.get(name)
    if sizes is None:
        return None
    if type(sizes) is not list:
        raise LineError(f"{name} is {_kind(sizes)}, not a list", detail=shorten(json.dumps(sizes)))
    if sizes.count(1) != len(sizes):  # the chunks of a decode step need no closer look
        if set(map(type, sizes)) != _INTEGERS_ONLY:
            raise LineError(f"{name} holds something else than whole numbers")
        if min(sizes) < 0 or max(sizes) > MAX_COUNT:
            raise LineError(f"{name} holds a number outside 0 to {MAX_COUNT:.0e}")
    return sizes


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def shorten(text: str, width: int = 60) -> str:
    """Make a foreign text fit for a message: printable and not long."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= width else text[: width - 3] + "..."


def interpret(record: Record) -> Step:
    """Read a step out of a decoded line; `LineError` where its fields contradict each other."""
    kind, load = (
        (DOCUMENTED, _documented(record)) if isinstance(record, Documented) else (RECORDED, _recorded(record))
    )
    num_prefill, num_decode, context_tokens, pairs, prefill_tokens, largest, remark = load
    schedule_ms, usage = record.schedule_duration_ms, record.kv_cache_usage
    waiting, running = record.num_waiting_reqs, record.num_running_reqs
    timestamp, step_ms = record.timestamp, record.total_step_duration_ms
    row = (
        num_prefill + num_decode,
        record.total_scheduled_tokens,
        record.model_run_duration_ms,
        num_prefill,
        num_decode,
        _NAN if schedule_ms is None else schedule_ms,
        _NAN if usage is None else usage,
        _NAN if waiting is None else waiting,
        _NAN if running is None else running,
        context_tokens,
        pairs,
        _NAN if timestamp is None else timestamp,
        _NAN if step_ms is None else step_ms,
        prefill_tokens,
        largest,
    )
    return Step(kind, row, remark)


type _Load = tuple[int, int, float, float, float, float, str]
"""Requests in prefill and decode, tokens in the KV cache, query-key pairs, prefill tokens, the largest of the
prefill chunks; a remark."""


def _documented(record: Documented) -> _Load:
    num_prefill, num_decode = record.num_prefill_reqs, record.num_decode_reqs
    prefill, decode = record.prefill_chunk_sizes, record.decode_chunk_sizes
    prefill_context, decode_context = record.prefill_context_lens, record.decode_context_lens
    if prefill is not None and len(prefill) != num_prefill:
        raise _contradiction("prefill_chunk_sizes", prefill, "num_prefill_reqs", num_prefill)
    if decode is not None and len(decode) != num_decode:
        raise _contradiction("decode_chunk_sizes", decode, "num_decode_reqs", num_decode)
    if prefill_context is not None and len(prefill_context) != num_prefill:
        raise _contradiction("prefill_context_lens", prefill_context, "num_prefill_reqs", num_prefill)
    if decode_context is not None and len(decode_context) != num_decode:
        raise _contradiction("decode_context_lens", decode_context, "num_decode_reqs", num_decode)
    context_tokens = pairs = _NAN
    if prefill_context is not None and decode_context is not None:
        context_tokens = sum(prefill_context) + sum(decode_context)
    if prefill is None:
        return num_prefill, num_decode, context_tokens, _NAN, _NAN, _NAN, ""
    prefill_tokens = sum(prefill)
    if decode is not None and prefill_tokens + sum(decode) != record.total_scheduled_tokens:
        # B and S stand in fields of their own: the step is usable, what the chunks tell is not.
        return num_prefill, num_decode, context_tokens, _NAN, _NAN, _NAN, OFF_TOTAL
    if prefill_context is not None:
        pairs = _query_key_pairs(prefill, prefill_context) if prefill else 0
    largest = max(prefill) if prefill else 0
    return num_prefill, num_decode, context_tokens, pairs, prefill_tokens, largest, ""


def _recorded(record: Recorded) -> _Load:
    chunks, computed = record.chunk_sizes, record.all_computed_tokens
    total_tokens = record.total_scheduled_tokens
    if sum(chunks) != total_tokens:
        detail = f"sum {sum(chunks)}, total {total_tokens}"
        raise LineError("chunk_sizes contradicts total_scheduled_tokens", detail=detail)
    if computed is not None and len(computed) != len(chunks):
        raise _contradiction("all_computed_tokens", computed, "chunk_sizes", len(chunks))
    context_tokens = pairs = _NAN
    num_decode = chunks.count(1)
    num_prefill = len(chunks) - num_decode
    if computed is not None:
        context_tokens, pairs = sum(computed), 0
        if num_prefill:
            prefill = [(c, k) for c, k in zip(chunks, computed, strict=True) if c != 1]
            pairs = _query_key_pairs(*zip(*prefill, strict=True))
    largest = max(chunks) if num_prefill else 0
    return num_prefill, num_decode, context_tokens, pairs, total_tokens - num_decode, largest, ""


def _contradiction(name: str, sizes: list[int], count_name: str, count: int) -> LineError:
    detail = f"{len(sizes)} entries where {count} are due"
    return LineError(f"{name} contradicts {count_name}", detail=detail)


def _query_key_pairs(chunks: Sequence[int], contexts: Sequence[int]) -> float:
    """Query-key pairs of prefill chunks: c k + c (c + 1) / 2 for c tokens after k computed ones."""
    return sumprod(chunks, contexts) + (sumprod(chunks, chunks) + sum(chunks)) // 2


def _iteration(line: bytes) -> Step:
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
    total_tokens, latency_ms, usage = prefill_tokens + decode_tokens, float(match[5]), match[7]
    counts = (num_prefill + num_decode, total_tokens, latency_ms, num_prefill, num_decode)
    kv_cache_usage = float(usage) / 100 if usage else _NAN
    unknown = (_NAN, _NAN, _NAN, _NAN)
    timestamp = _log_seconds(line[: match.start()])
    row = (*counts, _NAN, kv_cache_usage, *unknown, timestamp, _NAN, prefill_tokens, _NAN)
    return Step(VLLM_LOG, row)


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
