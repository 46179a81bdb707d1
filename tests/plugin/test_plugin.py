"""What the environment asks for, and where that leads; what an engine is said to run on."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bayes_sched_vllm.recorder import register
from bayes_sched_vllm.recorder.plugin import Settings, data_parallel_rank, rank_path, read_settings
from bayes_sched_vllm.recorder.sidecar import describe

from tests.plugin.conftest import Engine
from tests.plugin.fake_vllm import CONFIG, make_scheduler_class, run_step

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
# Without site-packages: what is imported is this or the standard library.
PROBE = """
import os, sys
from bayes_sched_vllm.recorder import register
register()
os.environ["VLLM_ENABLE_SCHEDULER_PROFILING"] = "false"
register()
print(sorted(name for name in sys.modules if name.startswith(("bayes_sched", "vllm", "logging"))))
import bayes_sched_vllm.recorder.plugin
"""


def test_nothing_but_the_entry_point_is_imported_when_off_and_nothing_foreign_when_on() -> None:
    command = [sys.executable, "-S", "-c", PROBE]
    done = subprocess.run(command, env={"PYTHONPATH": str(PLUGIN)}, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("['bayes_sched_vllm', 'bayes_sched_vllm.recorder']", "")


@pytest.mark.parametrize("name", ["VLLM_ENABLE_SCHEDULER_PROFILING", "ENABLE_SCHEDULER_PROFILING"])
def test_a_vllm_that_cannot_be_hooked_gets_a_warning_and_no_exception(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(name, "true")
    monkeypatch.setitem(sys.modules, "vllm", None)
    register()
    assert "Scheduler profiling is off: it could not be installed." in caplog.text


def test_the_plugin_hooks_vllms_scheduler_however_often_it_is_called(
    fake_module: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    make_engine: Callable[..., Engine],
    log: Path,
) -> None:
    base = make_scheduler_class()
    for package in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        fake_module(package)
    fake_module("vllm.v1.core.sched.scheduler", Scheduler=base)
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "True")
    monkeypatch.setenv("SCHEDULER_PROFILING_LOG", str(log))
    register()
    register()
    engine = make_engine(base)
    run_step(engine.scheduler, {"a": 4})
    assert engine.ids(1) == [0]


@pytest.mark.parametrize("prefix", ["VLLM_", ""])
def test_each_variable_is_read_with_and_without_its_prefix(prefix: str) -> None:
    environment = {
        f"{prefix}SCHEDULER_PROFILING_LOG": "other.jsonl",
        f"{prefix}SCHEDULER_PROFILING_CONSOLE": "true",
        f"{prefix}SCHEDULER_PROFILING_ROTATE_MB": "1.5",
    }
    assert read_settings(environment) == Settings("other.jsonl", console=True, rotate_bytes=1_500_000)


@pytest.mark.parametrize("name", ["SCHEDULER_PROFILING_CONSOLE", "SCHEDULER_PROFILING_ROTATE_MB"])
def test_what_is_not_set_is_as_documented_and_so_is_what_makes_no_sense(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    documented = Settings("scheduler_profiling.jsonl", console=False, rotate_bytes=0)
    assert read_settings({}) == documented
    assert not caplog.text
    assert read_settings({name: "perhaps"}) == documented
    assert f"{name}=perhaps" in caplog.text


def test_each_data_parallel_rank_has_a_log_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def rank(**parallel: int) -> int | None:
        return data_parallel_rank(SimpleNamespace(parallel_config=SimpleNamespace(**parallel)))

    assert rank_path("logs/steps.jsonl", 3) == "logs/steps.dp3.jsonl"
    assert rank_path("steps.jsonl", None) == "steps.jsonl"
    assert rank(data_parallel_size=1, data_parallel_rank=0) is None
    assert rank(data_parallel_size=4, data_parallel_rank=0) == 0
    assert rank(data_parallel_size=1, data_parallel_index=2) == 2
    process = SimpleNamespace(name="EngineCore_DP0")
    monkeypatch.setattr("multiprocessing.current_process", lambda: process)
    assert rank(data_parallel_size=1, data_parallel_index=0) == 0


def test_a_device_is_named_with_its_number_and_a_rank_is_not_said_to_be_alone(fake_module: Any) -> None:
    fake_module("vllm.platforms", current_platform=SimpleNamespace(get_device_name=lambda: "NVIDIA H100"))
    described = describe(CONFIG, data_parallel_rank=0)
    assert (described["gpu"], described["device_name"]) == ("2 x NVIDIA H100", "NVIDIA H100")
    assert described["data_parallel_rank"] == 0
    assert "data_parallel_size" not in described


def test_a_config_of_another_vllm_leaves_gaps_and_raises_nothing() -> None:
    assert describe(SimpleNamespace()).keys() == {"profiler_version"}


def test_a_model_in_a_folder_goes_by_the_name_of_the_folder(tmp_path: Path) -> None:
    model_config = SimpleNamespace(model=str(tmp_path), served_model_name=["first", "second"])
    described = describe(SimpleNamespace(model_config=model_config))
    assert (described["model"], described["served_model_name"]) == (tmp_path.name, "first")
    assert str(tmp_path.parent) not in json.dumps(described)
