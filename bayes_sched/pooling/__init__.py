"""Servers that borrow strength from each other: a population, its members, and the prior of the next one.

>>> from bayes_sched.pooling import pool
>>> result = pool([fit_a, fit_b, fit_c])
>>> result.pooled["a"].predictive_band(steps)
>>> bayes_sched.fit(new_trace, population=result.population.prior())
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.pooling.pooled import POPULATION_SETTINGS, Pool, Refit, pool
    from bayes_sched.pooling.population import Population

__all__ = ["POPULATION_SETTINGS", "UNSEEN", "Pool", "Population", "Refit", "pool"]

UNSEEN = "unseen"
"""Name of the member of a pool that is a server not yet seen."""

_MODULE_OF = {
    "POPULATION_SETTINGS": "pooled",
    "Pool": "pooled",
    "Population": "population",
    "Refit": "pooled",
    "pool": "pooled",
}

__getattr__ = loader(__name__, _MODULE_OF)
