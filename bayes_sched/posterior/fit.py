"""From a trace to a fitted model: clean, thin, sample, apply the gate, keep where it comes from."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import quantile_test

from bayes_sched.errors import InputError
from bayes_sched.format import number, span
from bayes_sched.model.priors import JointPrior, Priors
from bayes_sched.model.protocol import LatencyModel, ModelFile, all_parameters, load_model_file
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import open_provenance, plain
from bayes_sched.posterior.typical_load import TypicalLoad
from bayes_sched.region import LEAST
from bayes_sched.sampling import sample as sampling
from bayes_sched.sampling.nuts import Progress, SamplerSettings
from bayes_sched.trace.cleaning import DEFAULT_MAX_ROWS, Cleaned, Thinned, clean_steps, thin_steps
from bayes_sched.trace.reader import Trace

MIN_STEPS = 20
"""Fewer steps than this say less than the priors do."""

MAX_OBSERVED = 100_000
"""Steps of its trace that a fit keeps: a megabyte or two, and enough to test every limit on them."""

_CELL = ["batch_size", "total_tokens"]
_TOLD = ("num_prefill_reqs", "context_tokens", "prefill_pairs", "kv_cache_usage")


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
    min_latency_ms: float | None = None,
    max_latency_ms: float | None = None,
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
    model, noise : str, Path or ModelFile; str, optional
        Name of a shipped model, or the path of a file, which is run; its noise option, by default the first.
    priors : Priors or mapping, optional
        All priors, or overrides of the model's own: ``{"tau_S": {"low": 0.001, "high": 0.01}}``.
    min_latency_ms, max_latency_ms : float, optional
        Limits of the cleaning; by default the documented 1 and 300 ms, moved where they would hide what the
        server does: see `clean_steps`.
    settings : SamplerSettings, optional
        How long and with what to sample.
    max_rows : int
        Steps to use at most; see `thin_steps`. Which ones does not depend on the sampler's seed.
    name, labels, command : str, mapping of str to str, str, optional
        Kept with the fit; name and labels (``gpu``, ``llm``) go before those of the trace.
    population : JointPrior, optional
        What other servers tell, as :meth:`bayes_sched.pooling.population.Population.prior` returns it, in
        place of the priors of what data identify.
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
    if progress is not None:
        progress("loading the model", None)
    loaded = model if isinstance(model, ModelFile) else load_model_file(model)
    settings = settings or SamplerSettings()
    with _blaming(loaded):
        noise = noise or loaded.model.noises[0]
        all_priors = _all_priors(loaded.model, noise, priors)
        if population is not None:
            all_priors = all_priors.within(population)
        usable, incomplete = _complete_rows(cleaned.steps, loaded.model)
    thinned = thin_steps(usable, max_rows)
    _check_enough(thinned.steps)
    metadata = open_provenance(
        trace,
        name=name,
        labels=labels,
        model=loaded,
        noise=noise,
        priors=all_priors,
        cleaned=cleaned,
        limits_ms=cleaned.limits_ms,
        num_used=len(thinned.steps),
        settings=settings,
        warnings=(
            *cleaned.warnings,
            *filter(None, (incomplete, thinned.text)),
            *_unidentified(thinned.steps),
        ),
        command=command,
        thinned_to=max_rows if len(thinned.steps) < len(usable) else None,
    )
    with _blaming(loaded):
        samples = sampling.sample(
            loaded.model, thinned.steps, all_priors, noise=noise, settings=settings, progress=progress
        )
        data = samples.data.copy()
        data["typical"] = xr.DataTree(TypicalLoad.of(usable).to_dataset())
        data["cells"] = xr.DataTree(summarise_cells(thinned.steps))
        data["observed"] = xr.DataTree(observed_steps(usable))
        gate = convergence(data, tune=settings.tune)
        metadata = replace(
            metadata,
            converged=gate.converged,
            problems=gate.problems,
            sampler={**metadata.sampler, **plain(samples.info)},
            timings_s={**samples.timings_s, "total": time.perf_counter() - start},
        )
        fitted = FittedModel(data=data, model=loaded.model, metadata=metadata)
    vars(fitted)["convergence"] = gate  # the property's cache: the gate takes seconds, and is known
    return FitResult(
        fit=fitted,
        steps=cleaned.steps,
        cleaned=cleaned,
        thinned=thinned,
        trace=trace if isinstance(trace, Trace) else None,
    )


def load_same_fit(
    file: Path,
    *,
    trace_sha256: str,
    model: str | Path,
    noise: str | None,
    min_latency_ms: float | None,
    max_latency_ms: float | None,
    settings: SamplerSettings,
    max_rows: int,
) -> FittedModel | None:
    """Return a saved fit if it is that of this trace under documented priors, made with these options.

    The options are those of :func:`fit`. None where there is no file, or the fit of something else;
    InputError where the file is damaged, or there is no such model.
    """
    if not file.is_file():
        return None
    loaded = load_model_file(model)
    fit = FittedModel.load(file, model=None if loaded.shipped else loaded)
    metadata, noise = fit.metadata, noise or loaded.model.noises[0]
    names = ("draws", "tune", "chains", "seed")
    sampler = {"name": settings.sampler, **{name: getattr(settings, name) for name in names}}
    cleaning, thinned_to = metadata.cleaning, metadata.thinned_to
    is_same = (
        metadata.trace_sha256 == trace_sha256
        and (metadata.model.sha256, metadata.noise) == (loaded.sha256, noise)
        and min_latency_ms in (None, cleaning.min_latency_ms)
        and max_latency_ms in (None, cleaning.max_latency_ms)
        and all(metadata.sampler.get(key) == value for key, value in sampler.items())
        and metadata.prior_from is None
        and metadata.priors == Priors.from_parameters(all_parameters(loaded.model, noise))
        and (metadata.rows.used <= max_rows if thinned_to is None else thinned_to == max_rows)
    )
    return fit if is_same else None


def summarise_cells(steps: pd.DataFrame) -> xr.Dataset:
    """Return what a fit keeps of its steps: each combination of requests and tokens, dims (cell,).

    ``batch_size``, ``total_tokens``, ``count`` (steps), ``q05_ms``, ``median_ms``, ``q95_ms``.
    """
    groups = steps.astype(dict.fromkeys(_CELL, np.int64)).groupby(_CELL, sort=True)["latency_ms"]
    table = groups.size().rename("count").reset_index()
    for name, level in {"q05_ms": 0.05, "median_ms": 0.5, "q95_ms": 0.95}.items():
        table[name] = groups.quantile(level).to_numpy()
    return xr.Dataset({str(name): ("cell", table[name].to_numpy()) for name in table})


def observed_steps(steps: pd.DataFrame) -> xr.Dataset:
    """Return the steps that a fit keeps, to be held against them: of a long trace the rare ones first."""
    kept = thin_steps(steps, MAX_OBSERVED).steps
    whole = kept[[*_CELL, "latency_ms", *(name for name in _TOLD if name in kept)]].dropna(axis="columns")
    return xr.Dataset({str(name): ("step", column.to_numpy()) for name, column in whole.items()})


def _check_enough(steps: pd.DataFrame) -> None:
    if len(steps) < MIN_STEPS:
        raise InputError(
            f"{len(steps):,} usable steps are too few for a fit, which takes at least {MIN_STEPS}: record a "
            "longer trace, or move the limits (min_latency_ms, max_latency_ms, max_rows)"
        )
    sizes = steps.groupby(_CELL)["latency_ms"]
    commonest: Any = sizes.size().idxmax()
    alike = sizes.get_group(commonest)
    if len(steps) - len(alike) >= LEAST:
        return
    lower, upper = quantile_test(alike, p=0.5).confidence_interval(0.95)
    raise InputError(
        f"{'all' if len(alike) == len(steps) else f'{len(alike):,} of'} {len(steps):,} usable steps have "
        f"B = {commonest[0]:g} and S = {commonest[1]:g}. Known from them is that such a step takes "
        f"{number(alike.median())} ms in the median (95% interval {span(lower, upper)}) and 90% of them "
        f"{span(*alike.quantile([0.05, 0.95]))} ms, and nothing of any other: record a trace in which "
        "several requests run at once, their number changing, with prompts of many lengths"
    )


def _unidentified(steps: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence on what steps cannot tell, whatever their number."""
    b, s = (steps[name] for name in _CELL)
    if (b == b.iloc[0]).all():
        yield (
            f"all steps have {b.iloc[0]:g} request{'' if b.iloc[0] == 1 else 's'}: what one more costs is "
            "as the priors have it, so that answers hold for that number alone"
        )
    if (s == b).all():
        yield (
            "no step holds a prefill: what a token costs, other than with its request, is as the priors have "
            "it, so that answers hold for decode-only steps alone"
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
    if not isinstance(priors, Priors):
        return default.override(priors or {})
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
