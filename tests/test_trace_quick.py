"""The short way for sound lines reads what the careful way reads, or leaves the line to it."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bayes_sched.trace.formats import LineError, Step
from tests.conftest import as_bytes, documented_record, recorded_record

CONTEXTS: dict[str, Any] = {"prefill_context_lens": [0, 7], "decode_context_lens": [100, 200]}
SOUND: dict[str, dict[str, Any]] = {
    "documented": documented_record(),
    "documented, contexts": documented_record(**CONTEXTS),
    "documented, idle": documented_record([], 0),
    "documented, bare": documented_record(timestamp=..., kv_cache_usage=None, num_waiting_reqs=...),
    "documented, whole milliseconds": documented_record(model_run_duration_ms=45),
    "recorded": recorded_record(),
    "recorded, decode only": recorded_record([1, 1], [5, 6]),
    "recorded, idle": recorded_record([], []),
    "recorded, an empty chunk": recorded_record([1, 0, 9], [5, 6, 7]),
}


def same(quick: tuple[str, tuple[float, ...]], step: Step) -> bool:
    def known(row: tuple[float, ...]) -> list[float | None]:
        return [None if math.isnan(value) else value for value in row]

    return quick[0] == step.format and known(quick[1]) == known(step.row) and not step.remark


@pytest.mark.parametrize("record", SOUND.values(), ids=SOUND.keys())
def test_a_sound_line_takes_the_short_way_and_reads_the_same(record: dict[str, Any]) -> None:
    line = as_bytes(record)
    quick = quick_row(line)
    assert quick is not None
    assert same(quick, parse_record(line))


@pytest.mark.parametrize(
    "record",
    [
        documented_record(model_run_duration_ms=1e308),
        documented_record(model_run_duration_ms=math.nan),
        documented_record(kv_cache_usage=math.inf),
        documented_record(num_waiting_reqs=-1),
        documented_record(num_waiting_reqs=3.0),
        documented_record(num_prefill_reqs=None),
        documented_record(num_decode_reqs=...),
        documented_record(num_decode_reqs=True),
        documented_record(total_scheduled_tokens=2048),
        documented_record(decode_chunk_sizes=[1]),
        documented_record(prefill_chunk_sizes=[512.0, 3]),
        documented_record(prefill_context_lens=[1]),
        documented_record(decode_context_lens=[1]),
        documented_record(prefill_chunk_sizes=...),
        recorded_record(total_scheduled_tokens=7),
        recorded_record(all_computed_tokens=[1]),
        recorded_record(chunk_sizes=None),
        {"hello": 1},
        {**documented_record(), "note": "ü"},
    ],
)
def test_whatever_is_unusual_is_left_to_the_careful_way(record: dict[str, Any]) -> None:
    assert quick_row(json.dumps(record, ensure_ascii=False).encode()) is None


@pytest.mark.parametrize(
    "line", [b"{", b'{"a":' * 100_000, b"{}x", as_bytes(documented_record()) + b"\0", b'{"batch_id": "\xff"}']
)
def test_damage_is_left_to_the_careful_way(line: bytes) -> None:
    assert quick_row(line) is None


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 10**20),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-1, 9) | st.floats(0, 3) | st.none(), max_size=3),
)
EXTRA = ["gpu_clock", *CONTEXTS, "all_computed_tokens"]


@settings(max_examples=300)
@given(st.data())
def test_both_ways_agree_on_every_line_that_the_short_one_takes(data: st.DataObject) -> None:
    record = dict(data.draw(st.sampled_from(list(SOUND.values()))))
    for name in data.draw(st.lists(st.sampled_from([*sorted(record), *EXTRA]), max_size=2)):
        record[name] = data.draw(VALUES)
    line = as_bytes(record)
    place = data.draw(st.integers(1, len(line)))
    line = (
        line[:place]
        + data.draw(st.sampled_from([b"", b"", b" ", b"\0", b"0", b"\xc3", b",", b"."]))
        + line[place:]
    )
    quick = quick_row(line)
    try:
        step = parse_record(line)
    except LineError:
        assert quick is None
    else:
        assert quick is None or same(quick, step)


@given(st.floats(0, 1e9))
def test_both_ways_read_the_same_number_from_the_same_digits(value: float) -> None:
    line = as_bytes(documented_record(model_run_duration_ms=value))
    quick = quick_row(line)
    assert quick is not None
    assert quick[1][2] == parse_record(line).row[2] == value
