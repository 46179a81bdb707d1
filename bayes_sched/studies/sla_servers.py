"""Promises made to simulated servers, held against the truth.

A server is drawn, a trace of it simulated and fitted, and promises are made as `sla` makes them: the largest
decode-only batch under a limit, and limits for single kinds of steps. A promise is *broken* if, in truth,
more steps take longer than it says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from bayes_sched.arrays import Floats, Ints
from bayes_sched.checks.scores import share_interval
from bayes_sched.errors import FIT_ERRORS, InputError, error_text
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, ModelFile
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.posterior.fit import summarise_cells
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import FitMetadata, open_account
from bayes_sched.sla.limits import StepLine, quantile_draws
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE
from bayes_sched.sla.steps import step_sla
from bayes_sched.steps import region_of, steps_arrays
from bayes_sched.studies.sbc import CalibrationStudy, plausible_parameters
from bayes_sched.trace.cleaning import clean_steps

MOST_TAIL = 3.0
"""The 0.99 quantile of a step is at most so many times its mean."""
LEAST_RISE = 1.2
"""Decode-only steps of the largest batch take at least so many times as long as those of the smallest: a
server that larger batches do not slow down has no largest batch to promise."""
MOST_FALL = 0.05
"""On the way, no larger batch is quicker than a smaller one by more than this share."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueServer:
    """A server whose parameters are known.

    Attributes
    ----------
    model : LatencyModel
    parameters : Dataset
        One number each.
    """

    model: LatencyModel
    parameters: xr.Dataset

    def mean_ms(self, steps: xr.Dataset) -> Floats:
        """Return the mean latency, ms, dims (step,)."""
        return np.asarray(self.model.latency(self.parameters, steps), dtype=np.float64)

    def quantile_ms(self, steps: xr.Dataset, quantile: float) -> Floats:
        """Return the latency that a share of such steps keeps, ms, dims (step,)."""
        mean, scale = self._moments(steps)
        return mean + scale * float(special.stdtrit(float(self.parameters["nu"]), quantile))

    def exceedance(self, steps: xr.Dataset, limit_ms: Floats | float) -> Floats:
        """Return the probability that a step takes longer than its limit, dims (step,)."""
        mean, scale = self._moments(steps)
        late: Floats = special.stdtr(float(self.parameters["nu"]), (mean - limit_ms) / scale)
        return late

    def _moments(self, steps: xr.Dataset) -> tuple[Floats, Floats]:
        mean = self.model.latency(self.parameters, steps)
        mean, scale = xr.broadcast(mean, self.model.scale(self.parameters, mean, steps))
        return mean.to_numpy(), scale.to_numpy()


def plausible_server(
    model: LatencyModel,
    priors: Priors,
    design: xr.Dataset,
    *,
    batch_sizes: Ints,
    quantile: float,
    rng: np.random.Generator,
) -> TrueServer:
    """Draw a server from the priors until it could be a real one that larger batches slow down.

    Parameters
    ----------
    model : LatencyModel
    priors : Priors
    design : Dataset, dims (step,)
        The steps of its trace.
    batch_sizes : ndarray, dims (batch,)
        Of decode-only steps, increasing.
    quantile : float
        The quantile whose distance from the mean :data:`MOST_TAIL` bounds.
    rng : Generator

    Raises
    ------
    InputError
        Hardly any server of these priors is plausible.
    """
    decode = steps_arrays(batch_sizes, batch_sizes)

    def is_plausible(parameters: xr.Dataset) -> bool:
        server = TrueServer(model=model, parameters=parameters)
        mean, late = server.mean_ms(decode), server.quantile_ms(decode, quantile)
        rises = late[-1] >= LEAST_RISE * late[0]
        falls = (late < (1.0 - MOST_FALL) * np.maximum.accumulate(late)).any()
        return bool(rises and not falls and (late <= MOST_TAIL * mean).all())

    drawn = plausible_parameters(model, priors, design, rng, is_plausible=is_plausible)
    return TrueServer(model=model, parameters=drawn)


def largest_batch(late_ms: Floats, batch_sizes: Ints, limit_ms: float) -> int:
    """Return the largest batch up to which all keep a limit, 0 where not even the first does.

    Parameters
    ----------
    late_ms : ndarray, dims (batch,)
        The true quantile of decode-only steps.
    batch_sizes : ndarray, dims (batch,)
        Increasing.
    limit_ms : float
    """
    kept = int((np.maximum.accumulate(late_ms) <= limit_ms).sum())
    return int(batch_sizes[kept - 1]) if kept else 0


def limit_between(late_ms: Floats, rng: np.random.Generator) -> float:
    """Return a limit, ms, for which the true largest batch lies inside the range, any size as probable.

    The limit lies half way, on a logarithmic scale, between the latencies of that batch and of the next.
    """
    running = np.maximum.accumulate(late_ms)
    chosen = int(rng.choice(np.flatnonzero(np.diff(running) > 0.0)))
    return float(np.sqrt(running[chosen] * running[chosen + 1]))


INTERVAL: Final = 0.95
"""Of the share of broken promises."""

MAKERS: Final = {
    "promised": ("", "promised"),
    "median": ("median_", "posterior median"),
    "curve": ("curve_", "fitted mean"),
}
"""Who promises: by column, the prefix of its columns and its name. The promise itself, the posterior median
in place of a bound, and the single fitted curve of the mean."""

WHAT: Final = {"batch": "largest decode-only batch", "limit": "limit of a kind of steps"}


def with_promises(servers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that hold a promise; a fit that failed with an error made none."""
    return servers[servers["promise"].notna()].reset_index(drop=True)


def broken_table(servers: pd.DataFrame, *, quantile: float) -> pd.DataFrame:
    """Return how many promises are broken: more steps are late, in truth, than the quantile allows.

    Parameters
    ----------
    servers : DataFrame
        Rows of :class:`~bayes_sched.promises.server_study.SimulatedServer`.
    quantile : float
        Promised.

    Returns
    -------
    DataFrame
        ``promise``, ``by``, ``servers``, ``promises``, ``nothing`` (how many of these are of no batch at all,
        which no step can break), ``broken`` (share of all), ``lower``, ``upper`` (its interval of probability
        :data:`INTERVAL`, which counts servers: promises of one server go together), and
        ``worst_exceedance``.
    """
    rows = []
    for kind, group in with_promises(servers).groupby("promise", sort=True):
        for column, (prefix, by) in MAKERS.items():
            given = group[group[column].notna()]
            late = given[f"{prefix}exceedance"].to_numpy(float)
            if not len(late):
                continue
            number, share = group["server"].nunique(), float((late > 1.0 - quantile).mean())
            lower, upper = share_interval(share * number, number, level=INTERVAL)
            rows.append(
                {
                    "promise": WHAT[str(kind)],
                    "by": by,
                    "servers": number,
                    "promises": len(late),
                    "nothing": int((given[column] == 0).sum()),
                    "broken": share,
                    "lower": float(lower),
                    "upper": float(upper),
                    "worst_exceedance": float(late.max()),
                }
            )
    return pd.DataFrame(rows)


def broken_by_step(servers: pd.DataFrame, *, quantile: float) -> pd.DataFrame:
    """Return :func:`broken_table` of the limits of each probed (B, S), of the promise itself.

    Returns
    -------
    DataFrame
        ``batch_size``, ``total_tokens``, ``promises``, ``broken``, ``lower``, ``upper``.
    """
    limits = servers[servers["promise"] == "limit"]
    rows: list[dict[str, float]] = []
    for _, group in limits.groupby(["batch_size", "total_tokens"]):
        b, s = group[["batch_size", "total_tokens"]].iloc[0]
        count = int((group["exceedance"] > 1.0 - quantile).sum())
        lower, upper = share_interval(count, len(group), level=INTERVAL)
        row = {"batch_size": int(b), "total_tokens": int(s), "promises": len(group)}
        rows.append(row | {"broken": count / len(group), "lower": float(lower), "upper": float(upper)})
    return pd.DataFrame(rows)


def given_away_table(servers: pd.DataFrame) -> pd.DataFrame:
    """Return what promises give away against what is truly possible.

    Returns
    -------
    DataFrame
        ``what``, ``by``, and over the promises ``mean``, ``median``, ``q90`` (nine in ten give away less) and
        ``worst`` of the share given away: of the batch, of the tokens/ms that it decodes, and how much larger
        than the true quantile a limit is. Negative where more was promised than is right.
    """
    batches, limits = (servers[servers["promise"] == kind] for kind in ("batch", "limit"))
    rows = []
    for column, (prefix, by) in MAKERS.items():
        shares = {
            "batch: 1 - B / true B": 1.0 - batches[column] / batches["true_best"],
            "throughput: 1 - rate / true rate": 1.0 - batches[f"{prefix}rate"] / batches["true_rate"],
            "limit: limit / true quantile - 1": limits[column] / limits["true_best"] - 1.0,
        }
        for what, values in shares.items():
            known = values.dropna().to_numpy(float)
            if len(known):
                rows.append({"what": what, "by": by} | _spread(known))
    return pd.DataFrame(rows).sort_values("what", kind="stable", ignore_index=True)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "q90": float(np.quantile(values, 0.9)),
        "worst": float(values.max()),
    }


EVEN = 0.5
"""Confidence of a promise that takes the posterior median for the truth."""
_NUM_PROBED = 5
_MOST_SEED = 2**31 - 2**20  # samplers count up from it

COLUMNS = (
    *("promise", "batch_size", "total_tokens", "limit_ms", "true_best", "true_rate"),
    *("promised", "exceedance", "rate", "limited_by"),
    *("median", "median_exceedance", "median_rate", "curve", "curve_exceedance", "curve_rate"),
)
"""Of the table of a simulated server; see :class:`SimulatedServer`."""
ACCOUNT = ("gate_passed", "worst_ess", "seconds", "cpu_seconds", "error")
"""What is kept of its account."""


@dataclass(frozen=True, kw_only=True)
class SimulatedServer:
    """One simulated server, and the promises made of it.

    Attributes
    ----------
    number : int
    table : DataFrame
        One row a promise; empty if the fit failed with an error. ``promise``: ``batch`` (the largest
        decode-only batch under ``limit_ms``) or ``limit`` (a limit for steps of ``batch_size`` and
        ``total_tokens``). ``true_best``: the largest batch, or the smallest limit in ms, that is truly right;
        ``promised``: what the fit promises with the asked confidence; ``median``: what it would with a
        confidence of one half; ``curve``: what the single fitted curve of the mean allows. 0 stands for no
        batch at all. Each has its true ``exceedance``, the largest of all promised steps, and, of batches,
        its ``rate``: tokens/ms that such a server decodes. ``limited_by``: as of
        :class:`~bayes_sched.sla.step_limit.StepLimit`.
    account : dict
        What the gate says of the fit and what it took.
    """

    number: int
    table: pd.DataFrame
    account: dict[str, Any]

    @property
    def rows(self) -> pd.DataFrame:
        """The table with the number of the server and its account; one row where there is no promise."""
        table = self.table if len(self.table) else pd.DataFrame([dict.fromkeys(COLUMNS)])
        account = {name: self.account.get(name) for name in ACCOUNT}
        return (
            table.assign(**account).reindex(columns=["server", *COLUMNS, *ACCOUNT]).assign(server=self.number)
        )


class ServerStudy:
    """Simulated servers with one design of steps; the model is compiled once for all.

    Parameters
    ----------
    study : CalibrationStudy
        The model, design, priors and settings of every fit.
    loaded : ModelFile
        The model's file.
    quantile, confidence : float
        Of every promise.

    Raises
    ------
    InputError
        The design has no decode-only steps of several sizes, or hardly any server is plausible on it.
    """

    def __init__(
        self,
        study: CalibrationStudy,
        loaded: ModelFile,
        *,
        quantile: float = DEFAULT_QUANTILE,
        confidence: float = DEFAULT_CONFIDENCE,
    ) -> None:
        self.study, self.quantile, self.confidence = study, quantile, confidence
        self.design = xr.Dataset({name: ("step", study.steps[name].to_numpy(float)) for name in study.steps})
        region = region_of(self.design["batch_size"].to_numpy(), self.design["total_tokens"].to_numpy())
        span = StepLine().span(region)
        if span is None or span[0] == span[1]:
            raise InputError(
                "the design's trace has no decode-only steps of several sizes, none to promise: give another "
                "--design"
            )
        self.batch_sizes = np.arange(span[0], span[1] + 1)
        self.decode = steps_arrays(self.batch_sizes, self.batch_sizes)
        distinct = study.steps[["batch_size", "total_tokens"]].drop_duplicates()
        distinct = distinct.sort_values(["batch_size", "total_tokens"])
        chosen = np.unique(np.linspace(0, len(distinct) - 1, _NUM_PROBED).round().astype(int))
        self.probed = distinct.iloc[chosen].reset_index(drop=True)
        self.metadata = self._metadata(loaded)
        self._server(np.random.default_rng(study.settings.seed))  # an implausible design is refused at once

    def run_one(self, number: int) -> SimulatedServer:
        """Simulate and fit one server. An error of the fit is part of its account."""
        start = time.perf_counter(), time.process_time()
        rng = np.random.default_rng([self.study.settings.seed, number])
        server = self._server(rng)
        late_ms = server.quantile_ms(self.decode, self.quantile)
        limit_ms = limit_between(late_ms, rng)
        observed = self.study.simulate(server.parameters, rng)
        account: dict[str, Any] = {}
        table = pd.DataFrame(columns=list(COLUMNS))
        try:
            fit, account = self._fit(observed, seed=int(rng.integers(_MOST_SEED)))
            rows = [self._batch(fit, server, limit_ms), *self._limits(fit, server)]
            table = pd.DataFrame(rows, columns=list(COLUMNS))
        except FIT_ERRORS as error:
            account["error"] = error_text(error)
        account["seconds"] = time.perf_counter() - start[0]
        account["cpu_seconds"] = time.process_time() - start[1]
        return SimulatedServer(number=number, table=table, account=account)

    def _server(self, rng: np.random.Generator) -> TrueServer:
        return plausible_server(
            self.study.model,
            self.study.priors,
            self.design,
            batch_sizes=self.batch_sizes,
            quantile=self.quantile,
            rng=rng,
        )

    def _metadata(self, loaded: ModelFile) -> FitMetadata:
        steps = self.study.steps.assign(latency_ms=1.0)
        return open_account(
            steps,
            name="simulated server",
            labels=None,
            model=loaded,
            noise=self.study.noise,
            priors=self.study.priors,
            cleaned=clean_steps(steps),
            limits_ms=(1.0, 300.0),
            num_used=len(steps),
            settings=self.study.settings,
            warnings=(),
            command=None,
        )

    def _fit(self, observed: np.ndarray, *, seed: int) -> tuple[FittedModel, dict[str, Any]]:
        sampler, steps = self.study.sampler, self.study.steps.assign(latency_ms=observed)
        sampler.take(steps)
        samples = sampler.run(replace(self.study.settings, seed=seed))
        gate = convergence(samples.data)
        data = samples.data.copy()
        data["cells"] = xr.DataTree(summarise_cells(steps))
        metadata = replace(self.metadata, converged=gate.converged)
        fit = FittedModel(data=data, model=self.study.model, metadata=metadata)
        return fit, {"gate_passed": gate.converged, "worst_ess": gate.worst_ess}

    def _batch(self, fit: FittedModel, server: TrueServer, limit_ms: float) -> dict[str, Any]:
        """Return the row of the largest decode-only batch."""

        def sla(confidence: float) -> Any:
            return step_sla(
                fit,
                slo_ms=limit_ms,
                quantile=self.quantile,
                confidence=confidence,
                accept_unconverged=True,
                max_draws=None,
            ).decode_only

        asked, even = sla(self.confidence), sla(EVEN)
        late_ms = server.quantile_ms(self.decode, self.quantile)
        best = largest_batch(late_ms, self.batch_sizes, limit_ms)
        found = {"promised": asked.promised, "median": even.promised, "curve": asked.point}
        row: dict[str, Any] = {"promise": "batch", "limit_ms": limit_ms, "true_best": best}
        row |= {"true_rate": self._rate(server, best), "limited_by": asked.limited_by}
        for name, cap in found.items():
            number = 0 if cap is None else cap.number
            prefix = "" if name == "promised" else f"{name}_"
            steps = self.decode.isel(step=self.batch_sizes <= number)
            row[name] = number
            row[f"{prefix}exceedance"] = float(server.exceedance(steps, limit_ms).max(initial=0.0))
            row[f"{prefix}rate"] = self._rate(server, number)
        return row

    def _limits(self, fit: FittedModel, server: TrueServer) -> Iterator[dict[str, Any]]:
        """Yield the rows of the limits of single kinds of steps."""
        steps = steps_arrays(self.probed["batch_size"], self.probed["total_tokens"])
        draws = quantile_draws(fit, steps, self.quantile, max_draws=None)
        promised, median = (np.quantile(draws, level, axis=0) for level in (self.confidence, EVEN))
        best = server.quantile_ms(steps, self.quantile)
        late = {
            "exceedance": server.exceedance(steps, promised),
            "median_exceedance": server.exceedance(steps, median),
        }
        for i, (requests, tokens) in enumerate(self.probed.to_numpy(int)):
            yield {
                "promise": "limit",
                "batch_size": int(requests),
                "total_tokens": int(tokens),
                "true_best": float(best[i]),
                "promised": float(promised[i]),
                "median": float(median[i]),
                **{name: float(values[i]) for name, values in late.items()},
            }

    def _rate(self, server: TrueServer, batch_size: int) -> float:
        """Return the tokens/ms that decode-only steps of a batch make; 0 of none."""
        if not batch_size:
            return 0.0
        return batch_size / float(server.mean_ms(steps_arrays(batch_size, batch_size))[0])
