"""Fixtures and small builders that several test modules share."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from bayes_sched.comparison.compare import Comparison
    from bayes_sched.posterior.fitted import FittedModel

ROOT = Path(__file__).resolve().parent.parent


# How quickly the machine makes an example is no property of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

# A shell ignores interrupts on behalf of what it runs in the background; some tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_traces() -> Path:
    """Folder of the third-party traces, which are not part of the repository."""
    folder = ROOT.parent / "shared" / "traces"
    if not folder.is_dir():
        pytest.skip("the third-party traces are not beside the repository (../shared/traces)")
    return folder


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., Path]:
    """Write lines (bytes, text, or records that become JSON) to a file, each ended with a newline."""

    def write(lines: Iterable[bytes | str | dict[str, Any]], name: str = "trace.jsonl") -> Path:
        path = tmp_path / name
        path.write_bytes(b"".join(as_bytes(line) + b"\n" for line in lines))
        return path

    return write


@pytest.fixture
def in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run commands where nobody keeps anything."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let figures be drawn, but not rendered: that is tested, and takes time, where reports are."""

    def save(_: object, folder: Path, name: str, *, with_svg: bool) -> tuple[Path, ...]:
        paths = tuple(folder / f"{name}.{kind}" for kind in ("png", "svg")[: 1 + with_svg])
        for path in paths:
            path.write_bytes(b"not rendered")
        return paths

    monkeypatch.setattr("bayes_sched.reports.plots.style.save_figure", save)


@pytest.fixture
def stubbed_sampling(in_an_empty_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let fits take no time, in an empty folder."""
    from bayes_sched.sampling import sample as sampling
    from tests.stub_sampling import stub_sample

    monkeypatch.setattr(sampling, "sample", stub_sample)


@pytest.fixture
def short_trace(write_lines: Callable[..., Path]) -> str:
    """Write a good trace, enough for a fit, into the empty folder; return its name."""
    from tests.stub_sampling import fit_records

    return write_lines(fit_records()).name


@pytest.fixture(scope="session")
def kept_fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: ``good``, which converged, ``bad``, which did not, and a file that is no fit."""
    from tests.synthetic_fit import server, synthetic_fit

    folder = tmp_path_factory.mktemp("work")
    for name, fit in {"good": server(), "bad": synthetic_fit(converged=False)}.items():
        place = folder / "results" / name
        place.mkdir(parents=True)
        fit.save(place / "posterior.nc")
    (folder / "results" / "posterior.nc").write_text("no fit")
    return folder


@pytest.fixture
def among_kept_fits(kept_fits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run commands where they are."""
    monkeypatch.chdir(kept_fits)


@pytest.fixture(scope="session")
def compared_fits() -> list[FittedModel]:
    """Fits of two servers: the first takes `comparison_fits.RATIO` of the time of the second."""
    from tests.comparison_fits import RATIO, server

    return [server(RATIO, name="fast", gpu="X100"), server(name="slow", gpu="Y50")]


@pytest.fixture(scope="session")
def comparison(compared_fits: list[FittedModel]) -> Comparison:
    """The two servers compared, with prices and a limit on steps."""
    from bayes_sched.comparison.compare import compare

    return compare(compared_fits, prices={"X100": 2.0, "slow": 1.0}, slo_ms=30.0, slo_quantile=0.9)


def known[T](value: T | None) -> T:
    """Return what has to be there."""
    assert value is not None
    return value


def as_bytes(line: bytes | str | dict[str, Any]) -> bytes:
    """Turn a line into bytes without its end."""
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line)).encode()


def documented_record(prefill: Iterable[int] = (512, 3), decode: int = 2, **changes: Any) -> dict[str, Any]:
    """One step in the documented schema; `changes` overwrite fields, a value of `...` removes one."""
    sizes = list(prefill)
    record: dict[str, Any] = {
        "batch_id": 7,
        "timestamp": 1703123456.5,
        "schedule_duration_ms": 0.5,
        "model_run_duration_ms": 45.25,
        "total_step_duration_ms": 45.75,
        "num_prefill_reqs": len(sizes),
        "num_decode_reqs": decode,
        "total_scheduled_tokens": sum(sizes) + decode,
        "prefill_chunk_sizes": sizes,
        "decode_chunk_sizes": [1] * decode,
        "num_waiting_reqs": 5,
        "num_running_reqs": 10,
        "kv_cache_usage": 0.75,
    }
    record |= changes
    return {field: value for field, value in record.items() if value is not ...}


def recorded_record(
    chunks: Iterable[int] = (1, 36, 987), computed: Iterable[int] = (5528, 1392, 176), **changes: Any
) -> dict[str, Any]:
    """One step in the recorded variant; `changes` as in `documented_record`."""
    sizes = list(chunks)
    record: dict[str, Any] = {
        "batch_id": 2910,
        "timestamp": 118371.25,
        "total_scheduled_tokens": sum(sizes),
        "chunk_sizes": sizes,
        "all_computed_tokens": list(computed),
        "all_cached_tokens": list(computed),
        "schedule_duration_ms": 0.75,
        "num_waiting_reqs": 1,
        "num_running_reqs": 3,
        "model_run_duration_ms": 119.5,
    }
    record |= changes
    return {field: value for field, value in record.items() if value is not ...}


def iteration_line(
    prefill: tuple[int, int] = (1, 512), decode: int = 19, latency_ms: float = 45.1, tail: str = ""
) -> str:
    """One iteration line of vLLM's own log."""
    return (
        f"INFO 11-22 04:01:02 [loggers.py:200] Engine 000: Iteration(516): {prefill[0]} context requests, "
        f"{prefill[1]} context tokens, {decode} generation requests, {decode} generation tokens, "
        f"iteration elapsed time: {latency_ms:.2f} ms{tail}"
    )
