"""Damaged traces: what is lost is counted with its place, the rest is used."""

import gzip
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from bayes_sched.trace.reader import read_trace
from tests.conftest import as_bytes, documented_record, iteration_line
from tests.trace_lines import COMPRESSIONS, DAMAGE, GOOD, NOISE, Write, only_reason, refusal


@pytest.mark.parametrize(("kind", "name"), [("gzip", "gzip"), ("zstd", "zstd")])
@pytest.mark.parametrize("damage", ["cut short", "corrupt"])
def test_damaged_compression_yields_the_lines_before_it(
    kind: str, name: str, damage: str, tmp_path: Path
) -> None:
    # Numbers without a pattern keep the compressed size well above a block of the decoder.
    durations = np.random.default_rng(1).uniform(10, 90, 20_000)
    raw = b"".join(as_bytes(documented_record(model_run_duration_ms=float(t))) + b"\n" for t in durations)
    packed = COMPRESSIONS[kind](raw)
    half = len(packed) // 2
    cut = packed[:half] if damage == "cut short" else packed[:half] + b"\xff" * 4000 + packed[half + 4000 :]
    (tmp_path / "trace.jsonl").write_bytes(cut)
    if damage == "corrupt":
        # Garbled data may decode to garbage before a checksum tells.
        trace = read_trace(tmp_path / "trace.jsonl", max_bad_share=1)
        assert trace.bad_lines.counts[f"{name} data are corrupt"] == 1
    else:
        trace = read_trace(tmp_path / "trace.jsonl", max_bad_share=0)
        assert only_reason(trace) == f"{name} data are cut short"
        assert trace.bad_lines.num_bad == 1
    assert 5_000 < len(trace.steps) < 15_000
    np.testing.assert_array_equal(trace.steps["latency_ms"][:5000], durations[:5000])
    assert trace.sha256 == hashlib.sha256(cut).hexdigest()
    assert re.fullmatch(
        rf"trace.jsonl: {name} data are {damage} after line [\d,]+; what followed is lost", trace.warnings[0]
    )


def test_compression_cut_on_the_end_of_a_line_counts_once(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(gzip.compress(GOOD * 3)[:-4])
    trace = read_trace(tmp_path / "t")
    assert (len(trace.steps), trace.bad_lines.counts) == (3, {"gzip data are cut short": 1})


def test_a_log_that_is_cut_short_says_so(tmp_path: Path) -> None:
    packed = gzip.compress((iteration_line() + "\n" + NOISE).encode())
    (tmp_path / "t.log.gz").write_bytes(packed[:-4])
    trace = read_trace(tmp_path / "t.log.gz")
    assert (len(trace.steps), trace.bad_lines.counts) == (1, {"gzip data are cut short": 1})


def test_compressed_garbage_behind_the_data_is_one_bad_line(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(gzip.compress(GOOD * 3) + b"garbage")
    assert read_trace(tmp_path / "t").bad_lines.counts == {"gzip data are corrupt": 1}


@pytest.mark.parametrize(("line", "reason"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_bad_line_is_counted_with_its_place_and_the_rest_is_used(
    line: bytes, reason: str, write_lines: Write
) -> None:
    good = GOOD.strip()
    trace = read_trace(write_lines([*[good] * 20, line, *[good] * 19]))
    assert len(trace.steps) == 39
    assert trace.bad_lines.counts == {reason: 1}
    assert (trace.bad_lines.first[0].source, trace.bad_lines.first[0].line) == ("trace.jsonl", 21)
    assert trace.bad_lines.share == 1 / 40
    assert trace.bad_lines.text.startswith(
        f"1 of 40 lines are unusable: 1 x {reason}; first trace.jsonl:21: {reason}"
    )
    assert np.isfinite(trace.steps["latency_ms"]).all()


@pytest.mark.parametrize("end", [GOOD[:100], b"\0\0\0", GOOD[:-9] + b"\xe2\x82"])
def test_a_torn_last_line_is_counted_and_always_tolerated(end: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD * 3 + end)
    trace = read_trace(tmp_path / "t.jsonl", max_bad_share=0)
    assert (len(trace.steps), trace.bad_lines.counts) == (3, {"torn last line": 1})
    assert (trace.bad_lines.first[0].line, trace.bad_lines.share) == (4, 0)


def test_a_last_line_without_its_newline_is_used(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD * 3 + GOOD.strip())
    assert len(read_trace(tmp_path / "t.jsonl").steps) == 4


def test_a_whole_last_line_with_a_bad_value_is_not_called_torn(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD * 30 + DAMAGE["NaN"][0])
    assert only_reason(read_trace(tmp_path / "t.jsonl")) == "model_run_duration_ms is NaN"


def test_byte_order_marks_and_crlf_do_no_harm(tmp_path: Path) -> None:
    marked = b"\xef\xbb\xbf" + GOOD.replace(b"\n", b"\r\n") * 3
    (tmp_path / "t.jsonl").write_bytes(marked + b"\r\n" + marked)
    trace = read_trace(tmp_path / "t.jsonl")
    assert (len(trace.steps), trace.bad_lines.num_bad, trace.sources[0].num_lines) == (6, 0, 7)


def test_only_the_first_few_bad_lines_are_kept_and_all_are_counted(write_lines: Write) -> None:
    lines = [x for number in range(20) for x in (b"x", GOOD.strip(), b'{"a": %d}' % number)]
    trace = read_trace(write_lines(lines), max_bad_share=1)
    assert trace.bad_lines.counts == {
        "neither JSON nor a vLLM iteration line": 20,
        "JSON without the fields of a scheduler step": 20,
    }
    assert [bad.line for bad in trace.bad_lines.first] == [1, 3, 4, 6, 7]


def test_too_many_bad_lines_stop_with_numbers_and_what_to_do(write_lines: Write) -> None:
    path = write_lines([*[GOOD.strip()] * 93, *[DAMAGE["string"][0]] * 4, *[b"{"] * 3])
    assert refusal(path) == (
        "7 of 100 lines (7.00%) are unusable, more than the 0.05 allowed: "
        "4 x model_run_duration_ms is a string, 3 x not valid JSON; "
        'first trace.jsonl:94: model_run_duration_ms is a string ("4"); '
        "repair the trace, or use its other lines with --max-bad-share 0.07"
    )
    assert len(read_trace(path, max_bad_share=0.07).steps) == 93


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float, write_lines: Write) -> None:
    path = write_lines([documented_record()])
    assert refusal(path, max_bad_share=share) == f"--max-bad-share is {share}: give a share between 0 and 1"


def test_chunks_that_miss_the_total_are_warned_of(write_lines: Write) -> None:
    trace = read_trace(write_lines([documented_record(), documented_record(total_scheduled_tokens=2048)]))
    assert trace.steps["total_tokens"].tolist() == [517, 2048]
    assert trace.warnings == (
        "trace.jsonl: in 1 of 2 steps the chunk sizes do not sum to total_scheduled_tokens (which is used)",
    )


def test_an_incomplete_iteration_line_is_damage(write_lines: Write) -> None:
    trace = read_trace(write_lines([*[iteration_line()] * 30, iteration_line()[:-12]]))
    assert only_reason(trace) == "incomplete vLLM iteration line"
