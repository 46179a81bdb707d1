"""Which of several servers is faster, by how much, and how sure one may be: two or more fits side by side."""

from bayes_sched.comparison.comparing import compare
from bayes_sched.comparison.result import Comparison
from bayes_sched.comparison.verdicts import COMPARISON_PROBABILITY, DEFAULT_ROPE

__all__ = ["COMPARISON_PROBABILITY", "DEFAULT_ROPE", "Comparison", "compare"]
