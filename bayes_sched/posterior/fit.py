"""From a trace to a fitted model: clean, thin, sample, apply the gate, keep the account."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.model.priors import JointPrior, Priors
from bayes_sched.model.protocol import LatencyModel, ModelFile, all_parameters, load_model_file
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import FitMetadata, open_account, plain
from bayes_sched.posterior.typical_load import TypicalLoad
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.trace.cleaning import DEFAULT_MAX_ROWS, Cleaned, Thinned, clean_steps, thin_steps
from bayes_sched.trace.reader import Trace

if TYPE_CHECKING:
    from bayes_sched.sampling.sample import Samples

_BY_ROWS = "(--max-rows "


def load_same_fit(
    file: Path,
    *,
    trace_sha256: str,
    model: str | Path,
    noise: str | None,
    min_latency_ms: float,
    max_latency_ms: float,
    settings: SamplerSettings,
    max_rows: int,
) -> FittedModel | None:
    """Return a saved fit if it is one of this trace under documented priors, made with these options.

    Parameters
    ----------
    file : Path
        Of the fit; it need not exist.
    trace_sha256 : str
    model, noise, min_latency_ms, max_latency_ms, settings, max_rows
        As :func:`bayes_sched.fit` takes them.

    Returns
    -------
    FittedModel or None
        None where there is no file, or the fit of something else.

    Raises
    ------
    InputError
        The file is damaged, or there is no such model.
    """
    if not file.is_file():
        return None
    loaded = load_model_file(model)
    fit = FittedModel.load(file, model=None if loaded.shipped else loaded)
    limits = (min_latency_ms, max_latency_ms)
    found = _is_same(fit.metadata, trace_sha256, loaded, noise, limits, settings)
    return fit if found and _uses_as_many(fit.metadata, max_rows) else None


def _is_same(
    metadata: FitMetadata,
    trace_sha256: str,
    model: ModelFile,
    noise: str | None,
    limits_ms: tuple[float, float],
    settings: SamplerSettings,
) -> bool:
    """Return whether a fit is the same but for how many steps it uses."""
    noise = noise or model.model.noises[0]
    wanted = {"name": settings.sampler} | {
        name: getattr(settings, name) for name in ("draws", "tune", "chains", "seed")
    }
    cleaning = metadata.cleaning
    return (
        metadata.trace_sha256 == trace_sha256
        and model.made(metadata.model.sha256)
        and metadata.noise == noise
        and (cleaning.min_latency_ms, cleaning.max_latency_ms) == limits_ms
        and all(metadata.sampler.get(key) == value for key, value in wanted.items())
        and metadata.prior_from is None
        and metadata.priors == Priors.from_parameters(all_parameters(model.model, noise))
    )


def _uses_as_many(metadata: FitMetadata, max_rows: int) -> bool:
    """Return whether the steps were thinned to the same number, or needed no thinning."""
    thinned = [text for text in metadata.warnings if _BY_ROWS in text]
    if thinned:
        return any(f"{_BY_ROWS}{max_rows})" in text for text in thinned)
    return metadata.rows.used <= max_rows


type Progress = Callable[[str, float | None], None]
"""Called with a stage in words and the share of it that is done, None where that is not known."""

MIN_STEPS = 20
"""Fewer steps than this say less than the priors do."""

_CELL = ["batch_size", "total_tokens"]


@dataclass(frozen=True, eq=False, kw_only=True)
class FitResult:
    """A fit and what it was made from.

    Attributes
    ----------
    fit : FittedModel
    steps : DataFrame
        All cleaned steps in the order of the trace, for figures and checks.
    cleaned : Cleaned
        What cleaning removed.
    thinned : Thinned
        The steps that were used.
    trace : Trace or None
        None where the fit was made from a table.
    """

    fit: FittedModel
    steps: pd.DataFrame
    cleaned: Cleaned
    thinned: Thinned
    trace: Trace | None


def fit(
    trace: Trace | pd.DataFrame,
    *,
    model: str | Path | ModelFile = "saturation",
    noise: str | None = None,
    priors: Priors | Mapping[str, Any] | None = None,
    min_latency_ms: float = 1.0,
    max_latency_ms: float = 300.0,
    settings: SamplerSettings | None = None,
    max_rows: int = DEFAULT_MAX_ROWS,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    command: str | None = None,
    population: JointPrior | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Sample the posterior of a latency model given a trace.

    Parameters
    ----------
    trace : Trace or DataFrame
        What `read_trace` returned, or a table with one row a step: ``batch_size`` (requests),
        ``total_tokens``, ``latency_ms``, and the other columns that the model needs.
    model : str, Path or ModelFile
        Name of a shipped model, or the path of a file, which is run.
    noise : str, optional
        Noise option of the model; by default its first.
    priors : Priors or mapping, optional
        All priors, or overrides of the model's own by parameter name:
        ``{"tau_S": {"low": 0.001, "high": 0.01}}``.
    min_latency_ms, max_latency_ms : float
        Limits of the cleaning.
    settings : SamplerSettings, optional
        How long and with what to sample.
    max_rows : int
        Steps to use at most; see `thin_steps`. Which ones does not depend on the sampler's seed.
    name : str, optional
        Name of the result; by default the trace's.
    labels : mapping of str to str, optional
        ``gpu`` and ``llm``; they go before those of the trace.
    command : str, optional
        The command line, for the account.
    population : JointPrior, optional
        What other servers tell, as :meth:`bayes_sched.pooling.Population.prior` returns it, in place of the
        priors of what data identify.
    progress : callable, optional
        Called with a stage in words and the share of it that is done, or None.

    Returns
    -------
    FitResult
        Converged or not: ``result.fit.converged`` and ``result.fit.convergence`` say so.

    Raises
    ------
    InputError
        The steps are too few or lack a column, an option does not suit the model, or the model's file fails.
    """
    start = time.perf_counter()
    steps = trace.steps if isinstance(trace, Trace) else trace
    cleaned = clean_steps(steps, min_latency_ms=min_latency_ms, max_latency_ms=max_latency_ms)
    _check_enough(cleaned.steps)
    (progress or _silent)("loading the model", None)
    loaded = model if isinstance(model, ModelFile) else load_model_file(model)
    from bayes_sched.sampling import sample as sampling  # imports PyMC and nutpie: seconds

    settings = settings or SamplerSettings()
    with _blaming(loaded):
        noise = noise or loaded.model.noises[0]
        all_priors = _all_priors(loaded.model, noise, priors)
        if population is not None:
            all_priors = all_priors.within(population)
        usable, incomplete = _complete_rows(cleaned.steps, loaded.model)
    thinned = thin_steps(usable, max_rows)
    _check_enough(thinned.steps)
    metadata = open_account(
        trace,
        name=name,
        labels=labels,
        model=loaded,
        noise=noise,
        priors=all_priors,
        cleaned=cleaned,
        limits_ms=(min_latency_ms, max_latency_ms),
        num_used=len(thinned.steps),
        settings=settings,
        warnings=(*cleaned.warnings, *filter(None, (incomplete, thinned.text))),
        command=command,
    )
    with _blaming(loaded):
        samples = sampling.sample(
            loaded.model, thinned.steps, all_priors, noise=noise, settings=settings, progress=progress
        )
        samples.data["typical"] = xr.DataTree(TypicalLoad.of(usable).to_dataset())
        fitted = _fitted(samples, thinned.steps, loaded.model, metadata, start=start)
    return FitResult(
        fit=fitted,
        steps=cleaned.steps,
        cleaned=cleaned,
        thinned=thinned,
        trace=trace if isinstance(trace, Trace) else None,
    )


def summarise_cells(steps: pd.DataFrame) -> xr.Dataset:
    """Return what a fit keeps of its steps: a row for each combination of requests and tokens.

    Parameters
    ----------
    steps : DataFrame
        ``batch_size``, ``total_tokens``, ``latency_ms``.

    Returns
    -------
    Dataset, dims (cell,)
        ``batch_size``, ``total_tokens``, ``count`` (steps), ``q05_ms``, ``median_ms``, ``q95_ms``.
    """
    groups = steps.astype(dict.fromkeys(_CELL, np.int64)).groupby(_CELL, sort=True)["latency_ms"]
    table = groups.size().rename("count").reset_index()
    levels = {"q05_ms": 0.05, "median_ms": 0.5, "q95_ms": 0.95}
    for name, level in levels.items():
        table[name] = groups.quantile(level).to_numpy()
    return xr.Dataset({str(name): ("cell", table[name].to_numpy()) for name in table})


def _fitted(
    samples: Samples, steps: pd.DataFrame, model: LatencyModel, metadata: FitMetadata, *, start: float
) -> FittedModel:
    data = samples.data.copy()
    data["cells"] = xr.DataTree(summarise_cells(steps))
    gate = FittedModel(data=data, model=model, metadata=metadata).convergence
    metadata = replace(
        metadata,
        converged=gate.converged,
        problems=gate.problems,
        sampler={**metadata.sampler, **plain(samples.info)},
        timings_s={**samples.timings_s, "total": time.perf_counter() - start},
    )
    return FittedModel(data=data, model=model, metadata=metadata)


def _silent(stage: str, share: float | None) -> None:
    """Report progress to nobody."""


def _check_enough(steps: pd.DataFrame) -> None:
    if len(steps) < MIN_STEPS:
        raise InputError(
            f"{len(steps):,} usable steps are too few for a fit, which takes at least {MIN_STEPS}: record a "
            "longer trace, or move the limits (--min-latency-ms, --max-latency-ms, --max-rows)"
        )
    first = steps.iloc[0]
    if all((steps[name] == first[name]).all() for name in _CELL):
        raise InputError(
            f"all {len(steps):,} usable steps have B = {first['batch_size']:g} and "
            f"S = {first['total_tokens']:g}: a fit needs steps of several sizes, so record a trace under a "
            "varying load"
        )


def _complete_rows(steps: pd.DataFrame, model: LatencyModel) -> tuple[pd.DataFrame, str | None]:
    """Return the steps that hold every column of the model, and a sentence on those that do not."""
    columns = [*model.columns]
    missing = [column for column in columns if column not in steps]
    if missing:
        raise InputError(f"the model {model.name} needs {', '.join(missing)}, which the trace does not hold")
    complete = steps.dropna(subset=columns)
    num_dropped = len(steps) - len(complete)
    if not num_dropped:
        return steps, None
    text = f"{num_dropped:,} of {len(steps):,} cleaned steps lack {' or '.join(columns)} and are not used"
    return complete.reset_index(drop=True), text


def _all_priors(model: LatencyModel, noise: str, priors: Priors | Mapping[str, Any] | None) -> Priors:
    default = Priors.from_parameters(all_parameters(model, noise))
    if priors is None:
        return default
    if not isinstance(priors, Priors):
        return default.override(priors)
    if set(priors) != set(default):
        raise InputError(
            f"priors of {', '.join(priors)}: the model {model.name} with noise {noise} has "
            f"{', '.join(default)}"
        )
    return Priors(priors[name] for name in default)


@contextmanager
def _blaming(loaded: ModelFile) -> Iterator[None]:
    """Turn what a researcher's model file raises into one line that names the file and the place."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        if loaded.shipped:
            raise
        frames = traceback.extract_tb(error.__traceback__)
        own = [f.lineno for f in frames if Path(f.filename).resolve() == loaded.path.resolve()]
        place = f"{loaded.path}, line {own[-1]}" if own else str(loaded.path)
        text = " ".join(str(error).split())[:300]
        raise InputError(f"{place}: the model fails ({type(error).__name__}: {text})") from error
