"""Fixtures of the recorder's tests."""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bayes_sched_vllm.recorder.hook import Fuse
from bayes_sched_vllm.recorder.plugin import Settings, attach

from tests.plugin.fake_vllm import make_scheduler_class


class Engine:
    """A hooked scheduler, its log, and what is known of the recorder inside."""

    def __init__(self, scheduler: Any, log: Path, fuse: Fuse) -> None:
        self.scheduler = scheduler
        self.log = log
        self.fuse = fuse

    @property
    def recorder(self) -> Any:
        """The scheduler's, once a step was scheduled."""
        return self.scheduler._bayes_sched_vllm_recorder

    def steps(self, count: int) -> list[dict[str, Any]]:
        """Wait until the log holds `count` steps and give them."""
        wait_for(lambda: self.log.exists() and len(self.log.read_bytes().splitlines()) >= count)
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def ids(self, count: int) -> list[int]:
        """Give the ids of these steps."""
        return [step["batch_id"] for step in self.steps(count)]

    def sidecar(self, **expected: object) -> None:
        """Wait until the side-car says so."""
        path = self.log.with_name(self.log.name + ".meta.json")
        wait_for(lambda: path.exists() and expected.items() <= json.loads(path.read_text()).items())


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
    monkeypatch.setattr("bayes_sched_vllm.recorder.writer.PERIOD_S", 0.01)
    monkeypatch.setattr("bayes_sched_vllm.recorder.writer.BACK_OFF_S", 0.1)
    engines: list[Engine] = []

    def make(scheduler_class: type[Any] | None = None, **settings: Any) -> Engine:
        fuse = Fuse()
        base = scheduler_class or make_scheduler_class()
        attach(base, Settings(log=str(log), **settings), fuse)
        engines.append(Engine(base(), log, fuse))
        return engines[-1]

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
