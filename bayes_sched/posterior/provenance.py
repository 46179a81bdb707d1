"""Where a fit comes from: trace, cleaning, model, priors, sampler and versions, kept with it as JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
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
    from bayes_sched.sampling.nuts import SamplerSettings  # which imports PyMC and nutpie: seconds

FORMAT_MARKER = "bayes_sched_format"
"""Root attribute by which a file is known as one of ours."""
FORMAT_NAME = "fitted model"
"""Value of that attribute for a fit."""
FORMAT_VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

_LATER = ("prior_from", "thinned_to")  # fields that files of this format did not have from the beginning
_PACKAGES = ("arviz", "numba", "numpy", "nutpie", "pandas", "pymc", "pytensor", "scipy", "xarray")

type Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which model file a posterior belongs to: the name is a shipped model's, or that of a foreign file."""

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
    """Where a fit comes from and what its gate said; it survives a round trip through JSON unchanged.

    Attributes
    ----------
    name : str
    model, noise : ModelIdentity, str
        The model, and which of its noise options.
    priors, prior_from : Priors, str or None
        The priors used, the noise parameters' among them; whose population took the place of those of what
        data identify, in words.
    trace_sha256, traces, bad_lines : str, tuple of TraceIdentity, mapping of str to int
        One digest over all traces; the files; their unusable lines by reason.
    rows, cleaning : RowCounts, CleaningRecord
    thinned_to : int or None
        The limit that the steps were thinned to; None where they needed no thinning.
    converged, problems : bool, tuple of str
        Whether the convergence gate passed, and what it found.
    warnings : tuple of str
        What a person should know of the traces, their cleaning and the fit.
    labels : mapping of str to str
        ``gpu`` and ``llm`` where they are known.
    sampler, timings_s : mapping
        ``name``, ``draws``, ``tune``, ``chains``, ``seed`` and whatever else the sampler was given or said;
        seconds by stage, such as ``compile``, ``sample``, ``total``.
    created_at, command, bayes_sched_version, package_versions
        ISO 8601, UTC; the command line, or None; what made the fit.
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
    thinned_to: int | None = None
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
                value = msgspec.to_builtins(getattr(self, name), enc_hook=_encoded)
                attrs[name] = json.dumps(value, ensure_ascii=False, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise InputError(f"metadata field {name} cannot be written as JSON: {error}") from error
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
            metadata = msgspec.convert(values, cls, dec_hook=_decoded)
        except (msgspec.ValidationError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise InputError(f"its description of the fit is damaged ({error})") from error
        rows = metadata.rows
        # A file that does not say how its steps were thinned is that of its own number of steps.
        unsaid = "thinned_to" not in attrs and rows.used < rows.cleaned
        return replace(
            metadata,
            thinned_to=rows.used if unsaid else metadata.thinned_to,
            format_version=int(attrs["format_version"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class FitDescription:
    """What a result keeps of the fit that it was found with: warnings of loading it too, what was seen."""

    metadata: FitMetadata
    warnings: tuple[str, ...]
    region: Region

    @property
    def name(self) -> str:
        """Name of the fit."""
        return self.metadata.name

    @property
    def labels(self) -> Mapping[str, str]:
        """``gpu`` and ``llm`` where they are known."""
        return self.metadata.labels

    @property
    def converged(self) -> bool:
        """Whether the convergence gate passed when the fit was made."""
        return self.metadata.converged

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to beware of: that it has not converged, and its warnings."""
        return (*(() if self.converged else ("The fit has not converged.",)), *self.warnings)

    @property
    def source_text(self) -> str:
        """How many steps it was made from, and of which trace."""
        return f"The fit: {self.metadata.rows.used:,} steps, trace SHA-256 `{self.metadata.trace_sha256}`."


def _json_fields() -> tuple[str, ...]:
    return tuple(f.name for f in fields(FitMetadata) if f.name != "format_version")


def _encoded(value: Any) -> Any:
    if isinstance(value, Priors):
        return value.to_dict()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is neither number nor text")


def _decoded(kind: type, value: Any) -> Any:
    return Priors.from_dict(value) if kind is Priors else value


def _parsed(name: str, attrs: Mapping[str, Any]) -> Any:
    if name not in attrs and name in _LATER:
        return None
    if name not in attrs:
        raise InputError(f"its description of the fit is damaged (no {name})")
    try:
        return json.loads(attrs[name])
    except (TypeError, ValueError) as error:
        raise InputError(f"its description of the fit is damaged ({name} is not JSON)") from error


def open_provenance(
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
    thinned_to: int | None = None,
) -> FitMetadata:
    """Return the metadata of a fit that has yet to be sampled; its gate has not passed.

    Built before the sampling, so that what cannot be written is found before it and not after it. Labels and
    name go before the trace's own, `warnings` come after its own.
    """
    source = trace if isinstance(trace, Trace) else None
    given = {key: readable(text) for key, text in (labels or {}).items() if text}
    metadata = FitMetadata(
        name=name or ("steps" if source is None else source.name),
        model=ModelIdentity(
            name=model.path.stem if model.shipped else readable(model.path.name),
            sha256=model.sha256,
            shipped=model.shipped,
        ),
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
        labels={**(source.labels if source else {}), **given},
        traces=_sources(source) if source else (),
        bad_lines=dict(source.bad_lines.counts) if source else {},
        warnings=(*map(readable, source.warnings if source else ()), *warnings),
        sampler={
            "name": settings.sampler,
            **{key: getattr(settings, key) for key in ("draws", "tune", "chains", "seed", "target_accept")},
        },
        package_versions=package_versions(),
        command=None if command is None else readable(command),
        prior_from=None if priors.population is None else priors.population.text,
        thinned_to=thinned_to,
    )
    metadata.to_attrs()
    return metadata


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages whose numbers a fit depends on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def plain(mapping: Mapping[Any, Any]) -> dict[str, Scalar]:
    """Return values that JSON can say: a number that is none becomes None, several become words."""
    return {str(key): _scalar(value) for key, value in mapping.items()}


def _scalar(value: Any) -> Scalar:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return ", ".join(f"{item:.4g}" if isinstance(item, float) else str(item) for item in value)


def readable(text: str) -> str:
    """Replace the bytes of a file name that are no text: netCDF and JSON hold UTF-8 only."""
    return os.fsencode(text).decode("utf-8", "replace")


def _sources(trace: Trace) -> tuple[TraceIdentity, ...]:
    """Return the files by their base names: a folder says where somebody keeps things, not what they are."""
    names = ("sha256", "format", "num_lines", "num_steps")
    return tuple(
        TraceIdentity(path=readable(Path(s.path).name), **{name: getattr(s, name) for name in names})
        for s in trace.sources
    )


def _digest(steps: pd.DataFrame) -> str:
    values = steps[["batch_size", "total_tokens", "latency_ms"]].to_numpy(np.float64)
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
