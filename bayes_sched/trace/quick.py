"""The short way for sound lines: a typed JSON decoder takes what is plainly right and leaves the rest.

Nearly every line of a trace is plain ASCII, valid JSON, and holds numbers of the right type in their range.
`quick_row` reads those four times as fast as a look at one field after the other. Whatever is unusual about a
line, damaged or not, it gives None, and the careful way of `bayes_sched.trace.formats` decides: what is read
and why something is refused is said there alone.
"""

from typing import Annotated

import msgspec
from msgspec import UNSET, DecodeError, Meta, Struct, UnsetType

from bayes_sched.trace.fields import MAX_COUNT, MAX_MS, MAX_TIMESTAMP, MAX_USAGE

_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
_Milliseconds = Annotated[float, Meta(ge=0, le=MAX_MS)]
_Sizes = list[_Count]

_NAN = float("nan")


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
    context_tokens = pairs = _NAN
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
    return "documented", (*counts, *_surroundings(record, context_tokens, pairs), *chunks)


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
    return "recorded", (*counts, *_surroundings(record, sum(computed), pairs), prefill_tokens, largest)


def _surroundings(record: _Record, context_tokens: float, pairs: float) -> tuple[float, ...]:
    schedule_ms, step_ms, usage = (
        record.schedule_duration_ms,
        record.total_step_duration_ms,
        record.kv_cache_usage,
    )
    waiting, running, timestamp = record.num_waiting_reqs, record.num_running_reqs, record.timestamp
    return (
        _NAN if schedule_ms is None else schedule_ms,
        _NAN if usage is None else usage,
        _NAN if waiting is None else waiting,
        _NAN if running is None else running,
        context_tokens,
        pairs,
        _NAN if timestamp is None else timestamp,
        _NAN if step_ms is None else step_ms,
    )


def query_key_pairs(chunks: list[int], contexts: list[int]) -> int:
    """Query-key pairs of prefill chunks: c k + c (c + 1) / 2 for c tokens after k computed ones."""
    return sum(c * k + c * (c + 1) // 2 for c, k in zip(chunks, contexts, strict=True))
