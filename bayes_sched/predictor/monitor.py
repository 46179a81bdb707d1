r"""Whether a model still describes the server, step by step, in constant memory.

*Level.* The server's latency over the model's, a weighted mean of log ratios that forgets: weights are
inverse variances, cut for steps far away (Huber) so that single slow steps hardly count.

*Alarm.* Three bets against "the server is as the model says, give or take a tolerance :math:`\delta`": given
all that went before, a step is stochastically no slower than :math:`1 + \delta` times the model's and no
faster than the model's over :math:`1 + \delta`. With :math:`u = F(T / (1 + \delta))` and
:math:`v = F(T (1 + \delta))`, the factors

.. math:: e = 1 + \lambda (2 u - 1), \qquad 1 + \lambda (1 - 2 v), \qquad
          1 + \lambda' (1_{u > 0.95 \text{ or } v < 0.05} / 0.1 - 1)

(slower, faster, erratic) then have an expectation of at most 1. :math:`R_t = e_t (R_{t-1} + 1)`, the
Shiryaev-Roberts e-detector of Shin, Ramdas and Rinaldo (E-detectors: a nonparametric framework for sequential
change detection, New England Journal of Statistics in Data Science, 2023), has :math:`E R_\tau \le E \tau`
for every stopping time, so that one of them reaches a threshold c within N steps with probability at most
N/c, whatever the noise and the mix of steps. Without the tolerance every server would raise the alarm:
latencies wander by some per cent with what the equation leaves out, for hundreds of steps together. It is
calibrated: the trace that the fit was made of is replayed, and the tolerance is the smallest with which that
comes nowhere near an alarm, however its residuals hang together. The bets are small so that a slow stretch of
some dozen steps, as a long prompt makes, is none either; the soonest an alarm can come is some hundred steps
after a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

from bayes_sched.errors import InputError
from bayes_sched.predictor.tables import Distribution, logit_below

NUM_BINS = 20
"""Bins of the histogram of probability integral transforms; the 90 % band is all but the outer two."""

_KINDS = ("slower", "faster", "erratic")
_LEVEL_BET = 0.1  # lambda: with 0.25 a slow stretch of 60 steps, as a long prompt makes, would be an alarm
_SPREAD_BET = 0.015  # lambda': evidence grows once 11 % of steps are outside
_CLEAR_DIRECTION = 1e3  # evidence of slower or faster by which an alarm for steps outside is named after it
_TOLERANCES = (0.05, 0.06, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0)
_FAR_FROM_ALARM = (
    1e-3  # largest evidence of a trace over an alarm's: its other steps may wander somewhat more
)
_HUBER = 2.0  # widths from which on a step's weight falls
_LARGEST_WEIGHT = 1e100


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """How a predictor watches the server; InputError for a value that makes no sense."""

    tolerance: float | None = None
    """How far the level may be off before that counts as drift, relative; None: as calibrated."""
    false_alarm_rate: float = 1e-6
    """Bound on the probability of a false alarm, for each step."""
    memory: float = 200.0
    """Steps over which level, coverage and histogram forget (a step's weight falls by e)."""
    anomaly_probability: float = 1e-3
    """A step is anomalous if its two-sided tail probability is smaller."""
    follow_level: bool = True
    """Whether answers are corrected by the level."""

    def __post_init__(self) -> None:
        limits = {
            "tolerance": (0.0, 10.0),
            "false_alarm_rate": (1e-300, 0.1),
            "memory": (2.0, 1e9),
            "anomaly_probability": (0.0, 0.5),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name} = {value!r}: give a number from {low:g} to {high:g}")


class Alarm(NamedTuple):
    """The model does not describe the server."""

    kind: str  # slower, faster or erratic (more than 10 % of steps outside the widened 90 % band)
    num_steps: int  # until then
    level: float  # the server's latency over the model's

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        how = "more erratic" if self.kind == "erratic" else self.kind
        return (
            f"After {self.num_steps:,} steps the server is {how} than the fit says (level {self.level:.3f}): "
            "fit a trace of it as it is."
        )


class Observation(NamedTuple):
    """What one step's latency says, by the answers before it."""

    probability_below: float
    tail_probability: float  # two-sided
    anomalous: bool  # the tail probability is below the limit, inside the region
    extrapolation: bool  # outside of it: the step counts for nothing else
    alarm: Alarm | None  # stays until the monitor is reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What the monitor learned from the trace that the fit was made of; see :func:`calibrated`."""

    tolerance: float = 0.075
    """Within which the level of the server wanders by itself, with what the model leaves out."""
    evidence: float = float("nan")
    """The largest evidence that the trace itself gave, over an alarm's; NaN where it was not replayed."""


class Monitor:
    """Keeps count of how a server's latencies compare with a model's; `level` is the one over the other.

    `num_steps` were observed inside the region, `num_anomalous` of them anomalous, `num_outside` outside.
    """

    def __init__(self, settings: MonitorSettings, calibration: Calibration) -> None:
        self.settings = settings
        self.tolerance = calibration.tolerance if settings.tolerance is None else settings.tolerance
        self.reset()

    def reset(self) -> None:
        """Forget everything: the level is 1, there is no alarm."""
        self.num_steps = self.num_anomalous = self.num_outside = 0
        self.level = 1.0
        self._level_sum = self._level_weight = 0.0
        self.clear_alarm()
        self._bins = [0.0] * NUM_BINS
        self._weight = 1.0
        self._keep = exp(-1.0 / self.settings.memory)
        self._factor = 1.0 + self.tolerance
        self._threshold = len(_KINDS) / self.settings.false_alarm_rate

    def clear_alarm(self) -> None:
        """Begin the tests afresh and keep the level, the histogram and the counts."""
        self.alarm: Alarm | None = None
        self._evidence = [0.0, 0.0, 0.0]

    @property
    def histogram(self) -> list[float]:
        """Shares of recent steps in `NUM_BINS` even bins of P(latency <= observed): even if all is well."""
        total = sum(self._bins) or 1.0
        return [share / total for share in self._bins]

    @property
    def coverage(self) -> float:
        """Share of recent steps inside the 90 % band of the answers; NaN before the first step."""
        total = sum(self._bins)
        return sum(self._bins[1:-1]) / total if total else float("nan")

    @property
    def evidence(self) -> dict[str, float]:
        """Evidence of each kind of alarm over its threshold; the alarm is raised at 1."""
        return {kind: value / self._threshold for kind, value in zip(_KINDS, self._evidence, strict=True)}

    def observe(self, step: Distribution, latency_ms: float, *, extrapolation: bool) -> Observation:
        """Take in one step; arguments are trusted."""
        factor = self._factor
        level = self.level if self.settings.follow_level else 1.0
        logit = logit_below(step, latency_ms / level)
        below = 1.0 / (1.0 + exp(-logit))
        tail = 2.0 / (1.0 + exp(abs(logit)))
        if extrapolation:
            self.num_outside += 1
            return Observation(below, tail, False, True, self.alarm)
        self.num_steps += 1
        anomalous = tail < self.settings.anomaly_probability
        self.num_anomalous += anomalous
        self._count(below)
        self._follow(log(latency_ms / step[0]), step[1] / step[0])
        if self.alarm is None:
            high = 1.0 / (1.0 + exp(-logit_below(step, latency_ms / factor)))
            low = 1.0 / (1.0 + exp(-logit_below(step, latency_ms * factor)))
            self._bet(high, low)
        return Observation(below, tail, anomalous, False, self.alarm)

    def _count(self, below: float) -> None:
        """Enter a step in the histogram; its weight grows instead of the others' falling."""
        self._bins[min(int(below * NUM_BINS), NUM_BINS - 1)] += self._weight
        self._weight /= self._keep
        if self._weight > _LARGEST_WEIGHT:
            self._bins = [share / self._weight for share in self._bins]
            self._weight = 1.0

    def _follow(self, log_ratio: float, relative_width: float) -> None:
        precision = 1.0 / (relative_width * relative_width)
        if self._level_weight == 0.0:  # as if a memory of steps had been seen at level 1
            self._level_weight = self.settings.memory * precision
        distance = abs(log_ratio - log(self.level)) / relative_width
        weight = precision if distance <= _HUBER else precision * _HUBER / distance
        self._level_sum = self._keep * self._level_sum + weight * log_ratio
        self._level_weight = self._keep * self._level_weight + weight
        self.level = exp(self._level_sum / self._level_weight)

    def _bet(self, high: float, low: float) -> None:
        slower, faster, erratic = self._evidence
        slower = (slower + 1.0) * (1.0 + _LEVEL_BET * (2.0 * high - 1.0))
        faster = (faster + 1.0) * (1.0 + _LEVEL_BET * (1.0 - 2.0 * low))
        outside = high > 0.95 or low < 0.05
        erratic = (erratic + 1.0) * (1.0 + (9.0 * _SPREAD_BET if outside else -_SPREAD_BET))
        self._evidence = [slower, faster, erratic]
        if max(slower, faster, erratic) >= self._threshold:
            direction = "slower" if slower > faster else "faster"
            kind = direction if max(slower, faster) > _CLEAR_DIRECTION else "erratic"
            self.alarm = Alarm(kind, self.num_steps, self.level)


def calibrated(replays: Sequence[Sequence[tuple[Distribution, float]]]) -> Calibration:
    """Return the smallest tolerance with which steps and their latencies, ms, come nowhere near an alarm."""
    found = Calibration()
    for tolerance in _TOLERANCES:
        settings, largest = MonitorSettings(tolerance=tolerance, follow_level=False), 0.0
        for steps in replays:
            monitor = Monitor(settings, found)
            for step, latency_ms in steps:
                monitor.observe(step, latency_ms, extrapolation=False)
                largest = max(largest, *monitor.evidence.values())
        found = Calibration(tolerance=tolerance, evidence=largest)
        if largest <= _FAR_FROM_ALARM:
            break
    return found
