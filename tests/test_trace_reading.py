"""Reading: formats, compression, several files and standard input, the table of steps, names, side-cars."""

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_sched.trace.opening import result_name
from bayes_sched.trace.reader import read_scheduler, read_trace
from tests.conftest import ROOT, documented_record, iteration_line, known, recorded_record
from tests.trace_lines import COMPRESSIONS, GOOD, NOISE, Write


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


def test_formats_may_be_mixed_in_one_file_and_idle_steps_are_rows(write_lines: Write) -> None:
    trace = read_trace(write_lines([recorded_record(), recorded_record([], [])]))
    assert trace.steps["total_tokens"].tolist() == [1024, 0]
    assert trace.bad_lines.num_bad == 0
    trace = read_trace(write_lines([NOISE, documented_record(), iteration_line(), recorded_record()]))
    assert trace.sources[0].format == "documented+recorded+vllm-log"
    assert trace.steps["line"].tolist() == [2, 3, 4]
    assert (trace.bad_lines.num_bad, trace.bad_lines.num_lines) == (0, 3)


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS.keys())
def test_compression_is_recognised_whatever_the_name(
    compress: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = compress(GOOD * 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    names = [str(tmp_path / name) for name in ("trace.jsonl", "trace.gz", "trace.zst")]
    for path in (*names, "-"):
        if path != "-":
            Path(path).write_bytes(raw)
        trace = read_trace(path)
        assert (len(trace.steps), trace.bad_lines.num_bad, trace.warnings) == (100, 0, ())
        assert trace.sources[0].num_lines == 100
        assert trace.sha256 == trace.sources[0].sha256 == hashlib.sha256(raw).hexdigest()
    assert (trace.name, trace.sources[0].path) == ("stdin", "-")
    assert trace.steps["source"].unique().tolist() == ["standard input"]


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
    paths = [tmp_path / folder / "t.jsonl" for folder in ("a", "b")]
    trace = read_trace(paths)
    assert trace.steps["source"].tolist() == list(map(str, paths))
    assert "hold the same bytes" in trace.warnings[0]


def test_a_pattern_is_expanded_sorted_and_leaves_side_cars_out(write_lines: Write, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        write_lines([documented_record(batch_id=name)], name)
    write_lines([{"gpu": "H100"}], "a.jsonl.meta.json")
    (tmp_path / "folder.jsonl").mkdir()
    assert [Path(s.path).name for s in read_trace(tmp_path / "*.json*").sources] == ["a.jsonl", "b.jsonl"]
    assert [Path(s.path).name for s in read_trace(tmp_path / "[bc].*").sources] == ["b.jsonl", "c.txt"]


def test_a_file_named_twice_is_read_once_though_its_name_looks_like_a_pattern(write_lines: Write) -> None:
    path = write_lines([documented_record()], "run[1].jsonl")
    trace = read_trace([path, path])
    assert len(trace.steps) == 1
    assert trace.warnings == (f"{path} is named more than once and read once",)


def test_columns_hold_what_they_count_nan_where_a_line_lacks_it_and_are_absent_where_all_do(
    write_lines: Write,
) -> None:
    steps = read_trace(write_lines([documented_record(timestamp=..., kv_cache_usage=None)])).steps
    assert steps.columns.tolist() == [
        *("batch_size", "total_tokens", "latency_ms", "num_prefill_reqs", "num_decode_reqs", "schedule_ms"),
        *("num_waiting_reqs", "num_running_reqs", "step_ms", "prefill_tokens", "max_prefill_chunk"),
        *("source", "line"),
    ]
    steps = read_trace(write_lines([recorded_record()])).steps
    types = {name: str(steps[name].dtype) for name in steps}
    assert types == {
        **dict.fromkeys(["batch_size", "total_tokens", "num_prefill_reqs", "num_decode_reqs"], "int64"),
        **dict.fromkeys(["num_waiting_reqs", "num_running_reqs", "context_tokens", "line"], "int64"),
        **dict.fromkeys(["prefill_tokens", "max_prefill_chunk"], "int64"),
        **dict.fromkeys(["latency_ms", "schedule_ms", "prefill_pairs", "timestamp"], "float64"),
        "source": "category",
    }
    steps = read_trace(write_lines([documented_record(), documented_record(num_waiting_reqs=...)])).steps
    assert steps["num_waiting_reqs"].dtype == float
    np.testing.assert_array_equal(steps["num_waiting_reqs"], [5, np.nan])


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


def test_reading_tells_the_share_of_all_files_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_bytes(GOOD * 1000)
    told: list[tuple[str, float | None]] = []
    read_trace(tmp_path / "*.jsonl", progress=lambda *stage: told.append(stage))
    shares = [known(share) for _, share in told]
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    assert 0.4 < shares[len(shares) // 2 - 1] <= 0.5, "the first of two files is half of all"
    assert {stage for stage, _ in told} == {"reading the trace"}
    told.clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(GOOD)))
    read_trace("-", progress=lambda *stage: told.append(stage))
    assert told == [("reading the trace", None)]


NUM_STEPS = {
    "h100_qwq-32b-fp8_chunk512": 9529,
    "a6000x2_llama-3.1-8b_chunk256": 9918,
    "vllm_cpu_100m_sweep": 1654,
    "vllm_cpu_12m_server": 555,
}


@pytest.mark.parametrize(("name", "num_steps"), NUM_STEPS.items())
def test_every_line_of_the_real_traces_is_used(name: str, num_steps: int, shared_traces: Path) -> None:
    trace = read_trace(shared_traces / f"{name}.jsonl.gz")
    assert (len(trace.steps), trace.bad_lines.num_bad, trace.warnings) == (num_steps, 0, ())
    told = f"{num_steps:,} steps from 1 file ({trace.sources[0].format}). {trace.bad_lines.text}"
    assert (trace.name, trace.text) == (name, told)
    assert ("context_tokens" in trace.steps) == (not name.startswith("vllm_cpu"))


def test_the_example_is_the_trace_its_readme_describes() -> None:
    trace = read_trace(ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz")
    assert len(trace.steps) == 5668
    assert (trace.steps["latency_ms"] > 300).sum() == 129
    assert trace.steps["total_tokens"].max() == 2048


# Names and side-cars


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


def test_a_side_car_without_labels_gives_none_and_an_unreadable_one_is_only_a_warning(
    write_lines: Write,
) -> None:
    unreadable = ("the side-car trace.jsonl.meta.json is unreadable and left out",)
    contents: list[tuple[Any, tuple[str, ...]]] = [
        *((content, unreadable) for content in (b"{", b"\xff", b'{"gpu": ' * 9999)),
        *((json.dumps(content), ()) for content in ([1], {"gpu": 3, "model": None}, "text")),
    ]
    for content, warnings in contents:
        write_lines([content], "trace.jsonl.meta.json")
        trace = read_trace(write_lines([documented_record()]))
        assert (trace.labels, trace.warnings) == ({}, warnings)


def test_side_cars_that_disagree_give_no_label(write_lines: Write) -> None:
    paths = [write_lines([documented_record(batch_id=name)], f"{name}.jsonl") for name in "ab"]
    for name in "ab":
        write_lines([{"gpu": name, "model": "m"}], f"{name}.jsonl.meta.json")
    trace = read_trace(paths)
    assert trace.labels == {"llm": "m"}
    assert trace.warnings == ("the side-cars disagree on the gpu (a, b): none is used",)


def test_a_schedulers_settings_come_from_the_side_cars_that_agree(write_lines: Write) -> None:
    agreed = {"max_num_batched_tokens": 256, "max_num_seqs": 16, "kv_cache_block_size": 128}
    for name, blocks in (("a", 14), ("b", 15)):
        told = {**agreed, "num_kv_cache_blocks": blocks, "gpu": "H100"}
        sidecar = write_lines([told], f"{name}.jsonl.meta.json")
    a, b = (str(sidecar.with_name(f"{name}.jsonl")) for name in "ab")
    assert read_scheduler([a, b]) == agreed
    assert read_scheduler([b]) == {**agreed, "num_kv_cache_blocks": 15}


def test_what_is_no_number_of_something_is_no_setting(write_lines: Write) -> None:
    for value in (None, 0, -1, True, "16", 16.5):
        sidecar = write_lines([{"max_num_seqs": value, "max_num_batched_tokens": 256}], "a.jsonl.meta.json")
        found = read_scheduler([str(sidecar.with_name("a.jsonl")), "-", "none.jsonl"])
        assert found == {"max_num_batched_tokens": 256}
