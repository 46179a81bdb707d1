"""SLA calibration on simulated servers: promises held against the truth.

A server is drawn, a trace of it simulated and fitted, and promises are made as :mod:`bayes_sched.sla` makes
them: the largest decode-only batch under a limit, and limits for single kinds of steps. A promise is *broken*
if, in truth, more steps take longer than it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import xarray as xr
from scipy import special

from bayes_sched.arrays import Floats, Ints
from bayes_sched.checks.scores import share_interval
from bayes_sched.errors import InputError
from bayes_sched.model.protocol import LatencyModel, ModelFile
from bayes_sched.posterior.diagnostics import Convergence
from bayes_sched.posterior.fit import summarise_cells
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import FitMetadata, open_provenance
from bayes_sched.region import region_of
from bayes_sched.sla.limits import StepLine, quantile_draws
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE
from bayes_sched.sla.steps import step_sla
from bayes_sched.steps import steps_arrays
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.runs import Findings, noted
from bayes_sched.studies.sbc import MOST_SEED, SimulatedFits
from bayes_sched.trace.cleaning import clean_steps

MOST_TAIL = 3.0
"""The 0.99 quantile of a step is at most so many times its mean."""
LEAST_RISE = 1.2
"""Decode-only steps of the largest batch take at least so many times as long as those of the smallest: a
server that larger batches do not slow down has no largest batch to promise."""
MOST_FALL = 0.05
"""On the way, no larger batch is quicker than a smaller one by more than this share."""
EVEN = 0.5
"""Confidence of a promise that takes the posterior median for the truth."""
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
COLUMNS = (
    *("promise", "batch_size", "total_tokens", "limit_ms", "true_best", "true_rate"),
    *("promised", "exceedance", "rate", "limited_by"),
    *("median", "median_exceedance", "median_rate", "curve", "curve_exceedance", "curve_rate"),
    *("gate_passed", "worst_ess", "seconds", "cpu_seconds", "error"),
)
"""Of the table of a simulated server; see :meth:`ServerStudy.run`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrueServer:
    """A server whose parameters, one number each, are known."""

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

    def rate(self, batch_size: int) -> float:
        """Return the tokens/ms that decode-only steps of a batch make; 0 of none."""
        if not batch_size:
            return 0.0
        return batch_size / float(self.mean_ms(steps_arrays(batch_size, batch_size))[0])

    def _moments(self, steps: xr.Dataset) -> tuple[Floats, Floats]:
        mean = self.model.latency(self.parameters, steps)
        mean, scale = xr.broadcast(mean, self.model.scale(self.parameters, mean, steps))
        return mean.to_numpy(), scale.to_numpy()


class ServerStudy:
    """Simulated servers with one design of steps."""

    def __init__(
        self,
        fits: SimulatedFits,
        loaded: ModelFile,
        *,
        num_runs: int,
        quantile: float = DEFAULT_QUANTILE,
        confidence: float = DEFAULT_CONFIDENCE,
    ) -> None:
        self.fits, self.num_runs, self.quantile, self.confidence = fits, num_runs, quantile, confidence
        region = region_of(fits.design["batch_size"].to_numpy(), fits.design["total_tokens"].to_numpy())
        span = StepLine().span(region)
        if span is None or span[0] == span[1]:
            raise InputError(
                "the design's trace has no decode-only steps of several sizes, none to promise: give "
                "another one"
            )
        self.batch_sizes = np.arange(span[0], span[1] + 1)
        self.decode = steps_arrays(self.batch_sizes, self.batch_sizes)
        self.metadata = self._metadata(loaded)
        self.server(np.random.default_rng(fits.settings.seed))  # an implausible design is refused at once

    def title(self, number: int) -> str:
        """Return the ten servers that this one is among."""
        return f"simulated servers, from {number - number % 10:,}"

    def run(self, number: int) -> pd.DataFrame:
        """Simulate and fit one server, and make promises of it.

        One row a promise, a single one if the fit failed with an error. ``promise``: ``batch`` (the largest
        decode-only batch under ``limit_ms``) or ``limit`` (a limit for steps of ``batch_size`` and
        ``total_tokens``). ``true_best``: the largest batch, or the smallest limit in ms, that is truly right;
        ``promised``: what the fit promises with the asked confidence; ``median``: what it would with a
        confidence of one half; ``curve``: what the single fitted curve of the mean allows. 0 stands for no
        batch at all. Each has its true ``exceedance``, the largest of all promised steps, and, of batches,
        its ``rate``: tokens/ms that such a server decodes. ``limited_by``: what ended the search.
        """
        rng = self.fits.rng(number)
        server = self.server(rng)
        limit_ms = limit_between(server.quantile_ms(self.decode, self.quantile), rng)
        observed = self.fits.simulate(server.parameters, rng)
        found: dict[str, Any] = {}
        rows: list[dict[str, Any]] = [{}]
        with noted(found):
            fit, gate = self._fit(observed, seed=int(rng.integers(MOST_SEED)))
            found |= {"gate_passed": gate.converged, "worst_ess": gate.worst_ess}
            rows = [self._batch(fit, server, limit_ms), *self._limits(fit, server)]
        table = pd.DataFrame([row | found for row in rows]).reindex(columns=["server", *COLUMNS])
        return table.assign(server=number)

    def server(self, rng: np.random.Generator) -> TrueServer:
        """Draw a server from the priors until it could be a real one that larger batches slow down."""

        def is_plausible(parameters: xr.Dataset) -> bool:
            server = TrueServer(model=self.fits.model, parameters=parameters)
            mean, late = server.mean_ms(self.decode), server.quantile_ms(self.decode, self.quantile)
            rises = late[-1] >= LEAST_RISE * late[0]
            falls = (late < (1.0 - MOST_FALL) * np.maximum.accumulate(late)).any()
            return bool(rises and not falls and (late <= MOST_TAIL * mean).all())

        drawn = self.fits.plausible(rng, is_plausible=is_plausible)
        return TrueServer(model=self.fits.model, parameters=drawn)

    def _metadata(self, loaded: ModelFile) -> FitMetadata:
        steps = self.fits.steps.assign(latency_ms=1.0)
        return open_provenance(
            steps,
            name="simulated server",
            labels=None,
            model=loaded,
            noise=self.fits.noise,
            priors=self.fits.priors,
            cleaned=clean_steps(steps),
            limits_ms=(1.0, 300.0),
            num_used=len(steps),
            settings=self.fits.settings,
            warnings=(),
            command=None,
        )

    def _fit(self, observed_ms: Floats, *, seed: int) -> tuple[FittedModel, Convergence]:
        samples, gate = self.fits.fit(observed_ms, seed=seed)
        data = samples.data.copy()
        data["cells"] = xr.DataTree(summarise_cells(self.fits.steps.assign(latency_ms=observed_ms)))
        metadata = replace(self.metadata, converged=gate.converged)
        return FittedModel(data=data, model=self.fits.model, metadata=metadata), gate

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
        best = largest_batch(server.quantile_ms(self.decode, self.quantile), self.batch_sizes, limit_ms)
        row: dict[str, Any] = {"promise": "batch", "limit_ms": limit_ms, "true_best": best}
        row |= {"true_rate": server.rate(best), "limited_by": asked.limited_by}
        caps = {"promised": asked.promised, "median": even.promised, "curve": asked.point}
        for column, cap in caps.items():
            number, prefix = 0 if cap is None else cap.number, MAKERS[column][0]
            steps = self.decode.isel(step=self.batch_sizes <= number)
            row[column] = number
            row[f"{prefix}exceedance"] = float(server.exceedance(steps, limit_ms).max(initial=0.0))
            row[f"{prefix}rate"] = server.rate(number)
        return row

    def _limits(self, fit: FittedModel, server: TrueServer) -> Iterator[dict[str, Any]]:
        """Yield the rows of the limits of single kinds of steps."""
        probed = self.fits.probed[["batch_size", "total_tokens"]]
        steps = steps_arrays(probed["batch_size"], probed["total_tokens"])
        draws = quantile_draws(fit, steps, self.quantile, max_draws=None)
        promised, median = (np.quantile(draws, level, axis=0) for level in (self.confidence, EVEN))
        columns = {
            "true_best": server.quantile_ms(steps, self.quantile),
            "promised": promised,
            "median": median,
            "exceedance": server.exceedance(steps, promised),
            "median_exceedance": server.exceedance(steps, median),
        }
        for i, (requests, tokens) in enumerate(probed.to_numpy(int)):
            kind = {"promise": "limit", "batch_size": int(requests), "total_tokens": int(tokens)}
            yield kind | {name: float(values[i]) for name, values in columns.items()}

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> ServerPromises:
        """Count broken promises, and what promises give away."""
        made = runs[runs["promise"].notna()].reset_index(drop=True)
        if made.empty:
            raise InputError(
                f"no server could be fitted; see the column error of the table in {folder.folder}"
            )
        each = runs.drop_duplicates("server")
        return ServerPromises(
            settings=folder.settings,
            tables={
                "broken": broken_table(made, quantile=self.quantile),
                "broken_by_step": broken_by_step(made, quantile=self.quantile),
                "given_away": given_away_table(made),
            },
            exceedances={
                str(kind): {
                    by: np.sort(group.loc[group[column].notna(), f"{prefix}exceedance"].to_numpy(float))
                    for column, (prefix, by) in MAKERS.items()
                    if group[column].notna().any()
                }
                for kind, group in made.groupby("promise")
            },
            given_away={
                name: np.sort(values.dropna().to_numpy(float))
                for name, values in zip(
                    ("batch size", "decoded tokens/s"), _given_away(made, "promised").values(), strict=False
                )
            },
            num_servers=len(each),
            num_promised=made["server"].nunique(),
            num_errors=int(each["error"].notna().sum()),
            num_passed=int(each["gate_passed"].fillna(False).astype(bool).sum()),
            cpu_seconds=each["cpu_seconds"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerPromises(Findings):
    """What became of promises to simulated servers."""

    exceedances: Mapping[str, Mapping[str, Floats]]
    given_away: Mapping[str, Floats]
    num_servers: int
    num_promised: int
    num_errors: int
    num_passed: int
    cpu_seconds: pd.Series


def largest_batch(late_ms: Floats, batch_sizes: Ints, limit_ms: float) -> int:
    """Return the largest batch up to which all keep a limit, 0 where not even the first does.

    `late_ms` is the true quantile of decode-only steps of increasing `batch_sizes`, dims (batch,) both.
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


def broken_table(promises: pd.DataFrame, *, quantile: float) -> pd.DataFrame:
    """Return how many promises are broken: more steps are late, in truth, than the quantile allows.

    ``promise``, ``by``, ``servers``, ``promises``, ``nothing`` (how many of these are of no batch at all,
    which no step can break), ``broken`` (share of all), ``lower``, ``upper`` (its interval of probability
    :data:`INTERVAL`, which counts servers: promises of one server go together), and
    ``worst_exceedance``.
    """
    rows = []
    for kind, group in promises.groupby("promise", sort=True):
        for column, (prefix, by) in MAKERS.items():
            given = group[group[column].notna()]
            late = given[f"{prefix}exceedance"].to_numpy(float)
            if not len(late):
                continue
            number = group["server"].nunique()
            broken = float((late > 1.0 - quantile).mean())
            rows.append(
                {
                    "promise": WHAT[str(kind)],
                    "by": by,
                    "servers": number,
                    "promises": len(late),
                    "nothing": int((given[column] == 0).sum()),
                    **_share(broken * number, number, broken),
                    "worst_exceedance": float(late.max()),
                }
            )
    return pd.DataFrame(rows)


def broken_by_step(promises: pd.DataFrame, *, quantile: float) -> pd.DataFrame:
    """Return :func:`broken_table` of the limits of each probed (B, S), of the promise itself.

    ``batch_size``, ``total_tokens``, ``promises``, ``broken``, ``lower``, ``upper``.
    """
    limits = promises[promises["promise"] == "limit"]
    rows: list[dict[str, float]] = []
    for _, group in limits.groupby(["batch_size", "total_tokens"]):
        b, s = group[["batch_size", "total_tokens"]].iloc[0]
        count = int((group["exceedance"] > 1.0 - quantile).sum())
        row = {"batch_size": int(b), "total_tokens": int(s), "promises": len(group)}
        rows.append(row | _share(count, len(group), count / len(group)))
    return pd.DataFrame(rows)


def _share(count: float, number: int, broken: float) -> dict[str, float]:
    lower, upper = share_interval(count, number, level=INTERVAL)
    return {"broken": broken, "lower": float(lower), "upper": float(upper)}


def given_away_table(promises: pd.DataFrame) -> pd.DataFrame:
    """Return what promises give away against what is truly possible.

    ``what``, ``by``, and over the promises ``mean``, ``median``, ``q90`` (nine in ten give away less) and
    ``worst`` of the share given away: of the batch, of the tokens/ms that it decodes, and how much larger
    than the true quantile a limit is. Negative where more was promised than is right.
    """
    rows = []
    for column, (_, by) in MAKERS.items():
        for what, values in _given_away(promises, column).items():
            known = values.dropna().to_numpy(float)
            if len(known):
                spread = {"mean": known.mean(), "median": np.median(known), "q90": np.quantile(known, 0.9)}
                rows.append({"what": what, "by": by, **spread, "worst": known.max()})
    return pd.DataFrame(rows).sort_values("what", kind="stable", ignore_index=True)


def _given_away(promises: pd.DataFrame, column: str) -> dict[str, pd.Series]:
    """Return the shares that one of :data:`MAKERS` gives away, by what."""
    batches, limits = (promises[promises["promise"] == kind] for kind in ("batch", "limit"))
    rate = f"{MAKERS[column][0]}rate"
    return {
        "batch: 1 - B / true B": 1.0 - batches[column] / batches["true_best"],
        "throughput: 1 - rate / true rate": 1.0 - batches[rate] / batches["true_rate"],
        "limit: limit / true quantile - 1": limits[column] / limits["true_best"] - 1.0,
    }
