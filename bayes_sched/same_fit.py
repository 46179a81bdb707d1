"""Whether a saved fit is what fitting a trace again would give, so that it need not be done twice."""

from __future__ import annotations

from pathlib import Path

from bayes_sched.fitted import FittedModel
from bayes_sched.metadata import FitMetadata
from bayes_sched.model import ModelFile, all_parameters, load_model_file
from bayes_sched.priors import Priors
from bayes_sched.settings import SamplerSettings

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
        and (metadata.model.sha256, metadata.noise) == (model.sha256, noise)
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
