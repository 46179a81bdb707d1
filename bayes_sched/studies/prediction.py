"""How well competing predictors predict unseen steps: every one on every split of every server."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import pandas as pd

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import LEVELS, at_level
from bayes_sched.errors import InputError, error_text
from bayes_sched.files import VERSION
from bayes_sched.format import records
from bayes_sched.steps import regime
from bayes_sched.studies.forecasts import Competitor, Forecast, ForecastCache
from bayes_sched.studies.names import SPLIT_TITLES, check_splits
from bayes_sched.studies.runs import Progress, each_run
from bayes_sched.studies.splits import SPLITS, Cut, Server, Split, cut

_MAX_SEED = 2**31 - 2**20  # samplers count up from it
_KEYS = ("metric", "server", "split", "model", "regime")
_MIN_IN_BIN = 5
_NUM_ERROR_BINS, _NUM_BAND_BINS = 10, 14
EXTRAPOLATION = "budget"
"""The split whose held-out steps are larger than any that was learned from."""


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """How steps are held out."""

    splits: tuple[str, ...] = tuple(SPLIT_TITLES)  # of :data:`bayes_sched.studies.splits.SPLITS`
    repeats: int = 1  # of the random splits
    seed: int = 0
    """Of everything random. What is held out does not depend on who takes part or on the other splits."""
    max_train: int = 4000  # steps to learn from at most; a random choice of them
    max_test: int = 2000  # and to predict
    rare_first: bool = False
    """Whether the steps to learn from are chosen as a fit chooses them, the rare sizes first: they tell more
    of what lies beyond, and resemble those that are predicted less."""

    def __post_init__(self) -> None:
        check_splits(self.splits)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """How a forecast of the first repeat fares by the size of the held-out steps."""

    server: str
    split: str
    model: str
    errors: Mapping[str, pd.Series[float]]
    bands: pd.DataFrame | None
    seen: pd.DataFrame | None
    max_train_tokens: float

    @classmethod
    def of(cls, heat: _Heat, model: str, forecast: Forecast) -> HeldOut:
        """Summarise a forecast."""
        test, bands, seen = heat.cut.test, None, None
        if heat.split.name == EXTRAPOLATION:
            prefills = (regime(test) != "decode").to_numpy()
            seen = test.loc[prefills, ["total_tokens", "latency_ms"]]
            bands = _bands(seen["total_tokens"], forecast.quantiles_ms[prefills])
        return cls(
            server=heat.server.name,
            split=heat.split.name,
            model=model,
            errors={column: _errors(forecast, test, column) for column in ("total_tokens", "batch_size")},
            bands=bands,
            seen=seen,
            max_train_tokens=heat.max_train_tokens,
        )


def _errors(forecast: Forecast, test: pd.DataFrame, column: str) -> pd.Series[float]:
    observed_ms = test["latency_ms"].to_numpy(np.float64)
    relative = np.abs(forecast.point_ms - observed_ms) / observed_ms
    edges = log_bins(test[column], num_bins=_NUM_ERROR_BINS)
    groups = pd.Series(relative).groupby(np.digitize(test[column], edges) - 1)
    means = groups.mean()[groups.size() >= _MIN_IN_BIN]
    middle = np.sqrt(edges[:-1] * edges[1:])
    return pd.Series(means.to_numpy(), index=middle[means.index.to_numpy()])


def _bands(tokens: pd.Series[Any], quantiles_ms: Floats) -> pd.DataFrame:
    table = pd.DataFrame({f"q{level:g}": at_level(quantiles_ms, level) for level in (0.05, 0.5, 0.95)})
    table["total_tokens"] = tokens.to_numpy(np.float64)
    groups = table.groupby(np.digitize(tokens, log_bins(tokens, num_bins=_NUM_BAND_BINS)))
    return groups.mean()[groups.size() >= _MIN_IN_BIN]


def log_bins(values: pd.Series[Any], *, num_bins: int) -> Floats:
    """Return edges of bins of even width on a logarithmic scale, the last above the largest value."""
    low, high = float(values.min()), float(values.max())
    edges: Floats = np.unique(np.geomspace(low, high * 1.001 + 1e-9, num_bins + 1))
    return edges


@dataclass(frozen=True, kw_only=True, eq=False)
class Validation:
    """What a validation found."""

    scores: pd.DataFrame
    """Tidy: ``server``, ``split``, ``repeat``, ``model``, ``regime``, ``rows``, ``metric``, ``value``; the
    metrics are :data:`bayes_sched.studies.forecasts.METRICS`."""
    fits: pd.DataFrame
    """One row a fit: ``server``, ``split``, ``repeat``, ``model``, ``train_rows`` of ``train_available``,
    ``test_rows`` of ``test_available``, ``seconds``, ``cpu_seconds``, ``converged`` (missing without a gate),
    ``error`` (a sentence where the fit failed)."""
    held_out: tuple[HeldOut, ...]  # the first repeat's forecasts by the size of steps, for figures
    servers: tuple[str, ...]  # in the order of the tables, as the next two
    splits: tuple[str, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()  # what was left out or limited, a sentence each
    settings: Mapping[str, Any] = field(default_factory=dict)  # what the study was made with, plain values
    means: Mapping[tuple[str, ...], float] = field(init=False, repr=False)
    """Averages of the scores over repeats, by metric, server, split, model and regime; from `scores`."""

    def __post_init__(self) -> None:
        means = self.scores.groupby(list(_KEYS))["value"].mean().to_dict()
        object.__setattr__(self, "means", cast("dict[tuple[str, ...], float]", means))

    def table(self, metric: str, *, server: str, regime: str = "all") -> pd.DataFrame:
        """Return a metric, averaged over the repeats, dims (model, split); NaN where there is none."""
        models = pd.Index(self.models_of(server), name="model")
        columns = {
            split: [self.value(metric, server=server, split=split, model=m, regime=regime) for m in models]
            for split in self.splits_of(server)
        }
        return pd.DataFrame(columns, index=models).rename_axis(columns="split")

    def value(self, metric: str, *, server: str, split: str, model: str, regime: str = "all") -> float:
        """Return a metric averaged over the repeats; NaN where there is none."""
        return self.means.get((metric, server, split, model, regime), float("nan"))

    def band_shares(self, *, server: str, split: str, model: str) -> Floats:
        """Return the share of steps inside the band from each level below a half to its counterpart."""
        below = [self.value(f"below_{level:g}", server=server, split=split, model=model) for level in LEVELS]
        return np.array([below[-1 - number] - below[number] for number in range(len(LEVELS) // 2)])

    def splits_of(self, server: str) -> list[str]:
        """Return the splits on which anything was scored, in the order of the tables."""
        scored = {key[2] for key in self.means if key[1] == server}
        return [name for name in self.splits if name in scored]

    def models_of(self, server: str) -> list[str]:
        """Return the models that were scored, in the order of the tables."""
        scored = {key[3] for key in self.means if key[1] == server}
        return [name for name in self.models if name in scored]

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
        lists = {name: list(getattr(self, name)) for name in ("servers", "splits", "models")}
        told = {"settings": dict(self.settings), **lists, "text": self.text, "notes": list(self.notes)}
        return told | {"fits": records(self.fits), "scores": records(self.scores)}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heat:
    """One way of holding steps out of one server: all competitors meet the same steps."""

    server: Server
    split: Split
    repeat: int
    cut: Cut
    seed: int

    @property
    def title(self) -> str:
        return f"{self.server.name}, {self.split.name}" + (f" {self.repeat + 1}" if self.repeat else "")

    @property
    def max_train_tokens(self) -> float:
        return float(self.cut.train["total_tokens"].max())


@dataclass(frozen=True, eq=False)
class _Outcome:
    """The forecast of a competitor, None where it failed, what it cost, and why it failed."""

    heat: _Heat
    competitor: Competitor
    forecast: Forecast | None
    cost: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    is_cached: bool = False

    @property
    def key(self) -> dict[str, Any]:
        names = {"server": self.heat.server.name, "split": self.heat.split.name}
        return names | {"repeat": self.heat.repeat, "model": self.competitor.name}

    @property
    def fit(self) -> dict[str, Any]:
        """The row of the table of fits."""
        cut, converged = self.heat.cut, self.forecast.converged if self.forecast else None
        rows = {"train_rows": len(cut.train), "train_available": cut.num_train}
        rows |= {"test_rows": len(cut.test), "test_available": cut.num_test}
        return self.key | rows | {**self.cost, "converged": converged, "error": self.error}

    @property
    def scores(self) -> pd.DataFrame:
        assert self.forecast is not None
        table = self.forecast.score_table(self.heat.cut.test, max_train_tokens=self.heat.max_train_tokens)
        return table.assign(**self.key)[[*self.key, *table]]


@dataclass(frozen=True, eq=False)
class _Forecasts:
    """The study as the runner sees it: a run is one competitor on one way of holding out."""

    tasks: Sequence[tuple[_Heat, Competitor]]
    cache: ForecastCache | None

    @property
    def num_runs(self) -> int:
        return len(self.tasks)

    def title(self, number: int) -> str:
        heat, competitor = self.tasks[number]
        return f"{heat.title}: {competitor.name}"

    def run(self, number: int) -> _Outcome:
        heat, competitor = self.tasks[number]
        if self.cache and (found := self.cache.read(*_identity(heat, competitor))):
            return _Outcome(heat, competitor, *found, is_cached=True)
        start = time.perf_counter(), time.process_time()
        try:
            forecast = competitor.fit(heat.cut.train, seed=heat.seed)(heat.cut.test)
        except Exception as error:  # whatever a competitor does wrong must not cost the others hours
            return _Outcome(heat, competitor, None, error=error_text(error))
        cost = {
            "seconds": round(time.perf_counter() - start[0], 3),
            "cpu_seconds": round(time.process_time() - start[1], 3),
        }
        return _Outcome(heat, competitor, forecast, cost)

    def keep(self, outcome: _Outcome) -> None:
        if self.cache and outcome.forecast and not outcome.is_cached:
            identity = _identity(outcome.heat, outcome.competitor)
            self.cache.write(*identity, outcome.forecast, outcome.cost)


def validate(
    servers: Sequence[Server],
    *,
    competitors: Sequence[Competitor],
    settings: StudySettings | None = None,
    cache: ForecastCache | None = None,
    notes: Sequence[str] = (),
    progress: Progress | None = None,
) -> Validation:
    """Find out how well competitors predict steps that they have not seen.

    Parameters
    ----------
    servers : sequence of Server
        See :func:`bayes_sched.studies.splits.servers_of`.
    competitors : sequence of Competitor
    settings : StudySettings, optional
    cache : ForecastCache, optional
        Where forecasts are kept; those that are there are not made again.
    notes : sequence of str
        Sentences that go before those of the study.
    progress : callable, optional
        Called with a stage in words and the share of it that is done.

    Returns
    -------
    Validation

    Raises
    ------
    InputError
        No competitor could be scored on any split.
    """
    settings = settings or StudySettings()
    said = [*notes, *(text for server in servers for text in server.warnings)]
    heats = [heat for server in servers for heat in _heats(server, settings, said)]
    able = {server.name: list(_able(server, competitors, said)) for server in servers}
    study = _Forecasts([(heat, entrant) for heat in heats for entrant in able[heat.server.name]], cache)
    scores, fits, held_out = [], [], []
    for number, outcome in each_run(study, progress=progress):
        study.keep(outcome)
        fits.append(outcome.fit)
        if outcome.forecast is None:
            said.append(f"{study.title(number)} failed ({outcome.error})")
            continue
        scores.append(outcome.scores)
        if not outcome.heat.repeat:
            held_out.append(HeldOut.of(outcome.heat, outcome.competitor.name, outcome.forecast))
    if not scores:
        raise InputError(f"nothing could be scored: {'; '.join(said) or 'no contender, no split'}")
    return Validation(
        scores=pd.concat(scores, ignore_index=True),
        fits=pd.DataFrame(fits).astype({"converged": "boolean"}),
        held_out=tuple(held_out),
        servers=tuple(server.name for server in servers),
        splits=settings.splits,
        models=tuple(competitor.name for competitor in competitors),
        notes=tuple(dict.fromkeys(said)),
        settings=asdict(settings)
        | {"splits": list(settings.splits), "traces": {s.name: list(s.traces) for s in servers}},
    )


def _heats(server: Server, settings: StudySettings, notes: list[str]) -> Iterator[_Heat]:
    """Yield the splits that the server's steps allow, and note the others."""
    limits = {name: getattr(settings, name) for name in ("max_train", "max_test", "rare_first")}
    for split in (SPLITS[name] for name in settings.splits):
        names = [zlib.crc32(text.encode()) for text in (server.name, split.name)]
        for repeat in range(settings.repeats if split.is_random else 1):
            rng = np.random.default_rng([settings.seed, *names, repeat])
            try:
                made = cut(server.steps, split, rng=rng, **limits)
            except InputError as error:
                notes.append(f"{server.name}: no split {split.name} ({error})")
                break
            seed = int(rng.integers(_MAX_SEED))
            yield _Heat(server=server, split=split, repeat=repeat, cut=made, seed=seed)


def _able(server: Server, competitors: Sequence[Competitor], notes: list[str]) -> Iterator[Competitor]:
    """Yield the competitors whose columns the server's traces hold, and note the others."""
    for competitor in competitors:
        missing = [name for name in competitor.columns if name not in server.steps]
        if missing:
            notes.append(f"{server.name}: {competitor.name} left out, its traces lack {', '.join(missing)}")
        else:
            yield competitor


def _identity(heat: _Heat, competitor: Competitor) -> tuple[str, dict[str, Any]]:
    """Return the name of a kept forecast and everything that its numbers depend on."""
    rows = pd.util.hash_pandas_object(pd.concat([heat.cut.train, heat.cut.test]), index=False)
    depends_on = {
        "steps": f"{int(rows.to_numpy().sum()):x}",
        "server": heat.server.sha256,
        "seed": heat.seed,
        "rows": [len(heat.cut.train), len(heat.cut.test)],
        "contender": repr(competitor),
        "version": VERSION,
    }
    return f"{heat.server.name}.{heat.split.name}.{heat.repeat}.{competitor.name}", depends_on
