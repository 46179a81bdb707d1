"""The study: every contender on every split of every server."""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.checks import scores as scoring
from bayes_sched.errors import InputError
from bayes_sched.files import VERSION
from bayes_sched.format import records
from bayes_sched.steps import regime_masks
from bayes_sched.studies.forecasts import Contender, Forecast, Kept
from bayes_sched.studies.splits import SPLITS, Cut, Split, cut
from bayes_sched.trace.cleaning import clean_steps
from bayes_sched.trace.reader import Trace

METRICS = {
    "crps_ms": "continuous ranked probability score, ms (less is better)",
    "log_score": "mean log predictive density, 1/ms (more is better)",
    "mape": "mean absolute percentage error of the point prediction, a share",
    "ape_p95": "95th percentile of the absolute percentage error, a share",
    "r2": "1 - mean squared error / variance",
    "rmse_ms": "root mean squared error, ms",
    "mae_ms": "mean absolute error, ms",
    "bias_ms": "mean of predicted minus observed, ms",
    "coverage_50": "share of steps in the 50 % band",
    "coverage_90": "share of steps in the 90 % band",
    "coverage_99": "share of steps in the 99 % band",
    "width_90_ms": "mean width of the 90 % band, ms",
}
"""Names and meanings; beside them ``pit_0`` to ``pit_9``, shares of the PIT in tenths, and ``below_LEVEL``,
the shares of steps at or below each predictive quantile."""


def scores_of(forecast: Forecast, observed_ms: Floats) -> dict[str, float]:
    """Return every metric of a forecast; a log score only where there is a density.

    Parameters
    ----------
    forecast : Forecast
    observed_ms : ndarray, dims (row,)
    """
    quantiles = forecast.quantiles_ms
    found = {"crps_ms": float(scoring.crps(observed_ms, quantiles).mean())}
    if forecast.log_density is not None:
        found["log_score"] = float(forecast.log_density.mean())
    found |= scoring.point_scores(observed_ms, forecast.point_ms)
    for probability in scoring.BANDS:
        name = f"coverage_{100 * probability:.0f}"
        found[name] = scoring.coverage(observed_ms, quantiles, probability=probability)
    lower, upper = (scoring.at_level(quantiles, level) for level in scoring.BANDS[0.9])
    found["width_90_ms"] = float((upper - lower).mean())
    found |= {f"pit_{bin}": float(x) for bin, x in enumerate(scoring.pit_histogram(forecast.cdf))}
    below = zip(scoring.LEVELS, scoring.share_below(observed_ms, quantiles), strict=True)
    return found | {f"below_{level:g}": float(share) for level, share in below}


def score_table(forecast: Forecast, test: pd.DataFrame, *, max_train_tokens: float) -> pd.DataFrame:
    """Return ``regime``, ``rows``, ``metric`` and ``value`` for each regime that the steps hold.

    Parameters
    ----------
    forecast : Forecast
    test : DataFrame
        The steps forecast.
    max_train_tokens : float
        Tokens of the largest training step.
    """
    observed_ms = test["latency_ms"].to_numpy(np.float64)
    rows = [
        {"regime": name, "rows": int(mask.sum()), "metric": metric, "value": value}
        for name, mask in regime_masks(test, max_train_tokens=max_train_tokens).items()
        for metric, value in scores_of(part_of(forecast, mask), observed_ms[mask]).items()
    ]
    return pd.DataFrame(rows)


def part_of(forecast: Forecast, mask: NDArray[np.bool_]) -> Forecast:
    """Return the forecast of some of the steps; `mask` has dims (row,)."""
    return Forecast(
        quantiles_ms=forecast.quantiles_ms[mask],
        point_ms=forecast.point_ms[mask],
        cdf=forecast.cdf[mask],
        log_density=None if forecast.log_density is None else forecast.log_density[mask],
        converged=forecast.converged,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Held-out steps and a contender's forecast for them.

    Attributes
    ----------
    server, split, model : str
    test : DataFrame
        The steps.
    forecast : Forecast
    max_train_tokens : float
        Tokens of the largest training step.
    """

    server: str
    split: str
    model: str
    test: pd.DataFrame
    forecast: Forecast
    max_train_tokens: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What a validation found.

    Attributes
    ----------
    scores : DataFrame
        Tidy: ``server``, ``split``, ``repeat``, ``model``, ``regime``, ``rows``, ``metric``, ``value``; the
        metrics are those of `bayes_sched.validation.scores.scores_of`.
    fits : DataFrame
        One row a fit: ``server``, ``split``, ``repeat``, ``model``, ``train_rows`` of ``train_available``,
        ``test_rows`` of ``test_available``, ``seconds``, ``cpu_seconds``, ``converged`` (missing without a
        gate), ``error`` (a sentence where the fit failed).
    held_out : tuple of HeldOut
        The first repeat's forecasts, for figures.
    servers, splits, models : tuple of str
        In the order of the tables.
    notes : tuple of str
        What was left out or limited, a sentence each.
    settings : mapping
        What the study was made with, plain values.
    """

    scores: pd.DataFrame
    fits: pd.DataFrame
    held_out: tuple[HeldOut, ...]
    servers: tuple[str, ...]
    splits: tuple[str, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self, metric: str, *, server: str, regime: str = "all") -> pd.DataFrame:
        """Return a metric by model and split, averaged over the repeats; NaN where there is none.

        Parameters
        ----------
        metric : str
        server : str
        regime : str

        Returns
        -------
        DataFrame, dims (model, split)
        """
        splits, models = self.splits_of(server), self.models_of(server)
        rows = [
            [self.value(metric, server=server, split=s, model=m, regime=regime) for s in splits]
            for m in models
        ]
        return pd.DataFrame(
            rows, index=pd.Index(models, name="model"), columns=pd.Index(splits, name="split")
        )

    def value(self, metric: str, *, server: str, split: str, model: str, regime: str = "all") -> float:
        """Return a metric averaged over the repeats; NaN where there is none."""
        return self._means.get((metric, server, split, model, regime), float("nan"))

    def splits_of(self, server: str) -> list[str]:
        """Return the splits on which anything was scored, in the order of the tables."""
        scored = {key[2] for key in self._means if key[1] == server}
        return [name for name in self.splits if name in scored]

    def models_of(self, server: str) -> list[str]:
        """Return the models that were scored, in the order of the tables."""
        scored = {key[3] for key in self._means if key[1] == server}
        return [name for name in self.models if name in scored]

    @cached_property
    def _means(self) -> dict[tuple[str, ...], float]:
        keys = ["metric", "server", "split", "model", "regime"]
        return cast("dict[tuple[str, ...], float]", self.scores.groupby(keys)["value"].mean().to_dict())

    def unconverged(self, *, server: str, split: str, model: str) -> bool:
        """Return whether a fit failed its convergence gate in any repeat."""
        fits = self.fits.query("server == @server and split == @split and model == @model")
        return bool((~fits["converged"].fillna(True)).any())

    @property
    def text(self) -> str:
        """A sentence a person can paste: for each server and split the smallest CRPS."""
        parts = []
        for server in self.servers:
            table = self.table("crps_ms", server=server)
            best = [f"{table[s].idxmin()} {table[s].min():.3g} ms ({s})" for s in self.splits_of(server)]
            parts.append(f"{server}: smallest CRPS {', '.join(best)}." if best else f"{server}: no score.")
        return " ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "settings": dict(self.settings),
            "servers": list(self.servers),
            "splits": list(self.splits),
            "models": list(self.models),
            "text": self.text,
            "notes": list(self.notes),
            "fits": records(self.fits),
            "scores": records(self.scores),
        }


SERVER_MARK = "_chunk"
"""In the name of a trace, what stands before it names the server, where no label does."""

CONTEXT_COLUMNS = (
    "context_tokens",
    "prefill_pairs",
    "num_prefill_reqs",
    "num_decode_reqs",
    "prefill_tokens",
    "max_prefill_chunk",
    "kv_cache_usage",
)
"""What a trace may tell of a step besides B and S that is known before the step runs."""

NO_LIMITS_MS = (1e-9, 1e9)
"""Limits for the cleaning of a fit to steps of a :class:`Server`, which are clean."""

_NEEDED = ("batch_size", "total_tokens", "latency_ms")


@dataclass(frozen=True, kw_only=True, eq=False)
class Server:
    """The steps of one server.

    Attributes
    ----------
    name : str
    steps : DataFrame
        Cleaned steps, trace after trace, each in its order: the columns that all traces hold, and ``trace``
        (number of the trace) and ``budget`` (largest S of the trace).
    traces : tuple of str
        Names of the traces.
    sha256 : str
        Digest of the traces and of the cleaning.
    warnings : tuple of str
    """

    name: str
    steps: pd.DataFrame
    traces: tuple[str, ...]
    sha256: str
    warnings: tuple[str, ...] = ()


def servers_of(
    traces: Sequence[Trace],
    *,
    pooled: bool = True,
    mark: str = SERVER_MARK,
    min_latency_ms: float = 1.0,
    max_latency_ms: float = 300.0,
) -> tuple[Server, ...]:
    """Group traces by their servers, cleaned.

    Parameters
    ----------
    traces : sequence of Trace
        One a file.
    pooled : bool
        Whether traces with the same labels (``gpu``, ``llm``), or without labels the same name up to `mark`,
        are of one server; else each is on its own.
    mark : str
    min_latency_ms, max_latency_ms : float
        Limits of the cleaning.

    Raises
    ------
    InputError
        No step of a trace is left after cleaning, or two servers have one name.
    """
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        key = _server_name(trace, mark) if pooled else trace.name
        groups.setdefault(key, []).append(trace)
        if not pooled and len(groups[key]) > 1:
            raise InputError(f"two traces have the name {key}: rename one of the files")
    limits = (min_latency_ms, max_latency_ms)
    return tuple(_server(name, members, limits) for name, members in groups.items())


def _server_name(trace: Trace, mark: str) -> str:
    labels = [trace.labels[key] for key in ("gpu", "llm") if trace.labels.get(key)]
    if labels:
        return " ".join(labels)
    return (trace.name.partition(mark)[0] if mark else trace.name) or trace.name


def _server(name: str, traces: Sequence[Trace], limits_ms: tuple[float, float]) -> Server:
    parts, warnings = [], []
    for number, trace in enumerate(traces):
        cleaned = clean_steps(trace.steps, min_latency_ms=limits_ms[0], max_latency_ms=limits_ms[1])
        warnings += [f"{trace.name}: {text}" for text in (*trace.warnings, *cleaned.warnings)]
        budget = int(cleaned.steps["total_tokens"].max())
        parts.append(cleaned.steps.assign(trace=number, budget=budget))
    columns = [*_NEEDED, *(c for c in CONTEXT_COLUMNS if all(c in part for part in parts))]
    pooled = pd.concat([part[[*columns, "trace", "budget"]] for part in parts], ignore_index=True)
    complete = pooled.dropna().reset_index(drop=True)
    if len(complete) < len(pooled):
        lacking = ", ".join(column for column in columns if pooled[column].isna().any())
        warnings.append(
            f"{name}: {len(pooled) - len(complete):,} of {len(pooled):,} steps lack {lacking}: left out"
        )
    digests = [*(trace.sha256 for trace in traces), *map(repr, limits_ms)]
    return Server(
        name=name,
        steps=complete,
        traces=tuple(trace.name for trace in traces),
        sha256=hashlib.sha256(" ".join(digests).encode()).hexdigest(),
        warnings=tuple(warnings),
    )


type Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done."""

_MAX_SEED = 2**31 - 2**20  # samplers count up from it


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How steps are held out.

    Attributes
    ----------
    splits : tuple of str
        Of `bayes_sched.validation.splits.SPLITS`.
    repeats : int
        Of the random splits.
    seed : int
        Of everything random. What is held out does not depend on who takes part or on the other splits.
    max_train, max_test : int
        Steps to learn from and to predict at most; a random choice of them.
    rare_first : bool
        Whether the steps to learn from are chosen as a fit chooses them, the rare sizes first: they tell more
        of what lies beyond, and resemble those that are predicted less.
    """

    splits: tuple[str, ...] = tuple(SPLITS)
    repeats: int = 1
    seed: int = 0
    max_train: int = 4000
    max_test: int = 2000
    rare_first: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.splits if name not in SPLITS]
        if unknown or not self.splits:
            raise InputError(f"--splits {','.join(unknown)}: give some of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heat:
    """One way of holding steps out of one server: all contenders meet the same steps."""

    server: Server
    split: Split
    repeat: int
    cut: Cut
    seed: int

    @property
    def title(self) -> str:
        return f"{self.server.name}, {self.split.name}" + (f" {self.repeat + 1}" if self.repeat else "")


def validate(
    servers: Sequence[Server],
    *,
    contenders: Sequence[Contender],
    settings: StudySettings | None = None,
    kept: Kept | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Validation:
    """Find out how well contenders predict steps that they have not seen.

    Parameters
    ----------
    servers : sequence of Server
        See `bayes_sched.validation.servers.servers_of`.
    contenders : sequence of Contender
    settings : StudySettings, optional
    kept : Kept, optional
        Where forecasts are kept; those that are there are not made again.
    notes : sequence of str
        Sentences that go before those of the study.
    progress : callable, optional

    Returns
    -------
    Validation

    Raises
    ------
    InputError
        No contender could be scored on any split.
    """
    settings = settings or StudySettings()
    said = [*notes, *(text for server in servers for text in server.warnings)]
    heats = [heat for server in servers for heat in _heats(server, settings, said)]
    able = {server.name: list(_able(server, contenders, said)) for server in servers}
    scores: list[pd.DataFrame] = []
    fits: list[dict[str, Any]] = []
    held_out: list[HeldOut] = []
    tasks = [(heat, contender) for heat in heats for contender in able[heat.server.name]]
    for number, (heat, contender) in enumerate(tasks):
        report = partial(progress or _silent, f"{heat.title}: {contender.name}", number / len(tasks))
        report()
        forecast, account = _run(heat, contender, kept, report)
        key = {"server": heat.server.name, "split": heat.split.name, "repeat": heat.repeat}
        key |= {"model": contender.name}
        fits.append(key | account)
        if forecast is None:
            said.append(f"{heat.title}: {contender.name} failed ({account['error']})")
            continue
        most = float(heat.cut.train["total_tokens"].max())
        scores.append(_with(key, score_table(forecast, heat.cut.test, max_train_tokens=most)))
        if not heat.repeat:
            names = {name: key[name] for name in ("server", "split", "model")}
            held_out.append(
                HeldOut(**names, test=heat.cut.test, forecast=forecast, max_train_tokens=most)  # type: ignore[arg-type]
            )
    if not scores:
        raise InputError(f"nothing could be scored: {'; '.join(said) or 'no contender, no split'}")
    return Validation(
        scores=pd.concat(scores, ignore_index=True),
        fits=pd.DataFrame(fits).astype({"converged": "boolean"}),
        held_out=tuple(held_out),
        servers=tuple(server.name for server in servers),
        splits=settings.splits,
        models=tuple(contender.name for contender in contenders),
        notes=tuple(dict.fromkeys(said)),
        settings=_plain(settings) | {"traces": {s.name: list(s.traces) for s in servers}},
    )


def _heats(server: Server, settings: StudySettings, notes: list[str]) -> Iterator[_Heat]:
    """Yield the splits that the server's steps allow, and note the others."""
    for split in (SPLITS[name] for name in settings.splits):
        for repeat in range(settings.repeats if split.is_random else 1):
            rng = np.random.default_rng([settings.seed, _number(server.name), _number(split.name), repeat])
            try:
                made = cut(
                    server.steps,
                    split,
                    rng=rng,
                    max_train=settings.max_train,
                    max_test=settings.max_test,
                    rare_first=settings.rare_first,
                )
            except InputError as error:
                notes.append(f"{server.name}: no split {split.name} ({error})")
                break
            seed = int(rng.integers(_MAX_SEED))
            yield _Heat(server=server, split=split, repeat=repeat, cut=made, seed=seed)


def _able(server: Server, contenders: Sequence[Contender], notes: list[str]) -> Iterator[Contender]:
    """Yield the contenders whose columns the server's traces hold, and note the others."""
    for contender in contenders:
        missing = [name for name in contender.columns if name not in server.steps]
        if missing:
            notes.append(f"{server.name}: {contender.name} left out, its traces lack {', '.join(missing)}")
        else:
            yield contender


def _run(
    heat: _Heat, contender: Contender, kept: Kept | None, report: Callable[[], None]
) -> tuple[Forecast | None, dict[str, Any]]:
    """Return the forecast, None if the contender fails, and the account of it."""
    account: dict[str, Any] = {
        "train_rows": len(heat.cut.train),
        "train_available": heat.cut.num_train,
        "test_rows": len(heat.cut.test),
        "test_available": heat.cut.num_test,
    }
    title = f"{heat.server.name}.{heat.split.name}.{heat.repeat}.{contender.name}"
    depends_on = _depends_on(heat, contender)
    found = kept.read(title, depends_on) if kept else None
    if found is None:
        before = time.perf_counter(), time.process_time()
        try:
            forecast = contender.fit(heat.cut.train, seed=heat.seed)(heat.cut.test)
        except Exception as error:  # whatever a contender does wrong must not cost the others hours
            words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return None, account | {"converged": None, "error": words}
        cost = {
            "seconds": round(time.perf_counter() - before[0], 3),
            "cpu_seconds": round(time.process_time() - before[1], 3),
        }
        report()  # where an interrupt is raised that a sampler took as a wish for fewer draws
        if kept:
            kept.write(title, depends_on, forecast, cost)
        found = forecast, cost
    return found[0], account | found[1] | {"converged": found[0].converged, "error": None}


def _depends_on(heat: _Heat, contender: Contender) -> dict[str, Any]:
    rows = pd.util.hash_pandas_object(pd.concat([heat.cut.train, heat.cut.test]), index=False)
    return {
        "steps": f"{int(rows.to_numpy().sum()):x}",
        "server": heat.server.sha256,
        "seed": heat.seed,
        "rows": [len(heat.cut.train), len(heat.cut.test)],
        "contender": repr(contender),
        "version": VERSION,
    }


def _with(key: dict[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    for position, (name, value) in enumerate(key.items()):
        table.insert(position, name, value)
    return table


def _plain(settings: StudySettings) -> dict[str, Any]:
    names = ("repeats", "seed", "max_train", "max_test", "rare_first")
    return {"splits": list(settings.splits)} | {name: getattr(settings, name) for name in names}


def _number(text: str) -> int:
    return zlib.crc32(text.encode())


def _silent(stage: str, share: float | None) -> None:
    """Report progress to nobody."""
