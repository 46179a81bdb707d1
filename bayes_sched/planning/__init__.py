"""Plans: settings with the most throughput, how many servers a workload needs, what a scheduler asks.

>>> from bayes_sched.planning import Lengths, PoissonWorkload, SchedulerSettings, plan_capacity
>>> workload = PoissonWorkload(rate_per_s=5.0, prompt=Lengths(512), output=Lengths(128, spread=2.0))
>>> plan_capacity(fit, workload, SchedulerSettings(token_budget=512), ttft_ms=500.0).text

Names are loaded when they are first used: what a scheduler asks needs numpy alone, and the simulator numba.
"""

from typing import TYPE_CHECKING

from bayes_sched.lazy import loader

if TYPE_CHECKING:
    from bayes_sched.planning.capacity import plan_capacity
    from bayes_sched.planning.capacity_plan import CapacityPlan
    from bayes_sched.planning.next_step import StepBudget, StepBudgets
    from bayes_sched.planning.optimum import Optimum, optimize_steps
    from bayes_sched.planning.scheduler import SchedulerSettings
    from bayes_sched.planning.server_choice import ServerChoice, ServerLoad, choose_server
    from bayes_sched.planning.workload import Lengths, PoissonWorkload, Workload
    from bayes_sched.planning.workload_file import read_workload

__all__ = [
    "CapacityPlan",
    "Lengths",
    "Optimum",
    "PoissonWorkload",
    "SchedulerSettings",
    "ServerChoice",
    "ServerLoad",
    "StepBudget",
    "StepBudgets",
    "Workload",
    "choose_server",
    "optimize_steps",
    "plan_capacity",
    "read_workload",
]

__getattr__ = loader(
    __name__,
    {
        "CapacityPlan": "capacity_plan",
        "Lengths": "workload",
        "Optimum": "optimum",
        "PoissonWorkload": "workload",
        "SchedulerSettings": "scheduler",
        "ServerChoice": "server_choice",
        "ServerLoad": "server_choice",
        "StepBudget": "next_step",
        "StepBudgets": "next_step",
        "Workload": "workload",
        "choose_server": "server_choice",
        "optimize_steps": "optimum",
        "plan_capacity": "capacity",
        "read_workload": "workload_file",
    },
)
