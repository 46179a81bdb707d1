"""Whether a saved fit is what fitting a trace again would give, so that it need not be done twice."""

from __future__ import annotations

from bayes_sched.metadata import FitMetadata
from bayes_sched.model import ModelFile, all_parameters
from bayes_sched.priors import Priors
from bayes_sched.settings import SamplerSettings

_BY_ROWS = "(--max-rows "


def is_same_fit(
    metadata: FitMetadata,
    *,
    trace_sha256: str,
    model: ModelFile,
    noise: str | None,
    limits_ms: tuple[float, float],
    max_rows: int,
    settings: SamplerSettings,
) -> bool:
    """Return whether a fit is one of this trace under documented priors, made with these options.

    Parameters
    ----------
    metadata : FitMetadata
        Of the saved fit.
    trace_sha256 : str
    model : ModelFile
    noise : str, optional
        By default the model's first noise option.
    limits_ms : tuple of float
        Lower and upper limit of the cleaning.
    max_rows : int
        Steps to use at most.
    settings : SamplerSettings
    """
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
        and _uses_as_many(metadata, max_rows)
    )


def _uses_as_many(metadata: FitMetadata, max_rows: int) -> bool:
    """Return whether the steps were thinned to the same number, or needed no thinning."""
    thinned = [text for text in metadata.warnings if _BY_ROWS in text]
    if thinned:
        return any(f"{_BY_ROWS}{max_rows})" in text for text in thinned)
    return metadata.rows.used <= max_rows
