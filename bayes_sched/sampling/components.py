r"""A posterior as a sum of nearly Gaussian components, each of which NUTS samples with ease.

Exploration approximates the posterior p by a mixture q of Gaussians :math:`q_k` (weights included). The
shares :math:`q_k / q` are a partition of unity, so the posterior is exactly the sum of

.. math::  p_k(x) = p(x)\, q_k(x) / q(x) ,

smooth components that add up to p whatever q is. Component k is sampled in the coordinates z that whiten its
Gaussian, :math:`x = m_k + L_k z`, where its density is :math:`\phi(z)\, p(x) / q(x)`: the closer q is to p,
the closer to a standard normal, however bent p is and however many modes it has. The mass of a component is a
mean of :math:`(p / q)(q_k / q)` over draws from q (importance sampling), and the components are put together
in these proportions.

The model is not changed: that of a component contains its density, so the priors are those of the model file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.compile import SharedVariable
from pytensor.graph import ancestors, rewrite_graph
from pytensor.graph.replace import clone_replace, graph_replace
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.compiler.arithmetic import UnsupportedError
from bayes_sched.compiler.function import BoundFunction, CompiledFunction
from bayes_sched.model.protocol import Coordinates
from bayes_sched.sampling.mixture import GaussianMixture

_IMPOSSIBLE = -1e300
_LOG_SQRT_2PI = 0.5 * float(np.log(2.0 * np.pi))


class Density:
    """The log density of a PyMC model in given coordinates and its gradient, as machine code.

    Every free variable of the model is a positive scalar, which PyMC samples as its logarithm, or an effect's
    vector of log factors, which it samples as it is: to these values the coordinates are a bijection. One
    function serves this density and every component of it, because what selects one is data. What the
    compiler does not know PyTensor compiles, which takes long; :attr:`unsupported` names it, and `tell` hears
    of it.
    """

    def __init__(
        self,
        model: pm.Model,
        coordinates: Coordinates,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.names = coordinates.names
        self.dim = len(self.names)
        self.num_evaluations = 0
        self.unsupported = ""
        self.point = pt.vector("coordinates", shape=(self.dim,))
        try:
            with pytensor.config.change_flags(traceback__limit=0):  # nobody asks where a variable was made
                self.graph: Any = self._graph(model, coordinates)
                # The data of the model and of the coordinates that the density depends on.
                self._data = tuple(v for v in ancestors([self.graph]) if isinstance(v, SharedVariable))
                self.data_names = frozenset(v.name for v in self._data)
                self._compiled = self._compile()
            self.rebind()
        except UnsupportedError as error:
            self.unsupported = str(error)
            tell(f"compiling by PyTensor, which takes minutes ({error} is not known to the quick compiler)")
            with np.errstate(all="ignore"):
                function = pytensor.function(
                    [self.point], [self.graph, pt.grad(self.graph, self.point)], mode="NUMBA"
                )
            function.trust_input = True
            self._function = function

    def _graph(self, model: pm.Model, coordinates: Coordinates) -> Any:
        """Return the log density at the point."""
        logs, log_jacobian = coordinates.to_logs(self.point, pt)
        values = {model.rvs_to_values[model[name]]: value for name, value in logs.items()}
        (density,) = clone_replace([model.logp(jacobian=True)], values)
        # Parameters are positive by construction; a check would raise an exception where rounding gives 0.
        return rewrite_graph(
            density + log_jacobian, include=("canonicalize", "stabilize", "local_remove_check_parameter")
        )

    def _compile(self) -> CompiledFunction:
        """Compile the density of a component, for data that are given later."""
        z = pt.vector("z", shape=(self.dim,))
        self._selection = {name: pytensor.shared(value, name) for name, value in _whole(self.dim).items()}
        given = self._selection
        x = given["component_mean"] + (given["component_cholesky"] * z).sum(axis=-1)
        (target,) = graph_replace([self.graph], {self.point: pt.specify_shape(x, (self.dim,))})
        normal = -0.5 * pt.square(z).sum() - self.dim * _LOG_SQRT_2PI
        value = target + given["is_component"] * (normal - _mixture_logpdf(x, given))
        return CompiledFunction(value, pt.grad(value, z), z, (*self._data, *given.values()))

    def rebind(self) -> None:
        """Take the values that the model's and the coordinates' data now have."""
        if not self.unsupported:
            self._values = {v: v.get_value() for v in self._data}
            self._function = self.component(_whole(self.dim))

    def component(self, data: Mapping[str, Any]) -> BoundFunction:
        """Return the density of z that data as of :meth:`Components.data` select."""
        selection = {self._selection[name]: data[name] for name in self._selection}
        return self._compiled.bind(self._values | selection)

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


def _whole(dim: int) -> dict[str, Any]:
    """Return the data that select all of a density, in its own coordinates."""
    return {
        "is_component": np.float64(0.0),
        "component_mean": np.zeros(dim),
        "component_cholesky": np.eye(dim),
        "mixture_log_scales": np.zeros(1),
        "mixture_means": np.zeros((1, dim)),
        "mixture_inverse_cholesky": np.zeros((1, dim, dim)),
    }


@dataclass(frozen=True)
class Components:
    """The components of a posterior, one for each of the mixture q that resembles it."""

    mixture: GaussianMixture

    def data(self, number: int) -> dict[str, Any]:
        """Return the values of the data variables that select a component."""
        diagonal = np.diagonal(self.mixture.inverse_cholesky, axis1=1, axis2=2)
        return {
            "is_component": np.float64(1.0),
            "component_mean": self.mixture.means[number],
            "component_cholesky": self.mixture.cholesky[number],
            "mixture_log_scales": self.mixture.log_weights + np.log(diagonal).sum(axis=1),
            "mixture_means": self.mixture.means,
            "mixture_inverse_cholesky": self.mixture.inverse_cholesky,
        }

    def to_coordinates(self, z: Floats, number: int) -> Floats:
        """Map draws of a component, dims (..., dim), to the model's coordinates."""
        points: Floats = self.mixture.means[number] + z @ self.mixture.cholesky[number].T
        return points

    def masses(self, points: Floats, log_density: Floats) -> Floats:
        """Return the shares of the components, dims (component,), by importance sampling.

        From draws of the mixture and the log density of the posterior there, up to a constant.
        """
        joint = self.mixture.component_logpdf(points)
        log_mixture = logsumexp(joint, axis=1)
        log_ratio = log_density - log_mixture
        mass: Floats = np.exp(log_ratio - log_ratio.max()) @ np.exp(joint - log_mixture[:, None])
        return mass / mass.sum()


def component_model(density: Density, components: Components) -> pm.Model:
    """Return the PyMC model of z for component 0; what selects one is data, so others need no compiling."""
    with pm.Model(coords={"coordinate": list(density.names)}, check_bounds=False) as model:
        z = pm.Normal("z", dims="coordinate")
        data = {name: pm.Data(name, value) for name, value in components.data(0).items()}
        x = pt.specify_shape(data["component_mean"] + data["component_cholesky"] @ z, (density.dim,))
        (target,) = graph_replace([density.graph], {density.point: x})
        pm.Potential("ratio", data["is_component"] * (target - _mixture_logpdf(x, data)))
    return model


def _mixture_logpdf(x: Any, data: Mapping[str, Any]) -> Any:
    """Return the log density of a mixture at a vector x, as a PyTensor expression."""
    whitened = (data["mixture_inverse_cholesky"] * (x - data["mixture_means"])[:, None, :]).sum(axis=-1)
    joint = data["mixture_log_scales"] - 0.5 * pt.square(whitened).sum(axis=-1)
    highest = joint.max()
    return highest + pt.log(pt.exp(joint - highest).sum()) - x.shape[0] * _LOG_SQRT_2PI
