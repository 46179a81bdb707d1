"""Names of splits and of competing predictors, known without loading what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bayes_sched.errors import InputError
from bayes_sched.model.protocol import shipped_models

SPLIT_TITLES: Final = {
    "random": "a random 20 % held out",
    "blocks": "a random 20 % held out, 100 steps in a row",
    "time": "the last 20 % of each trace held out",
    "rows-1000": "1,000 random steps to learn from",
    "rows-200": "200 random steps to learn from",
    "rows-50": "50 random steps to learn from",
    "budget": "the largest token budget held out",
    "decode-only": "decode steps to learn from, the others held out",
}
"""Ways of holding steps out, in the order of the tables, and what they mean."""
BASELINES: Final = ("line", "baseline", "baseline-huber")
CONSTANT: Final = "saturation:constant"
BOOSTED: Final = ("lightgbm", "lightgbm-context")


def competitor_names() -> tuple[str, ...]:
    """Return the names of all competitors: baselines, every shipped model, and LightGBM."""
    return (*BASELINES, CONSTANT, *shipped_models(), *BOOSTED)


def check_splits(names: Sequence[str]) -> None:
    """Refuse a split that is unknown or given twice, or none at all."""
    for number, name in enumerate(names):
        if name not in SPLIT_TITLES:
            raise InputError(f"{name}: no such split; give some of {', '.join(SPLIT_TITLES)}")
        if name in names[:number]:
            raise InputError(f"{name}: given twice")
    if not names:
        raise InputError(f"no split; give some of {', '.join(SPLIT_TITLES)}")


def check_competitors(names: Sequence[str]) -> None:
    """Refuse a name that is unknown or given twice, or a file that is missing; no model is loaded."""
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"{name}: given twice")
        model = name.partition(":")[0]
        if model.endswith(".py") and not Path(model).is_file():
            raise InputError(f"{model}: no such file")
        if name not in competitor_names() and model not in shipped_models() and not model.endswith(".py"):
            raise InputError(
                f"{name}: no such contender; give some of {', '.join(competitor_names())}, MODEL:NOISE, or "
                "the path of a model's .py file"
            )
