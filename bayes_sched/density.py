"""The log density of a PyMC model in coordinates of our choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.compile import SharedVariable
from pytensor.graph import ancestors, rewrite_graph
from pytensor.graph.replace import clone_replace

from bayes_sched.mixture import Floats

if TYPE_CHECKING:
    from bayes_sched.model import Coordinates

_IMPOSSIBLE = -1e300


class Density:
    """The log density of a PyMC model in given coordinates, and its gradient, as a compiled function.

    Parameters
    ----------
    model : pm.Model
        Every free variable is a positive scalar, which PyMC samples as its logarithm, or an effect's vector
        of log factors, which it samples as it is.
    coordinates : Coordinates
        The bijection to these values.

    Attributes
    ----------
    data_names : frozenset of str
        The shared variables that the density depends on: data of the model and of the coordinates.
    """

    def __init__(self, model: pm.Model, coordinates: Coordinates) -> None:
        self.coordinates = coordinates
        self.names = coordinates.names
        self.dim = len(self.names)
        self.num_evaluations = 0
        self.point = pt.vector("coordinates", shape=(self.dim,))
        logs, log_jacobian = coordinates.to_logs(self.point, pt)
        values = {model.rvs_to_values[model[name]]: value for name, value in logs.items()}
        (density,) = clone_replace([model.logp(jacobian=True)], values)
        # Parameters are positive by construction; a check would raise an exception where rounding gives 0.
        self.graph: Any = rewrite_graph(
            density + log_jacobian, include=("canonicalize", "stabilize", "local_remove_check_parameter")
        )
        shared = (v for v in ancestors([self.graph]) if isinstance(v, SharedVariable))
        self.data_names = frozenset(v.name for v in shared)
        with np.errstate(all="ignore"):
            self._function = pytensor.function(
                [self.point], [self.graph, pt.grad(self.graph, self.point)], mode="NUMBA"
            )
        self._function.trust_input = True

    def __call__(self, point: Floats) -> tuple[float, Floats]:
        """Return the log density and its gradient. Without a finite density a point is impossible."""
        self.num_evaluations += 1
        with np.errstate(all="ignore"):
            value, gradient = self._function(point)
        if np.isfinite(value) and np.isfinite(gradient).all():
            return float(value), gradient
        return _IMPOSSIBLE, np.zeros(self.dim)

    def values(self, points: Floats) -> Floats:
        """Return the log density at points, dims (point,)."""
        return np.array([self(point)[0] for point in points])
