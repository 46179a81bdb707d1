"""One line of a trace: three formats, and two ways to decode JSON that never disagree."""

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.trace.formats import (
    FIELDS,
    LineError,
    Record,
    Step,
    decode_carefully,
    decode_lines,
    decode_quickly,
    interpret,
    parse_line,
    parse_lines,
)
from tests.conftest import as_bytes, documented_record, iteration_line, known, recorded_record


def row(line: bytes | str | dict[str, Any]) -> dict[str, float]:
    """Fields of a line, those it does not hold left out."""
    values = known(parse_line(as_bytes(line))).row
    return {field: value for field, value in zip(FIELDS, values, strict=True) if not math.isnan(value)}


def refusal(line: bytes | str | dict[str, Any]) -> LineError:
    with pytest.raises(LineError) as caught:
        parse_line(as_bytes(line))
    return caught.value


def told(line: bytes, read: Callable[[bytes], Record | Step | None]) -> Step | str | None:
    """What is made of a line: a step, why it is none, or nothing."""
    try:
        found = read(line)
        return interpret(found) if isinstance(found, Record) else found
    except LineError as error:
        return str(error)


def test_a_documented_line_gives_every_field_it_holds() -> None:
    assert row(documented_record()) == {
        "batch_size": 4,
        "total_tokens": 517,
        "latency_ms": 45.25,
        "num_prefill_reqs": 2,
        "num_decode_reqs": 2,
        "schedule_ms": 0.5,
        "kv_cache_usage": 0.75,
        "num_waiting_reqs": 5,
        "num_running_reqs": 10,
        "timestamp": 1703123456.5,
        "step_ms": 45.75,
        "prefill_tokens": 515,
        "max_prefill_chunk": 512,
    }


def test_documented_context_lengths_give_context_tokens_and_prefill_pairs() -> None:
    contexts = {"prefill_context_lens": [10, 7], "decode_context_lens": [100, 200]}
    told = row(documented_record(prefill=[4, 1], decode=2, **contexts))
    assert (told["context_tokens"], told["prefill_pairs"]) == (317, 4 * 10 + 10 + 1 * 7 + 1)


def test_a_recorded_line_gives_every_field_it_holds() -> None:
    assert row(recorded_record()) == {
        "batch_size": 3,
        "total_tokens": 1024,
        "latency_ms": 119.5,
        "num_prefill_reqs": 2,
        "num_decode_reqs": 1,
        "schedule_ms": 0.75,
        "num_waiting_reqs": 1,
        "num_running_reqs": 3,
        "context_tokens": 5528 + 1392 + 176,
        "prefill_pairs": 36 * 1392 + 36 * 37 // 2 + 987 * 176 + 987 * 988 // 2,
        "timestamp": 118371.25,
        "prefill_tokens": 36 + 987,
        "max_prefill_chunk": 987,
    }


def test_an_iteration_line_with_engine_and_cache_usage_is_read() -> None:
    seconds = ((31 + 29 + 31 + 30 + 31 + 30 + 31 + 31 + 30 + 31 + 21) * 24 + 4) * 3600 + 62
    assert row(iteration_line(tail=", GPU KV cache usage: 12.3%")) == {
        "batch_size": 20,
        "total_tokens": 531,
        "latency_ms": 45.1,
        "num_prefill_reqs": 1,
        "num_decode_reqs": 19,
        "kv_cache_usage": pytest.approx(0.123),
        "timestamp": seconds,
        "prefill_tokens": 512,
    }


OLDER = (
    "(EngineCore_DP0 pid=2010410) INFO 12-22 21:44:40 [core.py:349] Iteration(515): 0 context requests, "
    "0 context tokens, 20 generation requests, 20 generation tokens, iteration elapsed time: 45.1 ms"
)


@pytest.mark.parametrize(
    "line",
    [
        OLDER,
        "\x1b[0;36m(EngineCore_DP0 pid=1)\x1b[0;0m " + iteration_line(),
        iteration_line(tail=""),
        iteration_line(tail=", encoder inputs: 3"),
        iteration_line(tail=", GPU KV cache usage: 0.0%, encoder inputs: 3 (9 tokens)\r"),
    ],
)
def test_what_surrounds_an_iteration_does_not_harm(line: str) -> None:
    assert (row(line)["batch_size"], row(line)["latency_ms"]) == (20, 45.1)


def test_a_dummy_iteration_is_an_idle_step_as_is_a_record_without_requests() -> None:
    dummy = row(iteration_line(prefill=(0, 0), decode=1, tail=" (dummy), GPU KV cache usage: 1.0%"))
    assert (dummy["batch_size"], dummy["total_tokens"], dummy["kv_cache_usage"]) == (0, 0, 0.01)
    for record in (recorded_record([], []), documented_record([], 0)):
        assert (row(record)["batch_size"], row(record)["total_tokens"]) == (0, 0)


def test_an_impossible_date_in_a_log_line_leaves_the_time_out() -> None:
    assert "timestamp" not in row(iteration_line().replace("11-22", "13-45"))


@pytest.mark.parametrize("line", [b"", b"\r", b"  \t", b"\xef\xbb\xbf"])
def test_a_blank_line_is_nothing(line: bytes) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(("before", "after"), [(b"\xef\xbb\xbf", b"\r"), (b"", b"\n"), (b"  ", b"\t")])
def test_marks_and_space_around_a_line_do_not_harm(before: bytes, after: bytes) -> None:
    assert row(before + as_bytes(documented_record()) + after) == row(documented_record())


def test_unknown_fields_are_ignored_and_whole_floats_are_counts() -> None:
    odd = documented_record(gpu_clock=[1, {"a": None}], num_waiting_reqs=5.0, total_scheduled_tokens=517.0)
    assert row(odd) == row(documented_record())


@pytest.mark.parametrize("value", [..., None, math.nan])
def test_an_optional_field_may_be_absent_null_or_nan(value: object) -> None:
    fields = row(documented_record(kv_cache_usage=value, num_waiting_reqs=value, timestamp=value))
    assert not fields.keys() & {"kv_cache_usage", "num_waiting_reqs", "timestamp"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (..., "missing field model_run_duration_ms"),
        (None, "model_run_duration_ms is null (null)"),
        ("45.8", 'model_run_duration_ms is a string ("45.8")'),
        (True, "model_run_duration_ms is a boolean (true)"),
        ([45.8], "model_run_duration_ms is a list ([45.8])"),
        ({}, "model_run_duration_ms is an object ({})"),
        (math.nan, "model_run_duration_ms is NaN"),
        (math.inf, "model_run_duration_ms is above 1e+09 (inf)"),
        (-math.inf, "model_run_duration_ms is negative (-inf)"),
        (-3.5, "model_run_duration_ms is negative (-3.5)"),
        (1e308, "model_run_duration_ms is above 1e+09 (1e+308)"),
        (10**400, "model_run_duration_ms is above 1e+09"),
    ],
)
def test_a_latency_that_is_none_is_refused(value: object, reason: str) -> None:
    for record in (documented_record, recorded_record):
        assert str(refusal(record(model_run_duration_ms=value))) == reason


DOCUMENTED: dict[str, dict[str, Any]] = {
    "missing field num_decode_reqs": {"num_decode_reqs": ...},
    "missing field total_scheduled_tokens": {"total_scheduled_tokens": ...},
    "missing field num_prefill_reqs or chunk_sizes": {"num_prefill_reqs": ..., "num_decode_reqs": ...},
    "prefill_chunk_sizes contradicts num_prefill_reqs (2 entries where 3 are due)": {"num_prefill_reqs": 3},
    "decode_chunk_sizes contradicts num_decode_reqs (1 entries where 2 are due)": {"decode_chunk_sizes": [1]},
    "prefill_context_lens contradicts num_prefill_reqs (1 entries where 2 are due)": {
        "prefill_context_lens": [9]
    },
    "prefill_chunk_sizes is a number, not a list (512)": {"prefill_chunk_sizes": 512},
    "prefill_chunk_sizes holds something else than whole numbers": {"prefill_chunk_sizes": ["512", 3]},
    "prefill_chunk_sizes holds a number outside 0 to 1e+09": {"prefill_chunk_sizes": [512, -3]},
    "num_decode_reqs is not a whole number (2.5)": {"num_decode_reqs": 2.5},
    "total_scheduled_tokens is above 1e+09 (1e+308)": {"total_scheduled_tokens": 1e308},
    "num_waiting_reqs is negative (-1)": {"num_waiting_reqs": -1},
    'schedule_duration_ms is a string ("0.5")': {"schedule_duration_ms": "0.5"},
    'timestamp is a string ("2023-12-21")': {"timestamp": "2023-12-21"},
}
RECORDED: dict[str, dict[str, Any]] = {
    "chunk_sizes is null": {"chunk_sizes": None},
    "chunk_sizes contradicts total_scheduled_tokens (sum 1024, total 7)": {"total_scheduled_tokens": 7},
    "all_computed_tokens contradicts chunk_sizes (1 entries where 3 are due)": {"all_computed_tokens": [1]},
    "missing field num_prefill_reqs or chunk_sizes": {"chunk_sizes": ...},
}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        *((documented_record(**changes), reason) for reason, changes in DOCUMENTED.items()),
        *((recorded_record(**changes), reason) for reason, changes in RECORDED.items()),
    ],
)
def test_a_line_with_a_damaged_field_is_refused(record: dict[str, Any], reason: str) -> None:
    assert str(refusal(record)) == reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"batch_id": 1, "timest', "not valid JSON"),
        (as_bytes(documented_record()) * 2, "not valid JSON"),
        (b"{" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
        (b'{"total_scheduled_tokens": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (as_bytes(documented_record()).replace(b"batch_id", b"b\0tch_id"), "holds a NUL byte"),
        (as_bytes(documented_record()) + b"\0\0", "holds a NUL byte"),
        (b"\0\0\0" + as_bytes(documented_record()), "holds a NUL byte"),
        (b'{"batch_id": "\xff"}', "not UTF-8 text"),
        (b'{"text": "hello"}', "JSON without the fields of a scheduler step"),
        (b"[1, 2]", "neither JSON nor a vLLM iteration line"),
        (b"batch,tokens", "neither JSON nor a vLLM iteration line"),
        (iteration_line()[:-20].encode(), "incomplete vLLM iteration line"),
    ],
)
def test_a_line_that_is_no_step_is_refused_with_a_reason_fit_for_counting(line: bytes, reason: str) -> None:
    assert refusal(line).reason == reason


@given(st.binary(max_size=60).map(lambda tail: b"{" + tail) | st.binary(max_size=60))
def test_any_bytes_are_a_step_a_blank_line_or_a_reason(line: bytes) -> None:
    outcome = told(line, parse_line)
    assert isinstance(outcome, Step | None) or (outcome and outcome.isprintable())


@given(
    prefill=st.lists(st.integers(2, 8192), max_size=6),
    num_decode=st.integers(0, 300),
    latency_ms=st.integers(0, 10**6).map(lambda hundredths: hundredths / 100),
)
def test_the_three_formats_tell_the_same_step(prefill: list[int], num_decode: int, latency_ms: float) -> None:
    chunks = [*prefill, *[1] * num_decode]
    lines = (
        documented_record(prefill, num_decode, model_run_duration_ms=latency_ms),
        recorded_record(chunks, [9] * len(chunks), model_run_duration_ms=latency_ms),
        iteration_line((len(prefill), sum(prefill)), num_decode, latency_ms),
    )
    for line in lines:
        assert known(parse_line(as_bytes(line))).row[:5] == (
            len(chunks),
            sum(chunks),
            latency_ms,
            len(prefill),
            num_decode,
        )


# The quick way to decode JSON takes what is sound and agrees with the careful one


CONTEXTS: dict[str, Any] = {"prefill_context_lens": [0, 7], "decode_context_lens": [100, 200]}
SOUND: dict[str, dict[str, Any]] = {
    "documented": documented_record(),
    "documented, contexts": documented_record(**CONTEXTS),
    "documented, idle": documented_record([], 0),
    "documented, bare": documented_record(timestamp=..., kv_cache_usage=None, num_waiting_reqs=...),
    "documented, whole milliseconds": documented_record(model_run_duration_ms=45),
    "documented, no chunks": documented_record(prefill_chunk_sizes=...),
    "recorded": recorded_record(),
    "recorded, decode only": recorded_record([1, 1], [5, 6]),
    "recorded, idle": recorded_record([], []),
    "recorded, an empty chunk": recorded_record([1, 0, 9], [5, 6, 7]),
}


@pytest.mark.parametrize("record", SOUND.values(), ids=SOUND.keys())
def test_a_sound_line_is_decoded_quickly_and_the_same(record: dict[str, Any]) -> None:
    line = as_bytes(record)
    assert isinstance(told(line, decode_quickly), Step)
    assert told(line, decode_quickly) == told(line, decode_carefully)


@pytest.mark.parametrize(
    "line",
    [
        *(
            json.dumps(record, ensure_ascii=False).encode()
            for record in (
                documented_record(model_run_duration_ms=1e308),
                documented_record(model_run_duration_ms=math.nan),
                documented_record(kv_cache_usage=math.inf),
                documented_record(num_waiting_reqs=-1),
                documented_record(num_waiting_reqs=3.0),
                documented_record(num_prefill_reqs=None),
                documented_record(num_decode_reqs=...),
                documented_record(num_decode_reqs=True),
                documented_record(prefill_chunk_sizes=[512.0, 3]),
                recorded_record(chunk_sizes=None),
                {"hello": 1},
                {**documented_record(), "note": "ü"},
            )
        ),
        *(b"{", b'{"a":' * 100_000, b"{}x", as_bytes(documented_record()) + b"\0", b'{"batch_id": "\xff"}'),
    ],
)
def test_whatever_is_unusual_or_damaged_is_left_to_the_careful_way(line: bytes) -> None:
    assert decode_quickly(line) is None


@given(st.floats(0, 1e9))
def test_both_ways_read_the_same_number_from_the_same_digits(value: float) -> None:
    line = as_bytes(documented_record(model_run_duration_ms=value))
    quick = known(decode_quickly(line))
    assert quick.model_run_duration_ms == decode_carefully(line).model_run_duration_ms == value


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**20),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-1, 9) | st.floats(0, 3) | st.none(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.floats(), max_size=2),
)
EXTRA = ["gpu_clock", *CONTEXTS, "all_computed_tokens"]


@settings(max_examples=250)
@given(st.data())
def test_both_ways_agree_on_every_line_and_steps_hold_finite_numbers(data: st.DataObject) -> None:
    record = dict(data.draw(st.sampled_from(list(SOUND.values()))))
    for name in data.draw(st.lists(st.sampled_from([*sorted(record), *EXTRA]), max_size=2)):
        record[name] = data.draw(VALUES)
    line = as_bytes(record)
    place = data.draw(st.integers(1, len(line)))
    stray = data.draw(st.sampled_from([b"", b"", b" ", b"\0", b"0", b"\xc3", b",", b"."]))
    line = line[:place] + stray + line[place:]
    assert told(line, decode_quickly) in (None, told(line, decode_carefully))
    with contextlib.suppress(LineError):
        assert all(math.isfinite(value) and value >= 0 for value in row(line).values())


# Many lines at once


def one_by_one(block: bytes) -> list[Step | str | None]:
    return [told(line, parse_line) for line in block.removesuffix(b"\n").split(b"\n")]


def at_once(block: bytes) -> list[Step | str | None]:
    return [str(step) if isinstance(step, LineError) else step for step in parse_lines(block)]


@pytest.mark.parametrize("kind", ["documented", "recorded"])
def test_sound_lines_of_one_variant_are_decoded_at_once(kind: str) -> None:
    lines = [as_bytes(record) for name, record in SOUND.items() if name.startswith(kind)]
    block = b"".join(line + b"\n" for line in lines)
    assert decode_lines(block) == [decode_quickly(line) for line in lines]
    assert at_once(block) == one_by_one(block)
    assert decode_lines(block.removesuffix(b"\n")) is None, "a last line without its end may be torn"


DOCUMENTED_LINE, RECORDED_LINE = as_bytes(documented_record()), as_bytes(recorded_record())
FRAGMENTS = (
    *(DOCUMENTED_LINE, RECORDED_LINE, iteration_line().encode(), b"", b" ", b"{}", b"}", b"{"),
    *(DOCUMENTED_LINE * 2, b" " + RECORDED_LINE + b"\r", RECORDED_LINE[:50], RECORDED_LINE[50:]),
    *(DOCUMENTED_LINE.replace(b",", b",\n", 1), DOCUMENTED_LINE[:-1] + b',"x":{"a":1}\n}'),
    *(DOCUMENTED_LINE[:-1] + b',"x":\n{"a":1}}', DOCUMENTED_LINE[:-1] + b',"x":"}\n{"}'),
    *(as_bytes(documented_record(num_prefill_reqs=9)), as_bytes(recorded_record(num_decode_reqs=1))),
    *(as_bytes(recorded_record(chunk_sizes=[5])), as_bytes(documented_record(timestamp=math.nan))),
    *(as_bytes(documented_record(total_scheduled_tokens=7)), b'{"x": "\xc3\xbc"}', b'{"x": "\xff"}', b"\0"),
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6), st.sampled_from([b"", b"\n"]))
def test_lines_read_at_once_are_what_they_are_one_by_one(lines: list[bytes], end: bytes) -> None:
    block = b"\n".join(lines) + end
    assert at_once(block) == one_by_one(block)


def test_an_object_over_two_lines_and_two_on_one_are_not_mistaken_for_three_lines() -> None:
    over_two = DOCUMENTED_LINE.replace(b",", b",\n", 1)
    block = over_two + b"\n" + DOCUMENTED_LINE * 2 + b"\n"
    assert decode_lines(block) is None
    assert at_once(block) == one_by_one(block)
