"""The three line formats of a step trace: one line of bytes in, one step or one reason out.

========== ========================================== ========================================================
format     recognised by                              batch size B and tokens S
========== ========================================== ========================================================
documented ``num_prefill_reqs``, ``num_decode_reqs``  B is their sum, S is ``total_scheduled_tokens``
recorded   ``chunk_sizes``                            B is its length, S is ``total_scheduled_tokens``
vllm-log   ``Iteration(N): ... context requests ...`` sums of context and generation requests, tokens
========== ========================================== ========================================================

Fields that are not listed here are ignored.
"""

import json
import math
import re
from datetime import datetime
from itertools import compress
from typing import Any, NamedTuple

from bayes_sched.trace.fields import (
    MAX_MS,
    MAX_TIMESTAMP,
    MAX_USAGE,
    LineError,
    count,
    number,
    shorten,
    sizes_of,
)
from bayes_sched.trace.quick import query_key_pairs, quick_row

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
