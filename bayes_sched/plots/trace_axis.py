"""The time axis of the figures of a trace, and pieces of time drawn as steps."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from bayes_sched.analysis import TraceAnalysis
from bayes_sched.plots.points import Floats

_UNITS = ((7200.0, 3600.0, "hours"), (300.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86_400.0
_TICKS_S = (
    *(1.0, 2.0, 5.0, 10.0, 15.0, 30.0),
    *(_MINUTE * n for n in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * n for n in (1, 2, 3, 6, 12)),
    *(_DAY * n for n in (1, 2, 7, 30, 90, 365)),
)
"""Distances that ticks of dates may have."""
_MAX_TICKS = 4.5


class TraceAxis:
    """Where moments of a trace lie on the x axis: dates in UTC, time since its beginning, or batches."""

    def __init__(self, analysis: TraceAnalysis) -> None:
        self.analysis = analysis
        pieces = analysis.over_time
        self.reach = float(pieces["to"].max() - pieces["from"].min())
        _, self._unit_s, self._unit = next(unit for unit in _UNITS if self.reach >= unit[0])

    def place(self, seconds: object) -> Floats:
        """Return the places of moments in seconds since the beginning (or numbers of batches)."""
        values = np.asarray(seconds, float)
        return values / self._unit_s if self.analysis.clock in {"monotonic", "log"} else values

    def label(self, axes: Axes) -> None:
        """Label the x axis and give it readable numbers."""
        if self.analysis.clock == "unix":
            self._label_dates(axes)
        elif self.analysis.clock == "none":
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axes.set_xlabel("number of the batch")
        else:
            start = f"since {self.analysis.start}" if self.analysis.start else "since the trace began"
            axes.set_xlabel(f"{self._unit} {start}")

    def _label_dates(self, axes: Axes) -> None:
        """Put a few dates at even moments; a trace of a blink keeps its seconds since the first batch."""
        every_s = next((step for step in _TICKS_S if self.reach <= _MAX_TICKS * step), _TICKS_S[-1])
        start_s = self.analysis.unix_start_s
        first, last = math.ceil(start_s / every_s), math.floor((start_s + self.reach) / every_s)
        if last - first < 1:
            axes.set_xlabel(f"seconds since {self.analysis.start}")
            return
        template = "%m-%d" if every_s >= _DAY else "%m-%d %Hh" if self.reach >= _DAY else "%H:%M"
        template += ":%S" * (every_s < _MINUTE)
        moments = [every_s * number for number in range(first, last + 1)]
        labels = [f"{datetime.fromtimestamp(moment, UTC):{template}}" for moment in moments]
        axes.set_xticks([moment - start_s for moment in moments], labels)
        axes.set_xlabel(f"time (UTC), from {self.analysis.start[:10]} on")

    def stairs(self, names: list[str]) -> tuple[Floats, list[Floats]]:
        """Return x and the values of some columns of the pieces as flat lines over each piece.

        Where no batch was scheduled for a while, NaN interrupts the lines.
        """
        pieces = self.analysis.over_time
        left, right = pieces["from"].to_numpy(float), pieces["to"].to_numpy(float)
        is_gap = np.append(left[1:] - right[:-1] > 1e-6 * max(self.reach, 1e-9), False)
        x = np.column_stack([left, right, np.where(is_gap, right, np.nan)]).ravel()
        keep = np.isfinite(x)
        lines = [_flat(pieces[name], is_gap)[keep] for name in names]
        return self.place(x[keep]), lines

    def pieces_text(self) -> str:
        """Say how much each piece of the lines stands for."""
        num = len(self.analysis.over_time)
        batches = round(float(self.analysis.over_time["steps"].sum()) / num)
        return f"each line is made of {num:,} piece{'s' * (num > 1)} of about {batches:,} batches"


def _flat(values: pd.Series, is_gap: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Floats:
    y = values.to_numpy(float)
    return np.column_stack([y, y, np.full(len(y), np.nan)]).ravel()
