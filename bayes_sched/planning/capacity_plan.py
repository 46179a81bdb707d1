"""Whether a workload can be carried, and by how many servers: the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.fitted import FittedModel
from bayes_sched.planning.measures import NAMES
from bayes_sched.planning.scheduler import SchedulerSettings
from bayes_sched.planning.simulation import Simulation
from bayes_sched.planning.workload import AnyWorkload
from bayes_sched.sla import Objective
from bayes_sched.sla.words import chance, sureness

_WORTH_SAYING = 0.01
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False, kw_only=True)
class CapacityPlan:
    """Whether a workload can be carried, and by how many servers.

    Attributes
    ----------
    fit : FittedModel
    workload : Workload or PoissonWorkload
    settings : SchedulerSettings
    objectives : Mapping of str to (Objective or None)
        Limits on ``ttft``, ``tpot`` and ``e2e``.
    confidence : float
        Asked.
    probability : float
        Of intervals over draws.
    simulations : tuple of Simulation
        All that were tried, by their number of replicas.
    asked_replicas : int or None
        The number that was to be judged; None: the smallest was sought.
    max_replicas : int
        How far it was sought.
    replicas : int or None
        The number that was asked for, if it will do, or the smallest that will; None where there is none.
    alone : Simulation or None
        What requests do that have a server for themselves, where one server was not enough.
    extrapolates : bool
    refusals : tuple of str
        Reasons, besides the numbers, why nothing is promised.
    """

    fit: FittedModel
    workload: AnyWorkload
    settings: SchedulerSettings
    objectives: Mapping[str, Objective | None]
    confidence: float
    probability: float
    simulations: tuple[Simulation, ...]
    asked_replicas: int | None
    max_replicas: int
    replicas: int | None
    alone: Simulation | None
    extrapolates: bool
    refusals: tuple[str, ...]

    @property
    def is_promised(self) -> bool:
        """Whether the plan can be made."""
        return self.replicas is not None and not self.refusals

    @property
    def shown(self) -> Simulation:
        """The simulation of the number that will do, or else of the largest tried."""
        of = {simulation.replicas: simulation for simulation in self.simulations}
        return of[self.replicas] if self.replicas is not None else self.simulations[-1]

    @property
    def num_steps(self) -> int:
        """Scheduler steps simulated in all."""
        return sum(simulation.num_steps for simulation in self._all)

    @property
    def steps_per_second(self) -> float:
        """How fast they were simulated."""
        return self.num_steps / max(sum(simulation.seconds for simulation in self._all), 1e-9)

    @property
    def _all(self) -> tuple[Simulation, ...]:
        return self.simulations if self.alone is None else (*self.simulations, self.alone)

    @property
    def table(self) -> pd.DataFrame:
        """One row a number of replicas: ``confidence``, ``p_overloaded``, and intervals of the measures."""
        rows = []
        for simulation in self.simulations:
            row = simulation.to_dict(probability=self.probability)
            flat = {
                name: row[name]
                for name in ("replicas", "confidence", "p_overloaded", "extrapolated", "num_draws")
            }
            for name in ("all_within", "queue_mean", "queue_p95", "utilisation", "in_system"):
                flat |= {f"{name}_{end}": value for end, value in row[name].items()}
            for key, time in row["times"].items():
                for level in ("p50_ms", "p95_ms", "p99_ms"):
                    flat |= {f"{key}_{level}_{end}": value for end, value in time[level].items()}
                if "within" in time:
                    flat |= {f"{key}_within_{end}": value for end, value in time["within"].items()}
                    flat[f"{key}_confidence"] = time["confidence"]
            rows.append(flat)
        return pd.DataFrame(rows)

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        parts = [self._verdict_text(), self._overload_text(), self._outside_text(), *self.refusals]
        return " ".join(part for part in parts if part)

    def _verdict_text(self) -> str:
        shown, sure = self.shown, f"at {100 * self.confidence:g}% confidence"
        is_one = shown.replicas == 1
        goal = "every limit" if shown.asked else "up with the arrivals"
        servers = f"{shown.replicas:,} server{'' if is_one else 's'}"
        if self.replicas is not None:
            least = "" if self.asked_replicas is not None else ", the fewest that will do"
            verb = "keeps" if is_one else "keep"
            return f"{servers} {verb} {goal} {sure}{least} (confidence {sureness(shown.confidence)})."
        if self.alone is not None and self.alone.confidence < self.confidence - _ROUNDING:
            worst = min(self.alone.asked, key=lambda key: float(self.alone.is_kept(key).mean()))  # type: ignore[union-attr]
            objective = self.objectives[worst]
            limit = "" if objective is None else f" within {objective.limit_ms:g} ms"
            share = chance(float(self.alone.within(worst).mean()))
            return (
                "No number of servers will do: even a request that has one for itself keeps its "
                f"{NAMES[worst]}{limit} too rarely ({share} of them do)."
            )
        up_to = "" if self.asked_replicas is not None else f", and no number up to {self.max_replicas:,} does"
        verb = "does" if is_one else "do"
        known = f"confidence {sureness(shown.confidence)}"
        return f"{servers} {verb} NOT keep {goal} {sure} ({known}){up_to}."

    def _overload_text(self) -> str:
        shown = self.shown
        if not shown.p_overloaded:
            return ""
        growth = float(np.median(shown.values("growth")))
        return (
            f"OVERLOAD in {chance(shown.p_overloaded)} of the draws: more requests come than are served, and "
            f"the queue grows by {100 * growth:.0f} in 100 arrivals (median); times are those of a finite "
            "workload and grow with it."
        )

    def _outside_text(self) -> str:
        share = self.shown.extrapolated
        if share < _WORTH_SAYING:
            return ""
        return (
            f"EXTRAPOLATION: {100 * share:.0f}% of the simulated time lies in steps that the trace does not "
            "cover (few requests, or rare combinations): there, times rest on the equation."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "workload": self.workload.text,
            "settings": asdict(self.settings),
            "is_promised": self.is_promised,
            "replicas": self.replicas,
            "asked_replicas": self.asked_replicas,
            "max_replicas": self.max_replicas,
            "confidence": self.confidence,
            "probability": self.probability,
            "text": self.text,
            "refusals": list(self.refusals),
            "simulations": [each.to_dict(probability=self.probability) for each in self.simulations],
            "alone": None if self.alone is None else self.alone.to_dict(probability=self.probability),
            "num_steps": self.num_steps,
            "steps_per_second": round(self.steps_per_second),
        }
