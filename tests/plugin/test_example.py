"""The trace in examples/ that the recorder wrote in a real vLLM."""

import gzip
import json
from pathlib import Path

import pytest

from bayes_sched.trace.cleaning import clean_steps
from bayes_sched.trace.reader import read_trace
from tests.plugin.test_steps import SCHEMA

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vllm_cpu_context.jsonl.gz"


def test_every_step_is_there_once_with_all_fields_and_its_sums_and_lengths_agree() -> None:
    lines = [json.loads(line) for line in gzip.decompress(EXAMPLE.read_bytes()).splitlines()]
    assert [line["batch_id"] for line in lines] == list(range(len(lines)))
    for line in lines:
        assert list(line) == SCHEMA["required"]
        chunks = line["prefill_chunk_sizes"] + line["decode_chunk_sizes"]
        assert sum(chunks) == line["total_scheduled_tokens"]
        for phase in ("prefill", "decode"):
            lengths = {len(line[f"{phase}_context_lens"]), len(line[f"{phase}_chunk_sizes"])}
            assert lengths == {line[f"num_{phase}_reqs"]}
        parts = line["schedule_duration_ms"] + line["model_run_duration_ms"]
        assert line["total_step_duration_ms"] == pytest.approx(parts, abs=1e-3)  # synchronous scheduling


def test_it_covers_what_a_server_does() -> None:
    steps = clean_steps(read_trace(EXAMPLE).steps).steps
    is_decode_only, is_prefill_only = steps["num_prefill_reqs"] == 0, steps["num_decode_reqs"] == 0
    assert is_decode_only.sum() > 1000
    assert (~is_decode_only & ~is_prefill_only).sum() > 300
    assert (steps["total_tokens"] >= 512).sum() > 100
    assert (steps["batch_size"].min(), steps["batch_size"].max()) == (1, 64)


def test_its_labels_come_from_the_side_car_which_tells_nothing_of_the_machine_it_was_recorded_on() -> None:
    trace = read_trace(EXAMPLE)
    assert trace.labels == {"gpu": "AMD EPYC", "llm": "qwen2-random-3m"}
    assert {"context_tokens", "prefill_pairs"} <= set(trace.steps)
    assert trace.warnings == ()
    sidecar = EXAMPLE.with_name("vllm_cpu_context.jsonl.meta.json").read_text()
    assert "/" not in sidecar
    assert json.loads(sidecar)["num_dropped_steps"] == 0
