"""The account of a fit before its sampling: what goes in, with what settings, by which versions."""

from __future__ import annotations

import hashlib
import math
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sched.whole_file import VERSION
from bayes_sched.metadata import (
    CleaningRecord,
    FitMetadata,
    ModelIdentity,
    RowCounts,
    Scalar,
    TraceIdentity,
)
from bayes_sched.model import ModelFile
from bayes_sched.priors import Priors
from bayes_sched.trace import Cleaned, Trace

if TYPE_CHECKING:
    from bayes_sched.settings import SamplerSettings

_PACKAGES = ("arviz", "numba", "numpy", "nutpie", "pandas", "pymc", "pytensor", "scipy", "xarray")


def open_account(
    trace: Trace | pd.DataFrame,
    *,
    name: str | None,
    labels: Mapping[str, str] | None,
    model: ModelFile,
    noise: str,
    priors: Priors,
    cleaned: Cleaned,
    limits_ms: tuple[float, float],
    num_used: int,
    settings: SamplerSettings,
    warnings: tuple[str, ...],
    command: str | None,
) -> FitMetadata:
    """Return the metadata of a fit that has yet to be sampled.

    Built before the sampling, so that what cannot be written is found before it and not after it.

    Parameters
    ----------
    trace : Trace or DataFrame
    name : str, optional
        Name of the result; by default the trace's.
    labels : mapping of str to str, optional
        They go before the trace's own.
    model : ModelFile
    noise : str
    priors : Priors
    cleaned : Cleaned
    limits_ms : tuple of float
        Lower and upper limit of the cleaning.
    num_used : int
        Steps that are used.
    settings : SamplerSettings
    warnings : tuple of str
        They come after the trace's own.
    command : str, optional

    Returns
    -------
    FitMetadata
        ``converged`` is false, ``timings_s`` empty.

    Raises
    ------
    InputError
        Something cannot be written as JSON.
    """
    given = {key: readable(text) for key, text in (labels or {}).items() if text}
    metadata = FitMetadata(
        name=name or (trace.name if isinstance(trace, Trace) else "steps"),
        model=_identity(model),
        noise=noise,
        priors=priors,
        trace_sha256=trace.sha256 if isinstance(trace, Trace) else _digest(trace),
        rows=RowCounts(read=cleaned.num_before, cleaned=cleaned.num_after, used=num_used),
        cleaning=CleaningRecord(
            min_latency_ms=float(limits_ms[0]),
            max_latency_ms=float(limits_ms[1]),
            table=tuple(plain(row) for row in cleaned.table.to_dict("records")),
        ),
        converged=False,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        bayes_sched_version=VERSION,
        labels={**trace.labels, **given} if isinstance(trace, Trace) else given,
        traces=_sources(trace) if isinstance(trace, Trace) else (),
        bad_lines=dict(trace.bad_lines.counts) if isinstance(trace, Trace) else {},
        warnings=(*map(readable, trace.warnings if isinstance(trace, Trace) else ()), *warnings),
        sampler=_settings(settings),
        package_versions=package_versions(),
        command=None if command is None else readable(command),
        prior_from=None if priors.population is None else priors.population.text,
    )
    metadata.to_attrs()
    return metadata


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose numbers a fit depends on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def plain(mapping: Mapping[Any, Any]) -> dict[str, Scalar]:
    """Return values that JSON can say: a number that is none becomes None, several become words."""
    return {str(key): _scalar(value) for key, value in mapping.items()}


def readable(text: str) -> str:
    """Replace the bytes of a file name that are no text: netCDF and JSON hold UTF-8 only."""
    return os.fsencode(text).decode("utf-8", "replace")


def _identity(model: ModelFile) -> ModelIdentity:
    name = model.path.stem if model.shipped else readable(model.path.name)
    return ModelIdentity(name=name, sha256=model.sha256, shipped=model.shipped)


def _sources(trace: Trace) -> tuple[TraceIdentity, ...]:
    """Return the files by their base names: a folder says where somebody keeps things, not what they are."""
    return tuple(
        TraceIdentity(
            path=readable(Path(source.path).name),
            sha256=source.sha256,
            format=source.format,
            num_lines=source.num_lines,
            num_steps=source.num_steps,
        )
        for source in trace.sources
    )


def _digest(steps: pd.DataFrame) -> str:
    values = steps[["batch_size", "total_tokens", "latency_ms"]].to_numpy(np.float64)
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def _settings(settings: SamplerSettings) -> dict[str, Scalar]:
    return {
        "name": settings.sampler,
        "draws": settings.draws,
        "tune": settings.tune,
        "chains": settings.chains,
        "seed": settings.seed,
        "target_accept": settings.target_accept,
    }


def _scalar(value: Any) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)
