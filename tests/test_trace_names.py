"""What a trace is called, and what its side-cars say of it."""

import json

import pytest

from bayes_sched.trace.opening import result_name
from bayes_sched.trace.reader import read_trace
from bayes_sched.trace.sidecar import read_scheduler
from tests.conftest import documented_record
from tests.trace_lines import Write


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


def test_a_schedulers_settings_come_from_the_side_cars_that_agree(write_lines: Write) -> None:
    agreed = {"max_num_batched_tokens": 256, "max_num_seqs": 16, "kv_cache_block_size": 128}
    for name, blocks in (("a", 14), ("b", 15)):
        told = {**agreed, "num_kv_cache_blocks": blocks, "gpu": "H100"}
        sidecar = write_lines([told], f"{name}.jsonl.meta.json")
    a, b = (str(sidecar.with_name(f"{name}.jsonl")) for name in "ab")
    assert read_scheduler([a, b]) == agreed
    assert read_scheduler([b]) == {**agreed, "num_kv_cache_blocks": 15}


@pytest.mark.parametrize("value", [None, 0, -1, True, "16", 16.5])
def test_what_is_no_number_of_something_is_no_setting(value: object, write_lines: Write) -> None:
    sidecar = write_lines([{"max_num_seqs": value, "max_num_batched_tokens": 256}], "a.jsonl.meta.json")
    found = read_scheduler([str(sidecar.with_name("a.jsonl")), "-", "none.jsonl"])
    assert found == {"max_num_batched_tokens": 256}
