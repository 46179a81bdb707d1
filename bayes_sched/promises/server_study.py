"""Promises made to simulated servers, held against the truth.

A server is drawn, a trace of it simulated and fitted, and promises are made as `sla` makes them: the largest
decode-only batch under a limit, and limits for single kinds of steps. A promise is *broken* if, in truth,
more steps take longer than it says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.account import open_account
from bayes_sched.diagnostics import convergence
from bayes_sched.errors import FIT_ERRORS, InputError, error_text
from bayes_sched.fitted import FittedModel
from bayes_sched.fitting import summarise_cells
from bayes_sched.metadata import FitMetadata
from bayes_sched.model import ModelFile
from bayes_sched.promises.plausible import TrueServer, largest_batch, limit_between, plausible_server
from bayes_sched.region import Region
from bayes_sched.simulation_calibration import CalibrationStudy
from bayes_sched.sla.line import Line
from bayes_sched.sla.objective import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE
from bayes_sched.sla.search import quantile_draws
from bayes_sched.sla.step_promise import step_sla
from bayes_sched.steps import steps_arrays
from bayes_sched.trace import clean_steps

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
        region = Region.of(self.design["batch_size"].to_numpy(), self.design["total_tokens"].to_numpy())
        span = Line().span(region)
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
