"""How well models predict steps that they have not seen.

The steps of each server are held out in several ways (`splits`), every contender learns from the rest, and
its forecasts are scored (`bayes_sched.scoring`), all together and for each kind of step (`regimes`). The
names are loaded when they are first used.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.validation.contender import Contender
    from bayes_sched.validation.forecast import Forecast, from_distribution, from_quantiles
    from bayes_sched.validation.kept import Kept
    from bayes_sched.validation.result import HeldOut, Validation
    from bayes_sched.validation.servers import Server, servers_of
    from bayes_sched.validation.study import StudySettings, validate

__all__ = [
    "Contender",
    "Forecast",
    "HeldOut",
    "Kept",
    "Server",
    "StudySettings",
    "Validation",
    "from_distribution",
    "from_quantiles",
    "servers_of",
    "validate",
]

_MODULE_OF = {
    "Contender": "contender",
    "Forecast": "forecast",
    "HeldOut": "result",
    "Kept": "kept",
    "Server": "servers",
    "StudySettings": "study",
    "Validation": "result",
    "from_distribution": "forecast",
    "from_quantiles": "forecast",
    "servers_of": "servers",
    "validate": "study",
}

__getattr__ = loader(__name__, _MODULE_OF)
