"""The trace in examples/ that this profiler recorded from a real vLLM."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.trace.cleaning import clean_steps
from bayes_sched.trace.reader import read_trace
from tests.profiler.test_record import SCHEMA

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vllm_cpu_context.jsonl.gz"


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """Every line of it."""
    return [json.loads(line) for line in gzip.decompress(EXAMPLE.read_bytes()).splitlines()]


def test_every_step_is_there_once_with_all_fields(lines: list[dict[str, Any]]) -> None:
    assert [line["batch_id"] for line in lines] == list(range(len(lines)))
    assert {tuple(line) for line in lines} == {tuple(SCHEMA["required"])}


def test_sums_and_lengths_agree(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        chunks = line["prefill_chunk_sizes"] + line["decode_chunk_sizes"]
        assert sum(chunks) == line["total_scheduled_tokens"]
        assert (
            len(line["prefill_context_lens"]) == line["num_prefill_reqs"] == len(line["prefill_chunk_sizes"])
        )
        assert len(line["decode_context_lens"]) == line["num_decode_reqs"] == len(line["decode_chunk_sizes"])
        parts = line["schedule_duration_ms"] + line["model_run_duration_ms"]
        assert line["total_step_duration_ms"] == pytest.approx(parts, abs=1e-3)  # synchronous scheduling


def test_it_covers_what_a_server_does() -> None:
    steps = clean_steps(read_trace(EXAMPLE).steps).steps
    is_decode_only, is_prefill_only = steps["num_prefill_reqs"] == 0, steps["num_decode_reqs"] == 0
    assert is_decode_only.sum() > 1000
    assert (~is_decode_only & ~is_prefill_only).sum() > 300
    assert (steps["total_tokens"] >= 512).sum() > 100
    assert (steps["batch_size"].min(), steps["batch_size"].max()) == (1, 64)


def test_labels_and_context_columns_come_from_the_side_car_and_the_lines() -> None:
    trace = read_trace(EXAMPLE)
    assert trace.labels == {"gpu": "AMD EPYC", "llm": "qwen2-random-3m"}
    assert {"context_tokens", "prefill_pairs"} <= set(trace.steps)
    assert trace.warnings == ()


def test_nothing_tells_of_the_machine_it_was_recorded_on() -> None:
    sidecar = EXAMPLE.with_name("vllm_cpu_context.jsonl.meta.json").read_text()
    assert "/" not in sidecar
    assert json.loads(sidecar)["num_dropped_steps"] == 0
