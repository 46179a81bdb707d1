import bz2
import gzip
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from bayes_sched.errors import BayesSchedError, InputError
from bayes_sched.trace import Trace, read_trace
from bayes_sched.trace.names import result_name
from tests.conftest import ROOT, as_bytes, documented_record, iteration_line, recorded_record

type Write = Callable[..., Path]

GOOD = as_bytes(documented_record()) + b"\n"
NOISE = "INFO 11-22 04:01:00 [api_server.py:1] Started server process"


def refusal(paths: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_trace(paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def only_reason(trace: Trace) -> str:
    assert len(trace.bad_lines.counts) == 1, trace.bad_lines
    return next(iter(trace.bad_lines.counts))


# Formats and compression


@pytest.mark.parametrize(
    ("line", "format_name"),
    [
        (documented_record([512], 19), "documented"),
        (recorded_record([512, *[1] * 19], [0] * 20), "recorded"),
        (iteration_line(), "vllm-log"),
    ],
)
def test_the_format_is_recognised_by_content(line: Any, format_name: str, write_lines: Write) -> None:
    trace = read_trace(write_lines([line] * 3, "trace.whatever"))
    assert trace.sources[0].format == format_name
    assert trace.steps["batch_size"].tolist() == [20] * 3
    assert trace.steps["total_tokens"].tolist() == [531] * 3
    assert trace.bad_lines.num_bad == 0


def test_formats_may_be_mixed_in_one_file(write_lines: Write) -> None:
    trace = read_trace(write_lines([NOISE, documented_record(), iteration_line(), recorded_record()]))
    assert trace.sources[0].format == "documented+recorded+vllm-log"
    assert trace.steps["line"].tolist() == [2, 3, 4]
    assert (trace.bad_lines.num_bad, trace.bad_lines.num_lines) == (0, 3)


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "gzip, members": lambda raw: gzip.compress(raw[:700]) + gzip.compress(raw[700:]) + b"\0" * 512,
    "zstd, frames": lambda raw: b"".join(map(zstandard.ZstdCompressor().compress, (raw[:9], raw[9:]))),
}


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
@pytest.mark.parametrize("name", ["trace.jsonl", "trace.gz", "trace.zst"])
def test_compression_is_recognised_whatever_the_name(
    compress: Callable[[bytes], bytes], name: str, tmp_path: Path
) -> None:
    raw = compress(GOOD * 100)
    (tmp_path / name).write_bytes(raw)
    trace = read_trace(tmp_path / name)
    assert (len(trace.steps), trace.bad_lines.num_bad, trace.warnings) == (100, 0, ())
    assert trace.sources[0].num_lines == 100
    assert trace.sha256 == trace.sources[0].sha256 == hashlib.sha256(raw).hexdigest()


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


# Several files, patterns, standard input


def test_several_files_are_one_trace_in_their_order(write_lines: Write) -> None:
    first = write_lines([documented_record()] * 2, "run_a.jsonl")
    second = write_lines([recorded_record()], "run_b.jsonl")
    trace = read_trace([str(second), first])
    assert trace.steps["source"].tolist() == ["run_b.jsonl", "run_a.jsonl", "run_a.jsonl"]
    assert trace.steps["line"].tolist() == [1, 1, 2]
    assert trace.name == "run"
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (second, first)]
    assert [source.sha256 for source in trace.sources] == digests
    assert trace.sha256 == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_bytes(GOOD)
    trace = read_trace([tmp_path / "a" / "t.jsonl", tmp_path / "b" / "t.jsonl"])
    assert trace.steps["source"].tolist() == [
        str(tmp_path / "a" / "t.jsonl"),
        str(tmp_path / "b" / "t.jsonl"),
    ]
    assert "hold the same bytes" in trace.warnings[0]


def test_a_pattern_is_expanded_sorted_and_leaves_side_cars_out(write_lines: Write, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write_lines([documented_record(batch_id=name)], name)
    write_lines([{"gpu": "H100"}], "a.jsonl.meta.json")
    (tmp_path / "folder.jsonl").mkdir()
    assert [Path(s.path).name for s in read_trace(tmp_path / "*.json*").sources] == ["a.jsonl", "b.jsonl"]
    assert [Path(s.path).name for s in read_trace(tmp_path / "[bc].*").sources] == ["b.jsonl", "c.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(write_lines: Write) -> None:
    assert len(read_trace(write_lines([documented_record()], "run[1].jsonl")).steps) == 1


def test_a_file_named_twice_is_read_once_with_a_warning(write_lines: Write) -> None:
    path = write_lines([documented_record()])
    trace = read_trace([path, path])
    assert len(trace.steps) == 1
    assert trace.warnings == (f"{path} is named more than once and read once",)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_standard_input_is_read(compress: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(compress(GOOD * 100))))
    trace = read_trace("-")
    assert (len(trace.steps), trace.name) == (100, "stdin")
    assert trace.sources[0].path == "-"
    assert trace.steps["source"].unique().tolist() == ["standard input"]


# The steps table


def test_columns_that_no_line_holds_are_absent(write_lines: Write) -> None:
    steps = read_trace(write_lines([documented_record(timestamp=..., kv_cache_usage=None)])).steps
    assert steps.columns.tolist() == [
        *("batch_size", "total_tokens", "latency_ms", "num_prefill_reqs", "num_decode_reqs", "schedule_ms"),
        *("num_waiting_reqs", "num_running_reqs", "step_ms", "prefill_tokens", "max_prefill_chunk"),
        *("source", "line"),
    ]


def test_columns_have_the_types_of_what_they_count(write_lines: Write) -> None:
    steps = read_trace(write_lines([recorded_record()])).steps
    types = {name: str(steps[name].dtype) for name in steps}
    assert types == {
        **dict.fromkeys(["batch_size", "total_tokens", "num_prefill_reqs", "num_decode_reqs"], "int64"),
        **dict.fromkeys(["num_waiting_reqs", "num_running_reqs", "context_tokens", "line"], "int64"),
        **dict.fromkeys(["prefill_tokens", "max_prefill_chunk"], "int64"),
        **dict.fromkeys(["latency_ms", "schedule_ms", "prefill_pairs", "timestamp"], "float64"),
        "source": "category",
    }


def test_a_field_that_some_lines_lack_is_nan_there(write_lines: Write) -> None:
    steps = read_trace(write_lines([documented_record(), documented_record(num_waiting_reqs=...)])).steps
    assert steps["num_waiting_reqs"].dtype == float
    np.testing.assert_array_equal(steps["num_waiting_reqs"], [5, np.nan])


def test_idle_steps_are_rows_and_no_damage(write_lines: Write) -> None:
    trace = read_trace(write_lines([recorded_record(), recorded_record([], [])]))
    assert trace.steps["total_tokens"].tolist() == [1024, 0]
    assert trace.bad_lines.num_bad == 0


# Damage


DAMAGE: dict[str, tuple[bytes, str]] = {
    "torn line in the middle": (GOOD[:100], "not valid JSON"),
    "garbage": (b"%&/()", "neither JSON nor a vLLM iteration line"),
    "NUL bytes": (b"\0" * 4096, "holds a NUL byte"),
    "NUL byte in a record": (GOOD.strip().replace(b":", b"\0", 1), "holds a NUL byte"),
    "not UTF-8": (GOOD.strip().replace(b"batch_id", b"batch\xff"), "not UTF-8 text"),
    "missing field": (as_bytes(documented_record(num_decode_reqs=...)), "missing field num_decode_reqs"),
    "string": (as_bytes(documented_record(model_run_duration_ms="4")), "model_run_duration_ms is a string"),
    "NaN": (as_bytes(documented_record(model_run_duration_ms=float("nan"))), "model_run_duration_ms is NaN"),
    "negative": (as_bytes(documented_record(model_run_duration_ms=-4)), "model_run_duration_ms is negative"),
    "boolean": (
        as_bytes(documented_record(model_run_duration_ms=True)),
        "model_run_duration_ms is a boolean",
    ),
    "1e308": (
        as_bytes(documented_record(model_run_duration_ms=1e308)),
        "model_run_duration_ms is above 1e+09",
    ),
    "list against count": (
        as_bytes(documented_record(decode_chunk_sizes=[1])),
        "decode_chunk_sizes contradicts num_decode_reqs",
    ),
    "JSON of another kind": (b'{"hello": 1}', "JSON without the fields of a scheduler step"),
    "endless line": (b"{" + b" " * (4 * 2**20 + 10_000), "longer than 4 MiB"),
}


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


# vLLM's own log


def test_log_noise_is_no_damage_and_the_meaning_of_the_time_is_told(write_lines: Write) -> None:
    noise = [NOISE, '{"level": "info", "torn', b"\xff\xfe garbage \0", ""]
    trace = read_trace(write_lines([*noise[:1] * 50, *noise[2:], iteration_line(), NOISE, iteration_line()]))
    assert len(trace.steps) == 2
    assert (trace.bad_lines.num_bad, trace.bad_lines.num_lines) == (0, 2)
    assert trace.sources[0].num_lines == 55
    assert trace.warnings == (
        "2 steps: the times of vLLM's own iteration lines are only the wait for the result: "
        "near the model run in synchronous mode, too small (down to 0) under asynchronous scheduling",
    )


def test_an_incomplete_iteration_line_is_damage(write_lines: Write) -> None:
    trace = read_trace(write_lines([*[iteration_line()] * 30, iteration_line()[:-12]]))
    assert only_reason(trace) == "incomplete vLLM iteration line"


# What is no trace


def _archive(name: str) -> bytes:
    return b"x" * 257 + b"ustar" + name.encode()


EXPECTED = "; expected one JSON object a line with num_prefill_reqs,"
NO_TRACE: dict[str, tuple[bytes, str]] = {
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "t is no trace: it is a PNG image" + EXPECTED),
    "gzipped png": (gzip.compress(b"\x89PNG\r\n\x1a\n" + bytes(99)), "t is no trace: it is a PNG image"),
    "zip": (b"PK\x03\x04" + bytes(99), "t is no trace: it is a ZIP archive"),
    "netcdf": (b"\x89HDF\r\n\x1a\n", "t is no trace: it is an HDF5 or netCDF file, a saved fit perhaps"),
    "bzip2": (bz2.compress(GOOD), "t is no trace: it is bzip2 data: unpack it with bunzip2 first"),
    "tar": (_archive("t"), "t is no trace: it is a tar archive: unpack it first"),
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


def test_an_unreadable_file_is_refused(write_lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines([documented_record()])

    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", deny)
    assert refusal(path) == "cannot read trace.jsonl: permission denied"


def test_a_failing_disk_is_told(write_lines: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines([documented_record()])

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.open", fail)
    assert refusal(path) == "cannot read trace.jsonl: Input/output error"


def test_input_errors_are_value_errors_of_this_library() -> None:
    assert issubclass(InputError, BayesSchedError)
    assert issubclass(InputError, ValueError)


# Names and labels


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["a/vllm_cpu_12m.jsonl.gz"], "vllm_cpu_12m"),
        (["h100_qwq-32b-fp8_chunk512.jsonl", "h100_qwq-32b-fp8_chunk1024.jsonl"], "h100_qwq-32b-fp8"),
        (["run.dp0.jsonl", "run.dp1.jsonl"], "run"),
        (["run.jsonl", "run-2.jsonl"], "run"),
        (["a.jsonl", "b.jsonl", "c.jsonl"], "a-and-2-more"),
        (["-"], "stdin"),
        (["Größe & Co (1).JSONL.ZST"], "Gr-e-Co-1"),
        (["llama-3.1-8b.log"], "llama-3.1-8b"),
        (["..jsonl"], "trace"),
        (["x" * 300 + ".jsonl"], "x" * 80),
    ],
)
def test_the_name_comes_from_the_files(paths: list[str], name: str) -> None:
    assert result_name(paths) == name


@pytest.mark.parametrize("name", ["t.jsonl.gz.meta.json", "t.jsonl.meta.json", "t.meta.json"])
def test_labels_come_from_the_side_car(name: str, write_lines: Write) -> None:
    path = write_lines([documented_record()], "t.jsonl.gz")
    write_lines([{"device_name": "H100", "model": "Qwen/QwQ-32B", "dropped": 0}], name)
    assert read_trace(path).labels == {"gpu": "H100", "llm": "Qwen/QwQ-32B"}


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"gpu": ' * 9999])
def test_an_unreadable_side_car_is_only_a_warning(content: bytes, write_lines: Write) -> None:
    write_lines([content], "trace.jsonl.meta.json")
    trace = read_trace(write_lines([documented_record()]))
    assert trace.labels == {}
    assert trace.warnings == ("the side-car trace.jsonl.meta.json is unreadable and left out",)


@pytest.mark.parametrize("content", [[1], {"gpu": 3, "model": None}, "text"])
def test_a_side_car_without_labels_gives_none(content: object, write_lines: Write) -> None:
    write_lines([json.dumps(content)], "trace.jsonl.meta.json")
    trace = read_trace(write_lines([documented_record()]))
    assert (trace.labels, trace.warnings) == ({}, ())


def test_side_cars_that_disagree_give_no_label(write_lines: Write) -> None:
    paths = [write_lines([documented_record(batch_id=name)], f"{name}.jsonl") for name in "ab"]
    for name in "ab":
        write_lines([{"gpu": name, "model": "m"}], f"{name}.jsonl.meta.json")
    trace = read_trace(paths)
    assert trace.labels == {"llm": "m"}
    assert trace.warnings == ("the side-cars disagree on the gpu (a, b): none is used",)


# Real traces


NUM_STEPS = {
    "h100_qwq-32b-fp8_chunk512": 9529,
    "h100_qwq-32b-fp8_chunk1024": 8848,
    "a6000x2_llama-3.1-8b_chunk256": 9918,
    "a6000x2_llama-3.1-8b_chunk512": 7086,
    "a6000x2_llama-3.1-8b_chunk1024": 7829,
    "vllm_cpu_100m_sweep": 1654,
    "vllm_cpu_12m_server": 555,
    "vllm_cpu_12m_sweep": 5668,
}


@pytest.mark.parametrize(("name", "num_steps"), NUM_STEPS.items())
def test_every_line_of_the_real_traces_is_used(name: str, num_steps: int, shared_traces: Path) -> None:
    trace = read_trace(shared_traces / f"{name}.jsonl.gz")
    assert (len(trace.steps), trace.bad_lines.num_bad, trace.warnings) == (num_steps, 0, ())
    assert trace.name == name
    assert (
        trace.text == f"{num_steps:,} steps from 1 file ({trace.sources[0].format}). {trace.bad_lines.text}"
    )
    assert ("context_tokens" in trace.steps) == (not name.startswith("vllm_cpu"))


def test_the_example_is_the_trace_its_readme_describes() -> None:
    trace = read_trace(ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz")
    assert len(trace.steps) == 5668
    assert (trace.steps["latency_ms"] > 300).sum() == 129
    assert trace.steps["total_tokens"].max() == 2048
