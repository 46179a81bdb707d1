"""A fit compiled to tables: what a scheduler asks for every step."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, overload

import numpy as np
from numpy.typing import ArrayLike

from bayes_sched.arrays import Bools, Floats
from bayes_sched.errors import InputError
from bayes_sched.files import check_version, file_content, whole_file
from bayes_sched.predictor.monitor import Monitor, MonitorSettings, Observation
from bayes_sched.predictor.tables import LOGIT_END, StepLookup, Tables
from bayes_sched.region import LEAST, Region, region_of

FORMAT_NAME = "bayes-sched compiled predictor"
FORMAT_VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""
SMALLEST_PROBABILITY = 1e-5
"""Quantiles are tabulated from this to 1 minus this."""

_NUMBERS = (float, int, np.integer, np.floating)
assert 1.0 / (1.0 + math.exp(LOGIT_END)) < SMALLEST_PROBABILITY

_SHAPES = ("positions", "logits")  # kept in single precision: most of the file, and smooth
_NUM_FILLING = 20_000
_ZIP_MAGIC = b"PK\x03\x04"
_MAKE_ONE = "give a predictor.npz made by compile_predictor.py"
_AGAIN = "compile the fit again"

type Number = float | np.integer | np.floating


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The fit that a predictor was compiled from; it survives a round trip through JSON unchanged."""

    name: str
    model: str
    noise: str
    model_sha256: str
    labels: Mapping[str, str]
    traces: tuple[str, ...]
    trace_sha256: str
    rows_used: int
    num_draws: int
    converged: bool
    fitted_at: str
    bayes_sched_version: str
    region_text: str
    errors: Mapping[str, float]
    """The largest of the tables against the same draws, inside the region: ``mean`` and ``quantile``
    (relative, 0.001 to 0.999), ``probability`` (absolute), ``tail`` (relative, of the smaller one)."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Return what JSON kept; ValueError where a field is missing or not one of ours."""
        if set(values) != {field.name for field in fields(cls)} or not isinstance(values["converged"], bool):
            raise ValueError("its description of the fit is damaged")
        return cls(**{**values, "traces": tuple(values["traces"])})


class Predictor:
    """The posterior predictive distribution of a step's latency, from tables.

    It needs numpy alone, answers for one step in microseconds (numbers in, a number out) and for arrays of
    them at once (anything that broadcasts in, an array out). All latencies are in ms.

    A step has at least one request and at least as many tokens as requests, else
    :class:`~bayes_sched.errors.InputError` is raised; so it is beyond the tables, which reach some way past
    the steps of the trace (:attr:`max_batch_size`, :attr:`max_total_tokens`). Answers for steps that the
    trace does not cover are extrapolations, and :meth:`extrapolation` says so.

    :meth:`observe` takes in what the server did. It corrects the answers by the server's present level
    (unless the settings say otherwise) and raises an alarm when the fit no longer describes the server; see
    :attr:`monitor`. It is not made for several threads at once.

    Parameters
    ----------
    tables : Tables
    region : Region
        The (B, S) region that the trace covers.
    provenance : Provenance
    settings : MonitorSettings, optional
    """

    def __init__(
        self,
        tables: Tables,
        region: Region,
        provenance: Provenance,
        *,
        settings: MonitorSettings | None = None,
    ) -> None:
        self._tables, self.region, self.provenance = tables, region, provenance
        self.max_batch_size, self.max_total_tokens = (
            float(end) for end in np.floor(np.exp(tables.ends) * (1.0 + 1e-12))
        )
        self._lookup = StepLookup(tables)
        self.monitor = Monitor(self._lookup, settings or MonitorSettings())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, settings: MonitorSettings | None = None) -> Predictor:
        """Read a predictor written by :meth:`save`. Nothing in the file is executed.

        Raises
        ------
        InputError
            The file is missing, no predictor, damaged or of a later format.
        """
        return cls(*_read(Path(path)), settings=settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the predictor to a file, atomically; what was observed is not kept.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        _write(Path(path), self._tables, self.region, self.provenance)

    @property
    def converged(self) -> bool:
        """Whether the fit passed its convergence gate."""
        return self.provenance.converged

    @property
    def level(self) -> float:
        """Factor on every latency: 1 until steps are observed, and if the level is not to be followed."""
        return self.monitor.level if self.monitor.settings.follow_level else 1.0

    @overload
    def mean_latency(self, batch_size: Number, total_tokens: Number) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def mean_latency(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Floats: ...
    def mean_latency(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> float | Floats:
        """Return the mean latency, ms: the mean over the posterior."""
        if isinstance(batch_size, _NUMBERS) and isinstance(total_tokens, _NUMBERS):
            self._check(batch_size, total_tokens)
            return self.level * self._lookup.mean(float(batch_size), float(total_tokens))
        shape, (b, s) = self._arrays(batch_size, total_tokens)
        return (self.level * self._tables.mean(b, s)).reshape(shape)

    @overload
    def quantile(self, batch_size: Number, total_tokens: Number, q: float) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def quantile(self, batch_size: ArrayLike, total_tokens: ArrayLike, q: float) -> Floats: ...
    def quantile(self, batch_size: ArrayLike, total_tokens: ArrayLike, q: float) -> float | Floats:
        """Return the latency that a step stays below with probability `q`, ms, at least 0.

        Parameters
        ----------
        batch_size, total_tokens : float or array-like
        q : float
            From 0.00001 to 0.99999.
        """
        if not SMALLEST_PROBABILITY <= q <= 1.0 - SMALLEST_PROBABILITY:
            raise InputError(f"q = {q!r}: give a probability from {SMALLEST_PROBABILITY:.5f} to 0.99999")
        if isinstance(batch_size, _NUMBERS) and isinstance(total_tokens, _NUMBERS):
            self._check(batch_size, total_tokens)
            return self.level * self._lookup.quantile(float(batch_size), float(total_tokens), q)
        shape, (b, s) = self._arrays(batch_size, total_tokens)
        return (self.level * self._tables.quantile(b, s, q)).reshape(shape)

    @overload
    def probability_below(self, batch_size: Number, total_tokens: Number, latency_ms: Number) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def probability_below(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, latency_ms: ArrayLike
    ) -> Floats: ...
    def probability_below(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, latency_ms: ArrayLike
    ) -> float | Floats:
        """Return the probability that a step takes at most `latency_ms`."""
        if (
            isinstance(batch_size, _NUMBERS)
            and isinstance(total_tokens, _NUMBERS)
            and isinstance(latency_ms, _NUMBERS)
        ):
            self._check(batch_size, total_tokens)
            if latency_ms != latency_ms:
                raise InputError("latency_ms is NaN: give a latency in ms")
            limit_ms = float(latency_ms) / self.level
            return self._lookup.probability_below(float(batch_size), float(total_tokens), limit_ms)
        shape, (b, s, x) = self._arrays(batch_size, total_tokens, latency_ms)
        if np.isnan(x).any():
            raise InputError("latency_ms holds NaN: give a latency in ms")
        return self._tables.probability_below(b, s, x / self.level).reshape(shape)

    @overload
    def extrapolation(self, batch_size: Number, total_tokens: Number) -> bool: ...  # type: ignore[overload-overlap]
    @overload
    def extrapolation(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Bools: ...
    def extrapolation(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> bool | Bools:
        """Return whether a step lies outside what the trace covers."""
        if isinstance(batch_size, _NUMBERS) and isinstance(total_tokens, _NUMBERS):
            self._check(batch_size, total_tokens)
            return not self.region.contains_step(float(batch_size), float(total_tokens))
        shape, (b, s) = self._arrays(batch_size, total_tokens)
        return np.logical_not(self.region.contains(b, s)).reshape(shape)

    def observe(self, batch_size: Number, total_tokens: Number, latency_ms: Number) -> Observation:
        """Take in the latency of one step that the server has done.

        Steps outside the region, and beyond the tables, are counted and change nothing else.

        Raises
        ------
        InputError
            The step is impossible or its latency is not a positive number.
        """
        if not 0.0 < latency_ms < math.inf:
            raise InputError(f"latency_ms = {latency_ms!r}: give a positive number of ms")
        if not 1.0 <= batch_size <= total_tokens < math.inf:
            self._refuse(float(batch_size), float(total_tokens))
        if batch_size > self.max_batch_size or total_tokens > self.max_total_tokens:
            self.monitor.num_outside += 1
            return Observation(math.nan, math.nan, False, True, self.monitor.alarm)
        b, s = float(batch_size), float(total_tokens)
        outside = not self.region.contains_step(b, s)
        return self.monitor.observe(b, s, float(latency_ms), extrapolation=outside)

    def _check(self, batch_size: Number, total_tokens: Number) -> None:
        if not 1.0 <= batch_size <= total_tokens <= self.max_total_tokens or batch_size > self.max_batch_size:
            self._refuse(float(batch_size), float(total_tokens))

    def _arrays(self, *values: ArrayLike) -> tuple[tuple[int, ...], list[Floats]]:
        """Return the shape of some values and the values as arrays of one dim, the step's checked."""
        try:
            arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in values))
        except (TypeError, ValueError) as error:
            raise InputError(f"a step is made of numbers that go together ({error})") from error
        flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
        b, s = flat[:2]
        is_fine = (b >= 1.0) & (b <= s) & (b <= self.max_batch_size) & (s <= self.max_total_tokens)
        if not is_fine.all():
            first = int(np.argmin(is_fine))
            self._refuse(float(b[first]), float(s[first]))
        return arrays[0].shape, flat

    def _refuse(self, batch_size: float, total_tokens: float) -> NoReturn:
        step = f"a step of {batch_size:g} requests and {total_tokens:g} tokens"
        if not 1.0 <= batch_size <= total_tokens:
            raise InputError(f"{step} is impossible: give at least one request, and a token for each")
        raise InputError(
            f"{step} is beyond the tables of {self.provenance.name}, which end at {self.max_batch_size:,.0f} "
            f"requests and {self.max_total_tokens:,.0f} tokens: ask the fit itself, or fit larger steps"
        )


def _write(path: Path, tables: Tables, region: Region, provenance: Provenance) -> None:
    about = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "fit": asdict(provenance)}
    text = json.dumps(about, ensure_ascii=False, allow_nan=False)
    arrays = {name: getattr(tables, name) for name in tables.names()}
    arrays |= {name: arrays[name].astype(np.float32) for name in _SHAPES}
    arrays |= {"region_cells": region.cells}
    arrays["about"] = np.frombuffer(text.encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with whole_file(path, what="the predictor") as temporary:
        temporary.write_bytes(content.getvalue())


def _read(path: Path) -> tuple[Tables, Region, Provenance]:
    """Read what :func:`_write` wrote. Nothing in the file is executed."""
    content = file_content(
        path, such_as="predictor.npz", missing="compile_predictor.py writes it", again=_AGAIN
    )
    if not content.startswith(_ZIP_MAGIC):
        raise InputError(f"{path}: not a compiled predictor; {_MAKE_ONE}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            about = json.loads(archive["about"].tobytes()) if "about" in archive else None
            if not isinstance(about, dict) or about.get("format") != FORMAT_NAME:
                raise InputError(f"{path}: an archive of arrays, but no compiled predictor; {_MAKE_ONE}")
            check_version(path, about.get("version"), known=FORMAT_VERSION, again=_AGAIN)
            arrays = {name: archive[name].astype(np.float64, casting="safe") for name in Tables.names()}
            tables = Tables(**arrays)
            region = _read_region(archive)
            provenance = Provenance.from_dict(about["fit"])
        problem = tables.problem() or _region_problem(region)
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds on a damaged file
        raise InputError(f"{path}: the file is damaged, perhaps cut short; {_AGAIN}") from error
    if problem:
        raise InputError(f"{path}: the file is damaged ({problem}); {_AGAIN}")
    return tables, region, provenance


def _read_region(archive: Mapping[str, Any]) -> Region:
    if "region_cells" in archive:
        return Region(archive["region_cells"])
    corners = archive["region_corners"]  # of a hull, as older files have it: all in it counts as seen
    shares = np.random.default_rng(0).dirichlet(np.ones(len(corners)), _NUM_FILLING)
    b, s = np.exp(np.vstack([corners, shares @ corners])).T
    return region_of(b, np.where(s < 1.05 * b, b, s), count=LEAST)


def _region_problem(region: Region) -> str:
    cells = region.cells
    is_fine = cells.ndim == 2 and cells.shape[1] == 3 and len(cells) >= 1
    is_fine = is_fine and bool(np.isfinite(cells).all() and (cells >= 1.0 - 1e-9).all())
    return "" if is_fine else "the region makes no sense"
