"""A fit compiled to tables: what a scheduler asks for every step."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from bayes_sched.arrays import Bools, Floats
from bayes_sched.errors import InputError
from bayes_sched.files import check_version, file_content, whole_file
from bayes_sched.predictor.monitor import Calibration, Monitor, MonitorSettings, Observation
from bayes_sched.predictor.tables import (
    LOGIT_END,
    NODES,
    Distribution,
    Loads,
    StepLookup,
    Tables,
    logit_below,
)
from bayes_sched.region import ALIKE, LEAST, Region, region_of

FORMAT_NAME = "bayes-sched compiled predictor"
FORMAT_VERSION = 2
"""Raised whenever a reader of the version before could misread a file."""
SMALLEST_PROBABILITY = 1e-5
"""Quantiles are tabulated from this to 1 minus this."""

_NUMBERS = (float, int, np.integer, np.floating)
assert 1.0 / (1.0 + math.exp(LOGIT_END)) < SMALLEST_PROBABILITY

_NUM_FILLING = 20_000
_ZIP_MAGIC = b"PK\x03\x04"
_MAKE_ONE = "give a predictor.npz made by compile_predictor.py"
_AGAIN = "compile the fit again"

KINDS = ("decode", "prefill")
"""Kinds of steps, each with tables: those with as many tokens as requests, and those with more."""
GIVEN = "_given"
"""Ending of the names of tables for steps whose loads are given; others integrate over the trace's."""
_PAIRS, _PREFILLS = "prefill_pairs", "num_prefill_reqs"

type Number = float | np.integer | np.floating


class Given[T](TypedDict, total=False):
    """What may be told of a step besides requests and tokens; names are those of a trace's columns."""

    context_tokens: T | None
    """Tokens that are in the KV cache already, of all requests together."""
    prefill_pairs: T | None
    """Query-key pairs of the prefill chunks: c tokens behind k cached ones have c k + c (c + 1) / 2."""
    kv_cache_usage: T | None
    """Share of the KV cache in use."""
    num_prefill_reqs: T | None
    """Requests in prefill; where there is one, the step counts as one with prefill even if S = B."""


_GIVEN = Given.__annotations__.keys()


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
    (relative, 0.001 to 0.999), ``probability`` (absolute), ``tail`` (relative, of the smaller one). With
    ``integrated_`` before, where the model has loads: of steps whose loads are not given, what 95 % of the
    sizes in the trace stay below."""
    loads: Mapping[str, float] = field(default_factory=dict)
    """What the model asks of a step besides requests and tokens, and the most of it seen, a request."""
    drift: Mapping[str, float] = field(default_factory=dict)
    """What the monitor learned from the trace: as :class:`~bayes_sched.predictor.monitor.Calibration`."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """Return what JSON kept; ValueError where a field is missing or not one of ours."""
        later = {"loads", "drift"}
        names = {field.name for field in fields(cls)}
        if not names - later <= set(values) <= names or not isinstance(values["converged"], bool):
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

    What a fit's model asks of a step besides requests and tokens (:attr:`loads`) may be given to every method
    by the names of :class:`Given`, all of it or none; ``prefill_pairs`` of a step without prefill is 0. Where
    it is not given, answers are integrated over what the trace shows at such steps. What the model does not
    ask for changes nothing.

    :meth:`observe` takes in what the server did. It corrects the answers by the server's present level
    (unless the settings say otherwise) and raises an alarm when the fit no longer describes the server; see
    :attr:`monitor`. It is not made for several threads at once.

    Parameters
    ----------
    tables : mapping of str to Tables
        Of each of `KINDS`, and where the model has loads of each with `GIVEN`.
    region : Region
        The (B, S) region that the trace covers.
    provenance : Provenance
    settings : MonitorSettings, optional
    """

    def __init__(
        self,
        tables: Mapping[str, Tables],
        region: Region,
        provenance: Provenance,
        *,
        settings: MonitorSettings | None = None,
    ) -> None:
        self._tables, self.region, self.provenance = tables, region, provenance
        self.max_batch_size, self.max_total_tokens = (
            float(np.floor(np.exp(axis[-1]) * (1.0 + 1e-12)))
            for axis in (tables["prefill"].fine_b, tables["prefill"].fine_s)
        )
        self.loads = tuple(provenance.loads)
        self._lookups = [tables[kind].lookup for kind in KINDS]
        self.monitor = Monitor(settings or MonitorSettings(), Calibration(**provenance.drift))

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

    @property
    def token_nodes(self) -> Floats:
        """Numbers of tokens between which answers for steps with prefill are smooth, rising."""
        return np.rint(np.exp(self._tables["prefill"].fine_s))

    @overload
    def mean_latency(  # type: ignore[overload-overlap]
        self, batch_size: Number, total_tokens: Number, **given: Unpack[Given[Number]]
    ) -> float: ...
    @overload
    def mean_latency(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, **given: Unpack[Given[ArrayLike]]
    ) -> Floats: ...
    def mean_latency(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, **given: Unpack[Given[ArrayLike]]
    ) -> float | Floats:
        """Return the mean latency, ms: the mean over the posterior."""
        if _are_numbers(batch_size, total_tokens, given):
            lookup, b, s, loads = self._one(batch_size, total_tokens, given)
            return self.level * lookup.mean(b, s, loads)
        return self.level * self._many(given, Tables.mean, batch_size, total_tokens)

    @overload
    def quantile(  # type: ignore[overload-overlap]
        self, batch_size: Number, total_tokens: Number, q: float, **given: Unpack[Given[Number]]
    ) -> float: ...
    @overload
    def quantile(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, q: float, **given: Unpack[Given[ArrayLike]]
    ) -> Floats: ...
    def quantile(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, q: float, **given: Unpack[Given[ArrayLike]]
    ) -> float | Floats:
        """Return the latency that a step stays below with probability `q`, ms, at least 0.

        Parameters
        ----------
        batch_size, total_tokens : float or array-like
        q : float
            From 0.00001 to 0.99999.
        **given : float or array-like
            As of :class:`Given`.
        """
        if not SMALLEST_PROBABILITY <= q <= 1.0 - SMALLEST_PROBABILITY:
            raise InputError(f"q = {q!r}: give a probability from {SMALLEST_PROBABILITY:.5f} to 0.99999")
        if _are_numbers(batch_size, total_tokens, given):
            lookup, b, s, loads = self._one(batch_size, total_tokens, given)
            return self.level * lookup.quantile(b, s, q, loads)

        def ask(tables: Tables, b: Floats, s: Floats, loads: Floats) -> Floats:
            return tables.quantile(b, s, q, loads)

        return self.level * self._many(given, ask, batch_size, total_tokens)

    @overload
    def probability_below(  # type: ignore[overload-overlap]
        self, batch_size: Number, total_tokens: Number, latency_ms: Number, **given: Unpack[Given[Number]]
    ) -> float: ...
    @overload
    def probability_below(
        self,
        batch_size: ArrayLike,
        total_tokens: ArrayLike,
        latency_ms: ArrayLike,
        **given: Unpack[Given[ArrayLike]],
    ) -> Floats: ...
    def probability_below(
        self,
        batch_size: ArrayLike,
        total_tokens: ArrayLike,
        latency_ms: ArrayLike,
        **given: Unpack[Given[ArrayLike]],
    ) -> float | Floats:
        """Return the probability that a step takes at most `latency_ms`."""
        if _are_numbers(batch_size, total_tokens, given) and isinstance(latency_ms, _NUMBERS):
            lookup, b, s, loads = self._one(batch_size, total_tokens, given)
            if latency_ms != latency_ms:
                raise InputError("latency_ms is NaN: give a latency in ms")
            if latency_ms < 0.0:
                return 0.0
            logit = logit_below(lookup.distribution(b, s, loads), float(latency_ms) / self.level)
            return 1.0 / (1.0 + math.exp(-logit))
        if np.isnan(latency_ms).any():
            raise InputError("latency_ms holds NaN: give a latency in ms")
        return self._many(given, Tables.probability_below, batch_size, total_tokens, latency_ms)

    @overload
    def extrapolation(  # type: ignore[overload-overlap]
        self, batch_size: Number, total_tokens: Number, **given: Unpack[Given[Number]]
    ) -> bool: ...
    @overload
    def extrapolation(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, **given: Unpack[Given[ArrayLike]]
    ) -> Bools: ...
    def extrapolation(
        self, batch_size: ArrayLike, total_tokens: ArrayLike, **given: Unpack[Given[ArrayLike]]
    ) -> bool | Bools:
        """Return whether a step lies outside what the trace covers: in size, or in loads a request."""
        if _are_numbers(batch_size, total_tokens, given):
            _, b, s, loads = self._one(batch_size, total_tokens, given)
            return self._is_outside(b, s, loads)
        shape, _, flat, table = self._arrays(given, batch_size, total_tokens)
        seen = self.region.contains(*flat)
        for load, most in zip(table, self.provenance.loads.values(), strict=False):
            seen &= load <= ALIKE * most * flat[0]
        return np.logical_not(seen).reshape(shape)

    def observe(
        self, batch_size: Number, total_tokens: Number, latency_ms: Number, **given: Unpack[Given[Number]]
    ) -> Observation:
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
        step, is_outside = self.step(batch_size, total_tokens, given)
        return self.monitor.observe(step, float(latency_ms), extrapolation=is_outside)

    def step(
        self, batch_size: Number, total_tokens: Number, given: Mapping[str, Any]
    ) -> tuple[Distribution, bool]:
        """Return what the monitor asks of a step, and whether it is an extrapolation."""
        lookup, b, s, loads = self._one(batch_size, total_tokens, given)
        return lookup.distribution(b, s, loads), self._is_outside(b, s, loads)

    def _is_outside(self, batch_size: float, total_tokens: float, loads: Loads) -> bool:
        if not self.region.contains_step(batch_size, total_tokens):
            return True
        seen = self.provenance.loads.values() if loads else ()
        return any(load > ALIKE * most * batch_size for load, most in zip(loads, seen, strict=True))

    def _one(
        self, batch_size: Any, total_tokens: Any, given: Mapping[str, Any]
    ) -> tuple[StepLookup, float, float, Loads]:
        """Return where to look up a step, and its checked values."""
        if not 1.0 <= batch_size <= total_tokens <= self.max_total_tokens or batch_size > self.max_batch_size:
            self._refuse(float(batch_size), float(total_tokens))
        b, s = float(batch_size), float(total_tokens)
        if not given:
            return self._lookups[s > b], b, s, ()
        has_prefill = s > b or (given.get(_PREFILLS) or 0.0) > 0.0
        loads = tuple([float(value) for value in self._loads(given, has_prefill)])
        if not loads:
            return self._lookups[has_prefill], b, s, ()
        if not (min(loads) >= 0.0 and sum(loads) < math.inf):  # NaN fails the one or the other
            raise InputError(f"{', '.join(self.loads)}: give numbers that are not negative")
        return self._tables[KINDS[has_prefill] + GIVEN].lookup, b, s, loads

    def _loads(self, given: Mapping[str, Any], has_prefill: bool) -> tuple[Any, ...]:
        """Return the loads of steps in order, none where none is given; InputError where one lacks."""
        if not given.keys() <= _GIVEN:
            wrong = min(given.keys() - _GIVEN)
            raise InputError(f"{wrong} is nothing that a step is asked for: {', '.join(sorted(_GIVEN))}")
        found = [given.get(name) for name in self.loads]
        is_none = [value is None for value in found]
        if all(is_none):
            return ()
        if not has_prefill and _PAIRS in self.loads and is_none[place := self.loads.index(_PAIRS)]:
            found[place], is_none[place] = 0.0, False
        if any(is_none):
            raise InputError(f"this fit asks of a step with prefill all of {', '.join(self.loads)}, or none")
        return tuple(found)

    def _many(self, given: Mapping[str, Any], ask: Callable[..., Floats], *values: ArrayLike) -> Floats:
        """Return the answers of the tables for arrays that broadcast, B and S first, latencies at level 1."""
        shape, has_prefill, (b, s, *others), loads = self._arrays(given, *values)
        others = [x / self.level for x in others]
        result = np.empty(b.size)
        for kind, is_kind in zip(KINDS, (~has_prefill, has_prefill), strict=True):
            rows = np.flatnonzero(is_kind)
            if rows.size:
                tables = self._tables[kind + GIVEN if len(loads) else kind]
                result[rows] = ask(tables, *(x[rows] for x in (b, s, *others)), loads[:, rows])
        return result.reshape(shape)

    def _arrays(
        self, given: Mapping[str, Any], *values: ArrayLike
    ) -> tuple[tuple[int, ...], Bools, list[Floats], Floats]:
        """Return a shape, whether steps have prefill, and values and loads, checked and flat."""
        try:
            told = {name: np.asarray(value, np.float64) for name, value in given.items() if value is not None}
            arrays = np.broadcast_arrays(*(np.asarray(value, np.float64) for value in values), *told.values())
        except (TypeError, ValueError) as error:
            raise InputError(f"a step is made of numbers that go together ({error})") from error
        flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
        b, s = flat[:2]
        is_fine = (b >= 1.0) & (b <= s) & (b <= self.max_batch_size) & (s <= self.max_total_tokens)
        if not is_fine.all():
            first = int(np.argmin(is_fine))
            self._refuse(float(b[first]), float(s[first]))
        told = dict(zip(told, flat[len(values) :], strict=True))
        has_prefill = (s > b) | (told.get(_PREFILLS, np.zeros(1)) > 0.0)
        loads = self._loads(told, bool(has_prefill.any()))
        table = (
            np.stack([np.broadcast_to(load, b.shape) for load in loads]) if loads else np.empty((0, b.size))
        )
        if not (np.isfinite(table) & (table >= 0.0)).all():
            raise InputError(f"{', '.join(self.loads)}: give numbers that are not negative")
        return arrays[0].shape, has_prefill, flat[: len(values)], table

    def _refuse(self, batch_size: float, total_tokens: float) -> NoReturn:
        step = f"a step of {batch_size:g} requests and {total_tokens:g} tokens"
        if not 1.0 <= batch_size <= total_tokens:
            raise InputError(f"{step} is impossible: give at least one request, and a token for each")
        raise InputError(
            f"{step} is beyond the tables of {self.provenance.name}, which end at {self.max_batch_size:,.0f} "
            f"requests and {self.max_total_tokens:,.0f} tokens: ask the fit itself, or fit larger steps"
        )


def _are_numbers(batch_size: object, total_tokens: object, given: Mapping[str, object]) -> bool:
    if not (isinstance(batch_size, _NUMBERS) and isinstance(total_tokens, _NUMBERS)):
        return False
    return not given or all(value is None or isinstance(value, _NUMBERS) for value in given.values())


def _write(path: Path, tables: Mapping[str, Tables], region: Region, provenance: Provenance) -> None:
    about = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "fit": asdict(provenance)}
    text = json.dumps(about, ensure_ascii=False, allow_nan=False)
    arrays = {
        f"{kind}_{name}": getattr(table, name).astype(np.float64 if name in NODES else np.float32)
        for kind, table in tables.items()
        for name in Tables.names()
    }
    arrays |= {"region_cells": region.cells}
    arrays["about"] = np.frombuffer(text.encode(), dtype=np.uint8)
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    with whole_file(path, what="the predictor") as temporary:
        temporary.write_bytes(content.getvalue())


def _read(path: Path) -> tuple[dict[str, Tables], Region, Provenance]:
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
            provenance = Provenance.from_dict(about["fit"])
            tables = _read_tables(archive, provenance)
            region = _read_region(archive)
        problem = next(filter(None, (table.problem() for table in tables.values())), _region_problem(region))
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds on a damaged file
        raise InputError(f"{path}: the file is damaged, perhaps cut short; {_AGAIN}") from error
    if problem:
        raise InputError(f"{path}: the file is damaged ({problem}); {_AGAIN}")
    return tables, region, provenance


def _read_tables(archive: Mapping[str, Any], provenance: Provenance) -> dict[str, Tables]:
    def read(name: str) -> Floats:
        found: Floats = archive[name].astype(np.float64, casting="safe")
        return found

    if "ends" not in archive:
        kinds = [kind + end for end in ("", *([GIVEN] if provenance.loads else [])) for kind in KINDS]
        return {k: Tables(**{name: read(f"{k}_{name}") for name in Tables.names()}) for k in kinds}
    # Older files have one table over an even grid for all steps.
    log_mean, positions = read("log_mean"), read("positions")
    nodes = [
        np.linspace(0.0, end, size)
        for table in (log_mean, positions)
        for end, size in zip(read("ends"), table.shape[:2], strict=True)
    ]
    relative = np.exp(2.0 * (read("log_width") - log_mean))
    rest = np.zeros_like(log_mean), np.empty((0, *log_mean.shape))
    fine_b, fine_s, coarse_b, coarse_s = nodes
    tables = Tables(fine_b, fine_s, coarse_b, coarse_s, log_mean, relative, *rest, positions)
    return dict.fromkeys(KINDS, tables)


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
