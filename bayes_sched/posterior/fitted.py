"""A fitted model: what is known of a server after its trace has been seen, ready to be asked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, ModelFile, all_parameters
from bayes_sched.posterior.contexts import Contexts
from bayes_sched.posterior.diagnostics import Convergence, convergence, known_priors, parameter_table
from bayes_sched.posterior.prediction import (
    Cells,
    Evaluator,
    Thresholds,
    as_threshold,
    band_levels,
    check_probability,
    quantile_levels,
)
from bayes_sched.posterior.provenance import FitDescription, FitMetadata
from bayes_sched.posterior.store import model_of, read_fit, write_fit
from bayes_sched.posterior.typical_load import LOADS, SeenLoads, TypicalLoad, complete
from bayes_sched.region import Region, region_of
from bayes_sched.steps import SIZES, Steps, as_steps

DEFAULT_PROBABILITY = 0.9
"""Probability of every interval and band, unless told otherwise: 5 % on either side."""

DEFAULT_MAX_DRAWS = 1000
"""Posterior draws, evenly spaced over the chains, that predictions use unless told otherwise. It costs about
3 % of a quantity's posterior standard deviation, far less than the width of a band."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedModel:
    """The posterior of a latency model, and what it predicts.

    Two uncertainties are kept apart. *Mean* latency, and what ends in ``_draws``, is about what we know of
    the server: it narrows as the trace grows. *Predictive* quantities are about what a single step will do:
    parameters and noise together. All latencies are in ms.

    Predictions take ``steps``: a DataFrame with one row a step (dim ``step``), an ``xarray.Dataset``, or what
    :func:`~bayes_sched.steps.steps_arrays` and :func:`~bayes_sched.steps.steps_grid` return; results keep
    their dims and coordinates. ``max_draws`` thins the posterior evenly; None uses every draw. An impossible
    step (fewer tokens than requests, less than one request, NaN) raises
    :class:`~bayes_sched.errors.InputError`.

    Parameters
    ----------
    data : DataTree
        Groups ``posterior`` (chain, draw), ``prior`` (draw) and ``cells`` (cell), for the convergence gate
        ``sample_stats`` and ``coordinates`` (chain, draw), ``observed`` (step), and for models of more than
        B and S ``typical``.
    model : LatencyModel
    metadata : FitMetadata
    load_warnings : tuple of str
        What loading found to say.
    context_tokens : float or None
        Tokens of context that each decoding request is taken to have where steps do not tell; None integrates
        over what the trace shows at steps like them.

    Raises
    ------
    InputError
        A parameter of the model is missing from the posterior.
    """

    data: xr.DataTree
    model: LatencyModel
    metadata: FitMetadata
    load_warnings: tuple[str, ...] = ()
    context_tokens: float | None = None
    _evaluators: dict[int | None, Evaluator] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        names = [p.name for p in all_parameters(self.model, self.metadata.noise)]
        missing = [name for name in names if name not in self.data["posterior"].data_vars]
        if missing:
            raise InputError(
                f"the posterior of {self.metadata.name} has no {', '.join(missing)}: another model made it"
            )

    @property
    def posterior(self) -> xr.Dataset:
        """Draws of every documented and noise parameter, dims (chain, draw)."""
        return self.data["posterior"].to_dataset()

    @property
    def prior(self) -> xr.Dataset:
        """Prior draws of the same parameters, dims (draw,)."""
        return self.data["prior"].to_dataset()

    @property
    def cells(self) -> xr.Dataset:
        """Steps used by (B, S), dims (cell,), with ``count``, ``q05_ms``, ``median_ms`` and ``q95_ms``."""
        return self.data["cells"].to_dataset()

    @cached_property
    def observed(self) -> pd.DataFrame:
        """The trace's cleaned steps, not thinned: B, S, ``latency_ms`` and what else it tells of a step.

        Without rows where the file does not keep them, as older ones do not.
        """
        if "observed" not in self.data.children:
            return pd.DataFrame(columns=[*SIZES, "latency_ms"], dtype=float)
        return self.data["observed"].to_dataset().to_dataframe().reset_index(drop=True)

    @cached_property
    def contexts(self) -> Contexts | None:
        """Where steps of B and S alone take the model's other columns from; None where nothing tells them."""
        columns = self.model.columns
        if set(columns) <= set(SIZES):
            return None
        if self.context_tokens is not None:
            load = replace(self.typical, context_per_decode=self.context_tokens, cached_per_chunk=0.0)
            return Contexts.typical(load, columns)
        return Contexts.of(self.observed, columns) or Contexts.typical(self.typical, columns)

    @property
    def context_text(self) -> str:
        """For what context answers over (B, S) alone are, a sentence; empty where B and S say it all."""
        if self.contexts is None:
            return ""
        if self.context_tokens is not None:
            return f"Each decoding request is taken to have {self.context_tokens:,.0f} tokens of context."
        if Contexts.of(self.observed, self.model.columns) is None:
            return self.typical.text(self.model.columns)
        return (
            "Where only requests and tokens are given, the rest of a step (context, prefill chunks) is as "
            "varied as in the steps of the trace nearest to it."
        )

    def with_context(self, tokens: float) -> FittedModel:
        """Return this fit, whose decoding requests all have so many tokens of context where nobody says."""
        return replace(self, context_tokens=tokens)

    @property
    def typical(self) -> TypicalLoad:
        """What the requests of the trace's steps typically bring with them, as far as the fit keeps it."""
        if "typical" not in self.data.children:
            return TypicalLoad()
        return TypicalLoad.from_dataset(self.data["typical"].to_dataset())

    def completed(self, steps: Steps) -> xr.Dataset:
        """Return steps with every column of the model: those that `steps` lacks are typical of the trace.

        A step with more tokens than requests is taken to hold one prefill chunk. Predictions never complete
        steps by themselves: whoever asks for bands over (B, S) alone does it, and says so with
        ``fit.typical.text(fit.model.columns)``.

        Returns
        -------
        Dataset, dims of the steps

        Raises
        ------
        InputError
            The model needs a column that cannot be completed, or the fit does not keep what is typical.
        """
        return complete(steps, columns=self.model.columns, typical=self.typical, model=self.model.name)

    @property
    def converged(self) -> bool:
        """Whether the convergence gate passed when the fit was made."""
        return self.metadata.converged

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know, from the fit and from loading it."""
        return (*self.metadata.warnings, *self.load_warnings)

    def evaluator(self, max_draws: int | None) -> Evaluator:
        """Return the model with so many draws of its posterior, made once: what all predictions ask."""
        if max_draws not in self._evaluators:
            self._evaluators[max_draws] = Evaluator(
                self.model, self.posterior, max_draws=max_draws, contexts=self.contexts
            )
        return self._evaluators[max_draws]

    @cached_property
    def convergence(self) -> Convergence:
        """The convergence gate, applied to the draws once and kept."""
        tune = self.metadata.sampler.get("tune")
        return convergence(self.data, tune=tune if isinstance(tune, int) else None)

    @cached_property
    def region(self) -> Region:
        """The (B, S) region that the trace covers."""
        if not self.observed.empty:
            return region_of(*(self.observed[name].to_numpy() for name in SIZES))
        return region_of(*(self.cells[name].to_numpy() for name in (*SIZES, "count")))

    def in_region(self, steps: Steps) -> xr.DataArray:
        """Return whether the trace covers each step: bool, dims of the steps.

        Steps like it were seen: :class:`~bayes_sched.region.Region`, and where they hold what else the model
        asks of a step, such as context, with about as much of that for each request.
        """
        columns = (*SIZES, *(name for name in self._seen_loads.names if name in steps))
        cells = Cells.of(as_steps(steps, columns=columns), columns=columns)
        inside = self.region.contains(cells.table["batch_size"], cells.table["total_tokens"])
        if len(columns) == len(SIZES) + len(self._seen_loads.names) > len(SIZES):
            inside = inside & self._seen_loads.contain(cells.table)
        is_seen = inside[cells.cell_of_step].reshape(cells.template.shape)
        return cells.template.copy(data=is_seen & cells.template.to_numpy()).rename("in_region")

    @cached_property
    def _seen_loads(self) -> SeenLoads:
        """The steps of the trace with what the model asks of them besides B and S, where the fit keeps it."""
        names = tuple(name for name in LOADS if name in self.model.columns and name in self.observed)
        return SeenLoads(self.observed, names)

    def extrapolation(self, steps: Steps) -> xr.DataArray:
        """Return whether the prediction for each step is an extrapolation: bool, dims of the steps."""
        return (~self.in_region(steps)).rename("extrapolation")

    @cached_property
    def description(self) -> FitDescription:
        """What a result keeps of this fit, in place of the fit itself."""
        return FitDescription(metadata=self.metadata, warnings=self.warnings, region=self.region)

    def mean_latency(self, steps: Steps, *, max_draws: int | None = DEFAULT_MAX_DRAWS) -> xr.DataArray:
        """Return draws of the mean latency, ms, dims (chain, draw, *steps): what we know of the server."""
        return _named(self.evaluator(max_draws).mean(steps), "mean_latency_ms", "ms")

    def mean_band(
        self,
        steps: Steps,
        *,
        probability: float = DEFAULT_PROBABILITY,
        max_draws: int | None = DEFAULT_MAX_DRAWS,
    ) -> xr.Dataset:
        """Return the credible band of the mean latency: what we know of the server, parameters alone.

        Returns
        -------
        Dataset, dims of the steps
            ``lower``, ``median``, ``upper`` (ms, equal tails) and ``extrapolation`` (bool).
        """
        levels = band_levels(probability)
        quantiles = self.evaluator(max_draws).over_draws(
            steps,
            lambda mixture, mean, scale, x: np.quantile(mean, levels, axis=0),
            leading={"quantile": levels},
            level=None,
        )
        return self._band(steps, quantiles, kind="mean", probability=probability)

    def predictive_band(
        self,
        steps: Steps,
        *,
        probability: float = DEFAULT_PROBABILITY,
        max_draws: int | None = DEFAULT_MAX_DRAWS,
    ) -> xr.Dataset:
        """Return the band that a step's latency falls into: what a step does, parameters and noise together.

        Returns
        -------
        Dataset, dims of the steps
            ``lower``, ``median``, ``upper`` (ms, at least 0, equal tails) and ``extrapolation`` (bool).
        """
        quantiles = self.quantile(steps, band_levels(probability), max_draws=max_draws)
        return self._band(steps, quantiles, kind="predictive", probability=probability)

    def quantile(
        self, steps: Steps, q: float | Sequence[float] | Floats, *, max_draws: int | None = DEFAULT_MAX_DRAWS
    ) -> xr.DataArray:
        """Return posterior predictive quantiles: the latency that a step stays below with probability `q`.

        Returns
        -------
        DataArray, dims (quantile, *steps), or those of the steps where `q` is one number
            ms, at least 0.
        """
        result = self.evaluator(max_draws).quantile(steps, quantile_levels(q))
        return _named(result if np.ndim(q) else result.isel(quantile=0), "quantile_ms", "ms")

    def quantile_draws(
        self, steps: Steps, q: float | Sequence[float] | Floats, *, max_draws: int | None = DEFAULT_MAX_DRAWS
    ) -> xr.DataArray:
        """Return the noise quantile of each draw, so that its credible interval can be taken.

        "Are we 95 % sure that 99 % of such steps stay below 50 ms?" is ``(quantile_draws(steps, 0.99) <= 50)
        .mean(("chain", "draw")) >= 0.95``.

        Returns
        -------
        DataArray, dims (quantile, chain, draw, *steps), or without quantile where `q` is one number
            ms, at least 0.
        """
        result = self.evaluator(max_draws).quantile_draws(steps, quantile_levels(q))
        return _named(result if np.ndim(q) else result.isel(quantile=0), "quantile_ms", "ms")

    def probability_below(
        self, steps: Steps, latency_ms: Thresholds, *, max_draws: int | None = DEFAULT_MAX_DRAWS
    ) -> xr.DataArray:
        """Return the posterior predictive probability that a step takes at most `latency_ms`.

        Parameters
        ----------
        steps : DataFrame or Dataset
        latency_ms : float, sequence, Series or DataArray
            One limit; a sequence of them (a dim ``latency_ms`` of the result); one for each step, as a Series
            such as a column of `steps`; or a DataArray, whose dims are matched by name.
        max_draws : int or None

        Returns
        -------
        DataArray, dims of the steps and of `latency_ms`
        """
        threshold = as_threshold(latency_ms)
        result = self.evaluator(max_draws).over_draws(
            steps, lambda mixture, mean, scale, x: mixture.cdf(mean, scale, x), threshold=threshold
        )
        return _named(result, "probability_below", "1")

    def probability_below_draws(
        self, steps: Steps, latency_ms: Thresholds, *, max_draws: int | None = DEFAULT_MAX_DRAWS
    ) -> xr.DataArray:
        """Return P(latency <= `latency_ms`) of each draw, so that its credible interval can be taken.

        Returns
        -------
        DataArray, dims (chain, draw, *steps and latency_ms)
        """
        result = self.evaluator(max_draws).cdf(steps, as_threshold(latency_ms))
        return _named(result, "probability_below", "1")

    def sample_latency(
        self, steps: Steps, *, seed: int, max_draws: int | None = DEFAULT_MAX_DRAWS
    ) -> xr.DataArray:
        """Draw latencies from the posterior predictive: one for each posterior draw and step, ms, at least 0.

        Returns
        -------
        DataArray, dims (chain, draw, *steps)
        """
        return _named(self.evaluator(max_draws).sample(steps, seed=seed), "latency_ms", "ms")

    def parameter_table(self, *, probability: float = DEFAULT_PROBABILITY) -> pd.DataFrame:
        """Return what is known of each parameter, and of the combinations that data identify.

        Returns
        -------
        DataFrame
            One row a quantity: ``name``, ``meaning``, ``unit``, ``mean``, ``median``, ``lower``, ``upper``
            (credible interval, equal tails), ``ess_bulk``, ``ess_tail``, ``r_hat``, ``prior_median``,
            ``contraction`` (1 minus the variance of the logarithm over its prior variance; below 0 where the
            posterior is wider), ``verdict`` (in words), ``kind`` (``parameter``, ``noise`` or
            ``combination``).
        """
        return parameter_table(
            self.model,
            self.posterior,
            self.prior,
            self.convergence,
            priors=self._documented_priors,
            noise=self.metadata.noise,
            probability=check_probability(probability, name="probability"),
        )

    def contraction(self, name: str) -> float:
        """Return 1 minus the ratio of posterior to prior variance of the logarithm of a parameter."""
        prior = known_priors(self.prior[[name]], self._documented_priors)[name]
        return 1.0 - float(np.log(self.posterior[name]).var(ddof=1)) / prior.sigma**2

    @property
    def _documented_priors(self) -> Priors | None:
        return self.metadata.priors if self.metadata.prior_from is None else None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a netCDF file, atomically; an existing file is replaced.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        write_fit(self.data, path, attrs=self.metadata.to_attrs())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] | ModelFile | None = None,
        context_tokens: float | None = None,
    ) -> FittedModel:
        """Read a fit written by :meth:`save`. Nothing in the file is executed.

        Parameters
        ----------
        path : path-like
            Such as ``results/h100/posterior.nc``.
        model : str, path-like or ModelFile, optional
            The model's file, needed where it is not one of the project's own: it is run.
        context_tokens : float, optional
            As of :meth:`with_context`.

        Raises
        ------
        InputError
            The file is missing, no fit, damaged or of a later format, or its model's file has to be named.
        """
        data = read_fit(path)
        try:
            metadata = FitMetadata.from_attrs({str(key): value for key, value in data.attrs.items()})
            fitted_with, warnings = model_of(metadata, model=model)
            return cls(
                data=data,
                model=fitted_with,
                metadata=metadata,
                load_warnings=warnings,
                context_tokens=context_tokens,
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error

    def _band(self, steps: Steps, quantiles: xr.DataArray, *, kind: str, probability: float) -> xr.Dataset:
        band = {
            name: quantiles.isel(quantile=i, drop=True).assign_attrs(units="ms")
            for i, name in enumerate(("lower", "median", "upper"))
        }
        return xr.Dataset(
            {**band, "extrapolation": self.extrapolation(steps)},
            attrs={"kind": kind, "probability": probability},
        )


def _named(array: xr.DataArray, name: str, units: str) -> xr.DataArray:
    return array.rename(name).assign_attrs(units=units)
