"""Fixtures of the profiler's tests."""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bayes_sched_profiler.fuse import Fuse
from bayes_sched_profiler.hook import Hook
from bayes_sched_profiler.plugin import start_recorder
from bayes_sched_profiler.settings import Settings

from tests.profiler.fake_vllm import make_scheduler_class


class Engine:
    """A hooked scheduler, its log, and what is known of the profiler inside."""

    def __init__(self, scheduler: Any, log: Path, fuse: Fuse) -> None:
        self.scheduler = scheduler
        self.log = log
        self.fuse = fuse

    @property
    def recorder(self) -> Any:
        """The profiler's, once a step was scheduled."""
        return self.scheduler._bayes_sched_profiler_recorder

    def steps(self, count: int, *, log: Path | None = None) -> list[dict[str, Any]]:
        """Wait until the log holds `count` steps and give them."""
        path = log or self.log
        wait_for(lambda: path.exists() and len(path.read_bytes().splitlines()) >= count)
        return [json.loads(line) for line in path.read_bytes().splitlines()]

    def sidecar(self, *, key: str, value: object) -> dict[str, Any]:
        """Wait until the side-car says so and give it."""
        path = self.log.with_name(self.log.name + ".meta.json")
        wait_for(lambda: path.exists() and json.loads(path.read_text()).get(key) == value)
        content: dict[str, Any] = json.loads(path.read_text())
        return content


def wait_for(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the log goes."""
    return tmp_path / "steps.jsonl"


@pytest.fixture
def make_engine(log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    """Make engines whose scheduler is hooked, with a writer that tests need not wait for."""
    monkeypatch.setattr("bayes_sched_profiler.writer.PERIOD_S", 0.01)
    engines: list[Engine] = []

    def make(*, scheduler_class: type[Any] | None = None, **settings: Any) -> Engine:
        fuse = Fuse()
        base = scheduler_class or make_scheduler_class()
        settings = {"log": str(log)} | settings
        Hook(partial(start_recorder, settings=Settings(**settings), fuse=fuse), fuse).wrap(base)
        engine = Engine(base(), Path(settings["log"]), fuse)
        engines.append(engine)
        return engine

    yield make
    while engines:  # ends the writers, as the end of an engine does
        engines.pop().scheduler = None
    gc.collect()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    """One engine with a hooked scheduler."""
    return make_engine()


@pytest.fixture
def fake_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a module under a name of vLLM's."""

    def put(name: str, **content: Any) -> None:
        module = type(sys)(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)

    return put
