"""Who takes part: contenders by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bayes_sched.errors import InputError
from bayes_sched.model import shipped_models
from bayes_sched.settings import SamplerSettings

if TYPE_CHECKING:
    from bayes_sched.validation import Contender

BASELINES = ("line", "baseline", "baseline-huber")
BOOSTED = ("lightgbm", "lightgbm-context")
CONSTANT = "saturation:constant"


def contender_names() -> tuple[str, ...]:
    """Return the names of all contenders: baselines, every shipped model, and LightGBM."""
    return (*BASELINES, CONSTANT, *shipped_models(), *BOOSTED)


def check_names(names: Sequence[str]) -> None:
    """Check names of contenders, as far as that goes without loading a model.

    Raises
    ------
    InputError
        A name is unknown or given twice, or a file is missing.
    """
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"--models {name}: given twice")
        model = name.partition(":")[0]
        if model.endswith(".py") and not Path(model).is_file():
            raise InputError(f"--models {model}: no such file")
        if name not in contender_names() and model not in shipped_models() and not model.endswith(".py"):
            raise InputError(
                f"--models {name}: no such contender; give some of {', '.join(contender_names())}, "
                "MODEL:NOISE, or the path of a model's .py file"
            )


def contenders_by_name(
    names: Sequence[str] | None = None, *, settings: SamplerSettings
) -> tuple[tuple[Contender, ...], tuple[str, ...]]:
    """Return contenders by name, and a sentence for each that cannot take part.

    Parameters
    ----------
    names : sequence of str, optional
        Of `contender_names`, which is the default; or ``MODEL:NOISE``, or the path of a model's file, which
        is run.
    settings : SamplerSettings
        Of the models that are sampled.

    Raises
    ------
    InputError
        A name is unknown, or a model's file fails.
    """
    names = contender_names() if names is None else tuple(names)
    check_names(names)
    from bayes_sched.contenders.boosting import has_lightgbm

    missing = () if has_lightgbm() else tuple(name for name in names if name in BOOSTED)
    chosen = tuple(_contender(name, settings) for name in names if name not in missing)
    if not missing:
        return chosen, ()
    text = (
        f"{' and '.join(missing)} left out: LightGBM is not installed (pip install 'bayes-sched[validate]')"
    )
    return chosen, (text,)


def _contender(name: str, settings: SamplerSettings) -> Contender:
    from bayes_sched.contenders.bayesian import Bayesian
    from bayes_sched.contenders.boosting import LightGBM
    from bayes_sched.contenders.least_squares import Baseline, Line
    from bayes_sched.validation.servers import CONTEXT_COLUMNS

    simple: dict[str, Contender] = {
        "line": Line(),
        "baseline": Baseline(),
        "baseline-huber": Baseline("baseline-huber", "huber"),
        "lightgbm": LightGBM(),
        "lightgbm-context": LightGBM("lightgbm-context", optional=CONTEXT_COLUMNS),
    }
    if name in simple:
        return simple[name]
    from bayes_sched.model import all_parameters, load_model_file

    path, _, noise = name.partition(":")
    loaded = load_model_file(path)
    noise = noise or loaded.model.noises[0]
    all_parameters(loaded.model, noise)  # refuses an option that the model does not have
    return Bayesian.of(loaded, name=name, noise=noise, settings=settings)
