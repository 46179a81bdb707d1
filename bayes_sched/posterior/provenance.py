"""The account of a fit before its sampling: what goes in, with what settings, by which versions."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.files import VERSION
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import ModelFile
from bayes_sched.region import Region
from bayes_sched.trace.cleaning import Cleaned
from bayes_sched.trace.reader import Trace

if TYPE_CHECKING:
    from bayes_sched.sampling.nuts import SamplerSettings

FORMAT_MARKER = "bayes_sched_format"
"""Root attribute by which a file is known as one of ours."""
FORMAT_NAME = "fitted model"
"""Value of that attribute for a :class:`~bayes_sched.fitted.FittedModel`."""
FORMAT_VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

_LATER = ("prior_from",)  # fields that files of this format did not have from the beginning

type Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model file a posterior belongs to.

    Attributes
    ----------
    name : str
        Name of a shipped model, or the file name of a foreign one.
    sha256 : str
        Digest of the model file.
    shipped : bool
        Whether the file is one of the project's own; only these are loaded without being asked for.
    """

    name: str
    sha256: str
    shipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceIdentity:
    """One trace file: its base name, digest of its raw bytes, format, lines, and steps read from it."""

    path: str
    sha256: str
    format: str
    num_lines: int
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Steps read from the traces, left after cleaning, and used for the fit."""

    read: int
    cleaned: int
    used: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CleaningRecord:
    """The limits of the cleaning, ms, and what each rule removed (one mapping a rule)."""

    min_latency_ms: float
    max_latency_ms: float
    table: tuple[Mapping[str, Scalar], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FitMetadata:
    """The account of a fit; it survives a round trip through JSON unchanged.

    Attributes
    ----------
    name : str
        Name of the result.
    model : ModelIdentity
    noise : str
        Noise option of the model.
    priors : Priors
        The priors used, the noise parameters among them.
    trace_sha256 : str
        One digest over all traces.
    rows : RowCounts
    cleaning : CleaningRecord
    converged : bool
        Whether the convergence gate passed.
    created_at : str
        ISO 8601, UTC.
    bayes_sched_version : str
    labels : Mapping of str to str
        ``gpu`` and ``llm`` where they are known.
    traces : tuple of TraceIdentity
    bad_lines : Mapping of str to int
        Unusable lines of the traces by reason.
    warnings : tuple of str
        What a person should know of the traces, their cleaning and the fit.
    problems : tuple of str
        What the convergence gate found.
    sampler : Mapping of str to scalar
        ``name``, ``draws``, ``tune``, ``chains``, ``seed`` and whatever else the sampler was given.
    timings_s : Mapping of str to float
        Seconds by stage, such as ``compile``, ``sample``, ``total``.
    package_versions : Mapping of str to str
    command : str or None
        The command line that made the fit.
    prior_from : str or None
        Whose population took the place of the documented priors of what data identify, in words.
    format_version : int
    """

    name: str
    model: ModelIdentity
    noise: str
    priors: Priors
    trace_sha256: str
    rows: RowCounts
    cleaning: CleaningRecord
    converged: bool
    created_at: str
    bayes_sched_version: str
    labels: Mapping[str, str] = field(default_factory=dict)
    traces: tuple[TraceIdentity, ...] = ()
    bad_lines: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    sampler: Mapping[str, Scalar] = field(default_factory=dict)
    timings_s: Mapping[str, float] = field(default_factory=dict)
    package_versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    prior_from: str | None = None
    format_version: int = FORMAT_VERSION

    def to_attrs(self) -> dict[str, str | int]:
        """Return the attributes of the file's root: marker, format version, and a JSON string a field.

        Raises
        ------
        InputError
            A field holds something JSON cannot say (NaN or infinity, an array, an object).
        """
        attrs: dict[str, str | int] = {FORMAT_MARKER: FORMAT_NAME, "format_version": self.format_version}
        for name in _json_fields():
            try:
                attrs[name] = json.dumps(_plain(getattr(self, name)), ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                msg = f"metadata field {name} cannot be written as JSON: {error}"
                raise InputError(msg) from error
        return attrs

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> FitMetadata:
        """Return what :meth:`to_attrs` wrote.

        Raises
        ------
        InputError
            A field is missing or damaged.
        """
        values = {name: _parsed(name, attrs) for name in _json_fields()}
        try:
            values["model"] = ModelIdentity(**values["model"])
            values["priors"] = Priors.from_dict(values["priors"])
            values["traces"] = tuple(TraceIdentity(**row) for row in values["traces"])
            values["rows"] = RowCounts(**values["rows"])
            limits = values["cleaning"]
            values["cleaning"] = CleaningRecord(**{**limits, "table": tuple(limits["table"])})
            values["warnings"] = tuple(values["warnings"])
            values["problems"] = tuple(values["problems"])
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            msg = f"its description of the fit is damaged ({error})"
            raise InputError(msg) from error
        return cls(**values, format_version=int(attrs["format_version"]))


def _json_fields() -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(FitMetadata) if f.name != "format_version")


def _plain(value: Any) -> Any:
    if isinstance(value, Priors):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _parsed(name: str, attrs: Mapping[str, Any]) -> Any:
    if name not in attrs and name in _LATER:
        return None
    if name not in attrs:
        msg = f"its description of the fit is damaged (no {name})"
        raise InputError(msg)
    try:
        return json.loads(attrs[name])
    except (TypeError, ValueError) as error:
        msg = f"its description of the fit is damaged ({name} is not JSON)"
        raise InputError(msg) from error


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


@dataclass(frozen=True, kw_only=True, eq=False)
class FitDescription:
    """What a result keeps of the fit that it was found with.

    Attributes
    ----------
    metadata : FitMetadata
    warnings : tuple of str
        Those of the fit and of loading it.
    region : Region
        Where the trace has steps.
    """

    metadata: FitMetadata
    warnings: tuple[str, ...]
    region: Region

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to beware of: that it has not converged, and its warnings."""
        return (*(() if self.metadata.converged else ("The fit has not converged.",)), *self.warnings)

    @property
    def source_text(self) -> str:
        """How many steps it was made from, and of which trace."""
        return f"The fit: {self.metadata.rows.used:,} steps, trace SHA-256 `{self.metadata.trace_sha256}`."
