"""What the environment asks, and where that leads."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bayes_sched_profiler import description
from bayes_sched_profiler.console import Console
from bayes_sched_profiler.plugin import data_parallel_rank, rank_path
from bayes_sched_profiler.settings import Settings, read_settings

from tests.profiler.fake_vllm import CONFIG
from tests.profiler.test_record import step_of


@pytest.mark.parametrize("prefix", ["VLLM_", ""])
def test_each_variable_is_read_with_and_without_its_prefix(prefix: str) -> None:
    environment = {
        f"{prefix}SCHEDULER_PROFILING_LOG": "other.jsonl",
        f"{prefix}SCHEDULER_PROFILING_CONSOLE": "true",
        f"{prefix}SCHEDULER_PROFILING_ROTATE_MB": "1.5",
    }
    assert read_settings(environment) == Settings("other.jsonl", console=True, rotate_bytes=1_500_000)


def test_what_is_not_set_is_as_documented() -> None:
    assert read_settings({}) == Settings("scheduler_profiling.jsonl", console=False, rotate_bytes=0)


@pytest.mark.parametrize("name", ["SCHEDULER_PROFILING_CONSOLE", "SCHEDULER_PROFILING_ROTATE_MB"])
def test_a_value_that_makes_no_sense_is_told_and_left(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert read_settings({name: "perhaps"}) == Settings()
    assert f"{name}=perhaps" in caplog.text


def parallel(**values: Any) -> SimpleNamespace:
    return SimpleNamespace(parallel_config=SimpleNamespace(**values))


def test_each_data_parallel_rank_has_a_log_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_path("logs/steps.jsonl", 3) == "logs/steps.dp3.jsonl"
    assert rank_path("steps.jsonl", None) == "steps.jsonl"
    assert data_parallel_rank(parallel(data_parallel_size=1, data_parallel_rank=0)) is None
    assert data_parallel_rank(parallel(data_parallel_size=4, data_parallel_rank=0)) == 0
    assert data_parallel_rank(parallel(data_parallel_size=1, data_parallel_index=2)) == 2
    process = SimpleNamespace(name="EngineCore_DP0")
    monkeypatch.setattr("bayes_sched_profiler.plugin.multiprocessing.current_process", lambda: process)
    assert data_parallel_rank(parallel(data_parallel_size=1, data_parallel_index=0)) == 0


def test_a_device_is_named_with_its_number(fake_module: Any) -> None:
    fake_module("vllm.platforms", current_platform=SimpleNamespace(get_device_name=lambda: "NVIDIA H100"))
    described = description.describe(CONFIG)
    assert (described["gpu"], described["device_name"]) == ("2 x NVIDIA H100", "NVIDIA H100")


def test_a_rank_is_not_said_to_be_alone() -> None:
    described = description.describe(CONFIG, data_parallel_rank=0)
    assert described["data_parallel_rank"] == 0
    assert "data_parallel_size" not in described


def test_a_config_of_another_vllm_leaves_gaps_and_raises_nothing() -> None:
    described = description.describe(SimpleNamespace())
    assert described.keys() == {"profiler_version"}


def test_a_model_in_a_folder_goes_by_the_name_of_the_folder(tmp_path: Path) -> None:
    model_config = SimpleNamespace(model=str(tmp_path), served_model_name=["first", "second"])
    described = description.describe(SimpleNamespace(model_config=model_config))
    assert (described["model"], described["served_model_name"]) == (tmp_path.name, "first")
    assert str(tmp_path.parent) not in json.dumps(described)


def test_the_console_shows_some_steps_and_says_how_many_it_does_not() -> None:
    reader, writer = os.pipe()
    console = Console(writer)
    for _ in range(4):
        console.show(step_of())
    console._next_time = 0.0
    console.show(step_of())
    lines = os.read(reader, 10_000).decode().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 7: 2 prefill + 1 decode, 514 tokens, schedule 5.00 ms, model 40.00 ms")
    assert lines[1].endswith("(+3 steps not shown)")


def test_a_console_that_nobody_reads_blocks_nothing() -> None:
    reader, writer = os.pipe()
    console = Console(writer)
    for _ in range(2000):  # far more than a pipe holds
        console._next_time = 0.0
        console.show(step_of())
    assert console._num_hidden > 0
    os.close(reader)
