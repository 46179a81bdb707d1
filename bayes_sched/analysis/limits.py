"""From where on something in a trace is worth a person's look."""

import math
from dataclasses import dataclass

from bayes_sched.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """From where on something is a finding.

    Attributes
    ----------
    slow_schedule_ms : float
        A step whose scheduling took longer, ms.
    schedule_rise : float
        Factor by which the schedule time of like steps rises suddenly, above 1.
    long_queue : int
        More waiting requests than this, requests.
    full_kv_cache : float
        Share of the KV cache in use, above 0 and at most 1.
    num_slowest : int
        So many slowest steps are listed.
    """

    slow_schedule_ms: float = 10.0
    schedule_rise: float = 2.0
    long_queue: int = 10
    full_kv_cache: float = 0.95
    num_slowest: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.slow_schedule_ms < math.inf:
            raise InputError(
                f"slow_schedule_ms is {self.slow_schedule_ms}: give a positive number of milliseconds"
            )
        if not 1 < self.schedule_rise < math.inf:
            raise InputError(f"schedule_rise is {self.schedule_rise}: give a factor above 1")
        if self.long_queue < 1:
            raise InputError(f"long_queue is {self.long_queue}: give at least 1 waiting request")
        if not 0 < self.full_kv_cache <= 1:
            raise InputError(f"full_kv_cache is {self.full_kv_cache}: give a share above 0 and at most 1")
        if self.num_slowest < 0:
            raise InputError(f"num_slowest is {self.num_slowest}: give a number of steps")
