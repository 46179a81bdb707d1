"""Fixtures of the tests with a real vLLM."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.plugin.real.running import Place, Server


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Python of an environment that holds vLLM and the recorder."""
    python = os.environ.get("BAYES_SCHED_VLLM_PYTHON")
    if not python:
        pytest.skip("needs BAYES_SCHED_VLLM_PYTHON=$(sh scripts/_vllm_venv.sh)")
    assert Path(python).exists(), f"BAYES_SCHED_VLLM_PYTHON={python} does not exist"
    return python


@pytest.fixture
def place(vllm_python: str, tmp_path: Path) -> Place:
    """A folder of its own for one test."""
    return Place.make(vllm_python, tmp_path / "place")


@pytest.fixture(scope="module")
def server(vllm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of a module: starting it takes a minute."""
    server = Server(Place.make(vllm_python, tmp_path_factory.mktemp("server") / "place"))
    yield server
    server.end()
