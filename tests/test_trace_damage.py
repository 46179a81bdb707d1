"""Damaged traces: what is lost is counted with its place, the rest is used; what is no trace is refused."""

import bz2
import gzip
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched.errors import BayesSchedError, InputError
from bayes_sched.trace import formats
from bayes_sched.trace.reader import read_trace
from tests.conftest import as_bytes, documented_record, iteration_line, recorded_record
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


@pytest.mark.parametrize(
    ("content", "num_steps", "reason"),
    [
        (gzip.compress(GOOD * 3)[:-4], 3, "gzip data are cut short"),
        (gzip.compress((iteration_line() + "\n" + NOISE).encode())[:-4], 1, "gzip data are cut short"),
        (gzip.compress(GOOD * 3) + b"garbage", 3, "gzip data are corrupt"),
    ],
    ids=["on the end of a line", "a log", "garbage behind the data"],
)
def test_compression_damaged_at_its_end_is_one_bad_line(
    content: bytes, num_steps: int, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "t").write_bytes(content)
    trace = read_trace(tmp_path / "t")
    assert (len(trace.steps), trace.bad_lines.counts) == (num_steps, {reason: 1})


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


def test_a_whole_last_line_without_its_newline_is_used_or_called_by_its_damage(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(GOOD * 3 + GOOD.strip())
    assert len(read_trace(tmp_path / "t.jsonl").steps) == 4
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
        "repair the trace, or use its other lines with max_bad_share 0.07"
    )
    assert len(read_trace(path, max_bad_share=0.07).steps) == 93


def test_a_share_that_is_none_is_refused(write_lines: Write) -> None:
    path = write_lines([documented_record()])
    for share in (-0.1, 1.5, float("nan")):
        message = f"max_bad_share is {share}: give a share between 0 and 1"
        assert refusal(path, max_bad_share=share) == message


def test_chunks_that_miss_the_total_are_warned_of(write_lines: Write) -> None:
    trace = read_trace(write_lines([documented_record(), documented_record(total_scheduled_tokens=2048)]))
    assert trace.steps["total_tokens"].tolist() == [517, 2048]
    assert trace.warnings == (
        "trace.jsonl: in 1 of 2 steps the chunk sizes do not sum to total_scheduled_tokens (which is used)",
    )


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_many_lines_at_once_and_one_by_one_make_the_same_trace_of_a_damaged_file(
    compress: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    sound = [
        GOOD,
        as_bytes(recorded_record()) + b"\n",
        as_bytes(documented_record(kv_cache_usage=...)) + b"\n",
    ]
    odd = [*(line + b"\n" for line, _ in DAMAGE.values()), b"\n", GOOD.strip() + GOOD, NOISE.encode() + b"\n"]
    odd += [as_bytes(documented_record(total_scheduled_tokens=9)) + b"\n", iteration_line().encode() + b"\n"]
    lines = [kind for kind in sound for _ in range(1000)]  # long stretches of one kind
    for place in rng.integers(0, len(lines), 60):
        lines.insert(place, odd[rng.integers(len(odd))])
    path = tmp_path / "t.jsonl"
    path.write_bytes(compress(b"".join([*lines, GOOD[:70]])))
    at_once = read_trace(path, max_bad_share=1)
    monkeypatch.setattr(formats, "decode_lines", lambda block: None)
    one_by_one = read_trace(path, max_bad_share=1)
    pd.testing.assert_frame_equal(at_once.steps, one_by_one.steps)
    for name in ("sources", "bad_lines", "sha256", "name", "warnings"):
        assert getattr(at_once, name) == getattr(one_by_one, name)
    assert at_once.bad_lines.num_bad > 30
    assert at_once.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_incomplete_iteration_line_is_damage(write_lines: Write) -> None:
    trace = read_trace(write_lines([*[iteration_line()] * 30, iteration_line()[:-12]]))
    assert only_reason(trace) == "incomplete vLLM iteration line"


# What is no trace


EXPECTED = "; expected one JSON object a line with num_prefill_reqs,"

NO_TRACE: dict[str, tuple[bytes, str]] = {
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "t is no trace: it is a PNG image" + EXPECTED),
    "gzipped png": (gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(99)), "t is no trace: it is a PNG image"),
    "zip": (b"PK\x03\x04" + bytes(99), "t is no trace: it is a ZIP archive"),
    "netcdf": (b"\x89HDF\r\n\x1a\n", "t is no trace: it is an HDF5 or netCDF file, a saved fit perhaps"),
    "bzip2": (bz2.compress(GOOD), "t is no trace: it is bzip2 data: unpack it with bunzip2 first"),
    "tar": (b"x" * 257 + b"ustart", "t is no trace: it is a tar archive: unpack it first"),
    "twice": (gzip.compress(gzip.compress(GOOD)), "t is no trace: it is data compressed twice"),
    "utf-16": (GOOD.decode().encode("utf-16"), "t is no trace: it is UTF-16 text: save it as UTF-8"),
    "csv": (b"batch,tokens,ms\n1,2,3\n1,2,4\n", "t is no trace: it looks like a CSV table" + EXPECTED),
    "tsv": (b"batch\ttokens\n1\t2\n", "t is no trace: it looks like a table with tabs"),
    "html": (b"<!DOCTYPE html><html>\n<p>404", "t is no trace: it looks like an HTML page"),
    "array": (b"[\n" + GOOD.strip() + b",\n", "t is no trace: it looks like a JSON array"),
    "pretty": (b'{\n  "batch_id": 1\n}\n', "t is no trace: it looks like JSON over several lines"),
    "other json": (
        b'{"a": 1, "b": 2}\n',
        "t is no trace: it looks like JSON lines of another kind, with the fields a, b",
    ),
    "text": (
        b"Dear diary,\nno steps today\n",
        "t is no trace: it looks like plain text that begins with 'Dear diary,'",
    ),
    "binary": (bytes(range(256)) * 40, "t is no trace: it looks like binary data"),
    "binary, one line": (b"\x01\x02\0" * 40, "t is no trace: it looks like binary data"),
    "empty": (b"", "t is empty: there is nothing to read"),
    "blank": (b"\n \r\n", "t is empty: there is nothing to read"),
    "empty gzip": (gzip.compress(b""), "t is empty: there is nothing to read"),
    "stub of gzip": (gzip.compress(GOOD)[:15], "t holds no complete step: its gzip data are cut short"),
    "gzip cut in the first line": (
        gzip.compress(GOOD, compresslevel=0)[:99],
        "t holds no complete step: its gzip data are cut short",
    ),
    "torn only": (GOOD[:50], "t holds no complete step: t:1: torn last line (not valid JSON)"),
    "only bad": (
        DAMAGE["string"][0] + b"\n",
        "t holds no usable step, 1 of 1 lines are bad: 1 x model_run_duration_ms is a string; first t:1: "
        'model_run_duration_ms is a string ("4"); expected one JSON object a line',
    ),
}


@pytest.mark.parametrize(("content", "message"), NO_TRACE.values(), ids=NO_TRACE.keys())
def test_a_file_that_is_no_trace_is_refused_with_what_it_looks_like(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t").write_bytes(content)
    assert refusal(tmp_path / "t", max_bad_share=1).startswith(message)


def test_a_foreign_file_among_traces_is_refused(write_lines: Write, tmp_path: Path) -> None:
    write_lines([documented_record()])
    (tmp_path / "README.md").write_text("# Traces\n\nfrom a server\n")
    assert refusal(tmp_path / "*").startswith("README.md is no trace: it looks like plain text")


@pytest.mark.parametrize("content", [b"", b"\n", GOOD[:40]], ids=["empty", "blank", "torn"])
def test_an_empty_file_among_traces_is_left_out_with_a_warning(
    content: bytes, write_lines: Write, tmp_path: Path
) -> None:
    path = write_lines([documented_record()])
    (tmp_path / "rank1.jsonl").write_bytes(content)
    trace = read_trace([path, tmp_path / "rank1.jsonl"])
    assert len(trace.steps) == 1
    assert trace.warnings == ("rank1.jsonl holds no step and is left out",)
    assert trace.sources[1].format == "empty"


def test_a_directory_is_refused_with_the_pattern_to_use(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path} is a directory: name its files, for example with the pattern '{tmp_path}/*.jsonl*'"
    )


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no trace given: name at least one file"),
        ("nowhere/t.jsonl", "no such file: nowhere/t.jsonl"),
        ("nowhere/*.jsonl", "no file matches the pattern nowhere/*.jsonl"),
        ("t\0.jsonl", "no such file: 't\\x00.jsonl'"),
    ],
)
def test_paths_without_a_file_are_refused(paths: Any, message: str) -> None:
    assert refusal(paths).startswith(message)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    error: OSError, message: str, write_lines: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines([documented_record()])

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("builtins.open", fail)
    assert refusal(path) == f"cannot read trace.jsonl: {message}"


def test_input_errors_are_value_errors_of_this_library() -> None:
    assert issubclass(InputError, BayesSchedError)
    assert issubclass(InputError, ValueError)
