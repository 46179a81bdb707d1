"""Hooks never change what a scheduler does, and see each step once."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from bayes_sched_vllm.recorder.hook import MAX_ERRORS

from tests.plugin.conftest import Engine
from tests.plugin.fake_vllm import make_scheduler_class, run_step

MakeEngine = Callable[..., Engine]


def test_the_original_is_called_once_with_its_arguments_and_gives_its_result(make_engine: MakeEngine) -> None:
    base = make_scheduler_class()
    seen: list[object] = []

    def schedule(self: object, *args: object, **kwargs: object) -> str:
        seen.append((args, kwargs))
        return "not a SchedulerOutput"

    base.schedule = schedule
    engine = make_engine(base)
    assert engine.scheduler.schedule(True) == "not a SchedulerOutput"
    assert engine.scheduler.schedule(throttle_prefills=True) == "not a SchedulerOutput"
    assert seen == [((True,), {}), ((), {"throttle_prefills": True})]


def test_update_from_output_is_found_by_keyword_too(engine: Engine) -> None:
    run_step(engine.scheduler, {"a": 4})
    output = engine.scheduler.schedule()
    result = engine.scheduler.update_from_output(scheduler_output=output, model_runner_output=None)
    assert result == "engine core outputs"
    assert engine.ids(2) == [0, 1]


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
    engine = make_engine(base)
    with pytest.raises(ZeroDivisionError, match="vLLM's own"):
        run_step(engine.scheduler, {"a": 4})
    assert calls == [method]
    assert engine.fuse.num_errors == 0
    assert not engine.recorder.is_scheduling, "the next step would pass for one within this"


def test_a_renamed_attribute_costs_the_record_alone_and_too_many_errors_switch_it_off(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = engine.scheduler
    scheduler.requests["b"] = SimpleNamespace(num_computed_tokens=0)  # no num_prompt_tokens
    for sizes in [{"a": 4}, *[{"b": 1}] * (MAX_ERRORS - 1), {"a": 1}]:
        run_step(scheduler, sizes)
    assert engine.ids(2) == [0, 1], "some errors do not switch it off"
    assert not engine.fuse.is_blown
    for _ in range(5):
        run_step(scheduler, {"b": 1})
    engine.sidecar(state="off", num_profiler_errors=MAX_ERRORS)
    run_step(scheduler, {"a": 1})
    assert engine.ids(2) == [0, 1]
    assert scheduler.calls == ["schedule", "update_from_output"] * (MAX_ERRORS + 7)
    assert caplog.text.count("Traceback") == 1, "one traceback for one kind of error"
    assert "switched off" in caplog.text


def test_what_is_not_needed_of_a_renamed_attribute_is_null(engine: Engine) -> None:
    del engine.scheduler.kv_cache_manager, engine.scheduler.waiting
    run_step(engine.scheduler, {"a": 4})
    step = engine.steps(1)[0]
    assert (step["kv_cache_usage"], step["num_waiting_reqs"], step["num_running_reqs"]) == (None, None, 0)


def test_a_class_without_the_methods_is_refused_at_once(make_engine: MakeEngine) -> None:
    with pytest.raises(AttributeError, match="has no method schedule"):
        make_engine(type("Scheduler", (), {}))


@pytest.mark.parametrize("is_known", [True, False], ids=["known to the plugin", "defined after it"])
def test_a_step_counts_once_though_a_subclass_calls_its_parent_and_hooks_come_twice(
    make_engine: MakeEngine, is_known: bool
) -> None:
    base = make_scheduler_class()

    def derive() -> type[Any]:
        class Derived(base):  # type: ignore[misc, valid-type]
            def schedule(self, throttle_prefills: bool = False) -> Any:
                output = super().schedule(throttle_prefills)
                return SimpleNamespace(**vars(output))  # one of its own

            def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
                return super().update_from_output(scheduler_output, model_runner_output)

        return Derived

    derived = derive() if is_known else None
    make_engine(base)
    engine = make_engine(base)
    engine.scheduler = (derived or derive())()
    for _ in range(3):
        run_step(engine.scheduler, {"a": 4})
    assert engine.ids(3) == [0, 1, 2]
    assert engine.scheduler.calls.count("schedule") == 3
    assert engine.fuse.num_errors == 0
