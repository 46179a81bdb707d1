"""Hooks never change what a scheduler does, and see each step once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bayes_sched_profiler.fuse import MAX_ERRORS

from tests.profiler.conftest import Engine
from tests.profiler.fake_vllm import make_scheduler_class, run_step

MakeEngine = Callable[..., Engine]


def test_the_original_is_called_once_with_its_arguments_and_gives_its_result(make_engine: MakeEngine) -> None:
    base = make_scheduler_class()
    seen: list[object] = []

    def schedule(self: object, *args: object, **kwargs: object) -> str:
        seen.append((args, kwargs))
        return "not a SchedulerOutput"

    base.schedule = schedule
    engine = make_engine(scheduler_class=base)
    assert engine.scheduler.schedule(True) == "not a SchedulerOutput"
    assert engine.scheduler.schedule(throttle_prefills=True) == "not a SchedulerOutput"
    assert seen == [((True,), {}), ((), {"throttle_prefills": True})]


def test_update_from_output_is_found_by_keyword_too(engine: Engine) -> None:
    run_step(engine.scheduler, {"a": 4})
    output = engine.scheduler.schedule()
    result = engine.scheduler.update_from_output(scheduler_output=output, model_runner_output=None)
    assert result == "engine core outputs"
    assert [step["batch_id"] for step in engine.steps(2)] == [0, 1]


@pytest.mark.parametrize("method", ["schedule", "update_from_output"])
def test_an_exception_of_the_original_passes_through_and_is_not_ours(
    make_engine: MakeEngine, method: str
) -> None:
    base = make_scheduler_class()
    calls = []

    def fail(self: object, *args: object) -> None:
        calls.append(method)
        raise ZeroDivisionError("vLLM's own")

    setattr(base, method, fail)
    engine = make_engine(scheduler_class=base)
    with pytest.raises(ZeroDivisionError, match="vLLM's own"):
        run_step(engine.scheduler, {"a": 4})
    assert calls == [method]
    assert engine.fuse.num_errors == 0
    assert not engine.recorder.is_scheduling, "the next step would pass for one within this"


def test_an_exception_in_the_hook_never_reaches_the_engine_and_ends_in_switching_off(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("injected")

    run_step(engine.scheduler, {"a": 4})
    monkeypatch.setattr("bayes_sched_profiler.recorder.copy_schedule", fail)
    for _ in range(MAX_ERRORS + 5):
        run_step(engine.scheduler, {"a": 1})
    assert engine.fuse.num_errors == MAX_ERRORS
    assert engine.fuse.is_blown
    assert engine.scheduler.calls.count("schedule") == MAX_ERRORS + 6
    assert engine.scheduler.calls.count("update_from_output") == MAX_ERRORS + 6
    assert caplog.text.count("Traceback") == 1, "one traceback for one kind of error"
    assert "switched off" in caplog.text
    assert engine.sidecar(key="state", value="off")["num_profiler_errors"] == MAX_ERRORS
    assert len(engine.steps(1)) == 1


def test_some_errors_do_not_switch_it_off(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_step(engine.scheduler, {"a": 4})
    with monkeypatch.context() as patch:
        patch.setattr("bayes_sched_profiler.recorder.copy_schedule", lambda *args, **kwargs: 1 / 0)
        for _ in range(MAX_ERRORS - 1):
            run_step(engine.scheduler, {"a": 1})
    run_step(engine.scheduler, {"a": 1})
    assert [step["batch_id"] for step in engine.steps(2)] == [0, 1]


def test_a_renamed_attribute_of_vllm_costs_the_record_and_nothing_else(engine: Engine) -> None:
    run_step(engine.scheduler, {"a": 4})
    engine.scheduler.requests["b"] = SimpleNamespace(num_computed_tokens=0)  # no num_prompt_tokens
    for _ in range(MAX_ERRORS):
        run_step(engine.scheduler, {"b": 1})
    assert engine.scheduler.calls.count("update_from_output") == MAX_ERRORS + 1
    assert engine.fuse.is_blown
    assert len(engine.steps(1)) == 1


def test_what_is_not_needed_of_a_renamed_attribute_is_null(engine: Engine) -> None:
    del engine.scheduler.kv_cache_manager, engine.scheduler.waiting
    run_step(engine.scheduler, {"a": 4})
    step = engine.steps(1)[0]
    assert (step["kv_cache_usage"], step["num_waiting_reqs"], step["num_running_reqs"]) == (None, None, 0)


def test_a_class_without_the_methods_is_refused_at_once(make_engine: MakeEngine) -> None:
    with pytest.raises(AttributeError, match="has no method schedule"):
        make_engine(scheduler_class=type("Scheduler", (), {}))


def test_subclass_and_parent_that_both_define_the_methods_count_a_step_once(make_engine: MakeEngine) -> None:
    base = make_scheduler_class()

    class AsyncScheduler(base):  # type: ignore[misc, valid-type]
        def schedule(self, throttle_prefills: bool = False) -> Any:
            return super().schedule(throttle_prefills)

        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            return super().update_from_output(scheduler_output, model_runner_output)

    engine = make_engine(scheduler_class=base)
    engine.scheduler = AsyncScheduler()
    for _ in range(3):
        run_step(engine.scheduler, {"a": 4})
    assert [step["batch_id"] for step in engine.steps(3)] == [0, 1, 2]
    assert engine.scheduler.calls.count("schedule") == 3


def test_a_subclass_defined_after_the_plugin_is_hooked_too(make_engine: MakeEngine) -> None:
    engine = make_engine()
    base = type(engine.scheduler)

    class Custom(base):  # type: ignore[misc, valid-type]
        def schedule(self, throttle_prefills: bool = False) -> Any:
            output = super().schedule(throttle_prefills)
            return type(output)(output.num_scheduled_tokens, output.scheduled_new_reqs)

    engine.scheduler = Custom()
    run_step(engine.scheduler, {"a": 4})
    assert len(engine.steps(1)) == 1


def test_hooking_twice_counts_a_step_once(make_engine: MakeEngine) -> None:
    base = make_scheduler_class()
    make_engine(scheduler_class=base)
    engine = make_engine(scheduler_class=base)
    run_step(engine.scheduler, {"a": 4})
    run_step(engine.scheduler, {"a": 4})
    assert [step["batch_id"] for step in engine.steps(2)] == [0, 1]


PROFILER = Path(__file__).resolve().parents[2] / "profiler"
PROBE = """
import sys
import bayes_sched_profiler
bayes_sched_profiler.register()
print(sorted(name for name in sys.modules if name.startswith(("bayes_sched_profiler", "vllm", "logging"))))
"""


def _probe(**environment: str) -> "subprocess.CompletedProcess[str]":
    path = {"PYTHONPATH": str(PROFILER)} | environment
    return subprocess.run(
        [sys.executable, "-S", "-c", PROBE], env=path, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("environment", [{}, {"VLLM_ENABLE_SCHEDULER_PROFILING": "false"}])
def test_nothing_but_the_entry_point_is_imported_when_off(environment: dict[str, str]) -> None:
    assert _probe(**environment).stdout.strip() == "['bayes_sched_profiler']"


@pytest.mark.parametrize("name", ["VLLM_ENABLE_SCHEDULER_PROFILING", "ENABLE_SCHEDULER_PROFILING"])
def test_a_vllm_that_cannot_be_hooked_gets_a_warning_and_no_exception(name: str) -> None:
    answer = _probe(**{name: "true"})  # there is no vLLM here
    assert "Scheduler profiling is off: it could not be installed." in answer.stderr
    assert "bayes_sched_profiler.hook" in answer.stdout


def test_the_plugin_hooks_vllms_scheduler_however_often_it_is_called(
    fake_module: Callable[..., None], monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine, log: Any
) -> None:
    import bayes_sched_profiler

    base = make_scheduler_class()
    for package in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        fake_module(package)
    fake_module("vllm.v1.core.sched.scheduler", Scheduler=base)
    monkeypatch.setenv("VLLM_ENABLE_SCHEDULER_PROFILING", "True")
    monkeypatch.setenv("SCHEDULER_PROFILING_LOG", str(log))
    bayes_sched_profiler.register()
    bayes_sched_profiler.register()
    engine = make_engine(scheduler_class=base)
    run_step(engine.scheduler, {"a": 4})
    assert [step["batch_id"] for step in engine.steps(1)] == [0]
