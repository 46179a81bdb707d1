"""How long steps take, tabulated for each posterior draw, so that a replay need not ask the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.fitted import FittedModel
from bayes_sched.planning.replay_kernel import StepTable
from bayes_sched.prediction import Evaluator, PerDraw
from bayes_sched.sla.trust import check_columns
from bayes_sched.steps import POSSIBLE

_EXACT = 32
_RATIO = 1.03

type Floats = NDArray[np.float64]
type Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StepTimes:
    """Location and scale of the step times of some draws, at nodes of B and S.

    Nodes are every number up to 32 and 3 % apart from there; between them both are linear, which is within a
    thousandth of the model's own answer for the saturation equation.

    Attributes
    ----------
    mean_ms, scale_ms : ndarray, dims (draw, node_b, node_s)
    nu : ndarray, dims (draw,)
        Degrees of freedom of the noise; 0: no noise.
    nodes_b, nodes_s : ndarray, dims (node,)
        Requests and tokens of the nodes.
    longest_ms : float
        A step lasts at most this (or three times its mean): the longest latency that the fit's trace was
        cleaned to. Beyond it the noise's tail has seen no data.
    """

    mean_ms: Floats
    scale_ms: Floats
    nu: Floats
    nodes_b: Ints
    nodes_s: Ints
    longest_ms: float

    @classmethod
    def of(cls, fit: FittedModel, *, max_batch_size: int, max_tokens: int, max_draws: int) -> StepTimes:
        """Tabulate a fit.

        Raises
        ------
        InputError
            The fit's model needs more of a step than B and S.
        """
        check_columns(fit)
        evaluator = Evaluator(fit.model, fit.posterior, max_draws=max_draws)
        nodes_b, nodes_s = _nodes(max_batch_size), _nodes(max_tokens)
        b, s = (axis.ravel() for axis in np.meshgrid(nodes_b, nodes_s, indexing="ij"))
        steps = xr.Dataset(
            {
                "batch_size": ("step", b.astype(np.float64)),
                "total_tokens": ("step", s.astype(np.float64)),
                # Corners of cells may have fewer tokens than requests: the equation holds there too.
                POSSIBLE: ("step", np.ones(b.size, dtype=bool)),
            }
        )

        def tabulated(function: PerDraw) -> Floats:
            values = evaluator.per_draw(steps, function).transpose("chain", "draw", "step")
            return np.ascontiguousarray(values, dtype=np.float64).reshape(-1, len(nodes_b), len(nodes_s))

        nu = tabulated(lambda mean, scale, nu, x: nu + 0.0 * mean)[:, 0, 0]
        cleaning = fit.metadata.cleaning
        return cls(
            tabulated(lambda mean, scale, nu, x: mean),
            tabulated(lambda mean, scale, nu, x: scale),
            np.ascontiguousarray(nu),
            nodes_b,
            nodes_s,
            float(cleaning.max_latency_ms),
        )

    @property
    def num_draws(self) -> int:
        """How many draws there are."""
        return len(self.nu)

    @property
    def max_batch_size(self) -> int:
        """Most requests of a step."""
        return int(self.nodes_b[-1])

    @property
    def max_tokens(self) -> int:
        """Most tokens of a step."""
        return int(self.nodes_s[-1])

    def table(self, draw: int, *, overhead_ms: float) -> StepTable:
        """Return the step times of one draw as a replay reads them."""
        (left_b, share_b), (left_s, share_s) = _places(self.nodes_b), _places(self.nodes_s)
        return StepTable(
            self.mean_ms[draw],
            self.scale_ms[draw],
            left_b,
            share_b,
            left_s,
            share_s,
            float(self.nu[draw]),
            self.longest_ms,
            overhead_ms,
        )


def _nodes(last: int) -> Ints:
    """Return the nodes from 1 to at least `last`, two of them at least."""
    last = max(last, 2)
    exact = np.arange(1, min(_EXACT, last) + 1)
    if last <= _EXACT:
        return exact
    num = int(np.ceil(np.log(last / _EXACT) / np.log(_RATIO))) + 1
    return np.unique(np.concatenate([exact, np.rint(np.geomspace(_EXACT, last, num)).astype(np.int64)]))


def _places(nodes: Ints) -> tuple[Ints, Floats]:
    """Return the node below each number, and the share of the way to the next, dims (number,)."""
    numbers = np.arange(nodes[-1] + 1)
    left = np.clip(np.searchsorted(nodes, numbers, side="right") - 1, 0, len(nodes) - 2)
    return left, np.clip((numbers - nodes[left]) / np.diff(nodes)[left], 0.0, 1.0)
