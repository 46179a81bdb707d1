"""Servers that borrow strength from each other: a population, its members, and the prior of the next one.

>>> from bayes_sched.pooling import pool
>>> result = pool([fit_a, fit_b, fit_c])
>>> result.pooled["a"].predictive_band(steps)
>>> bayes_sched.fit(new_trace, population=result.population.prior())
"""

from bayes_sched.pooling.member_fits import UNSEEN
from bayes_sched.pooling.pooled import POPULATION_SETTINGS, Pool, Refit, pool
from bayes_sched.pooling.population import Population

__all__ = ["POPULATION_SETTINGS", "UNSEEN", "Pool", "Population", "Refit", "pool"]
