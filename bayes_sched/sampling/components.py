r"""A posterior as a sum of nearly Gaussian parts, each of which NUTS samples with ease.

A pilot run approximates the posterior p by a mixture q of Gaussians :math:`q_k` (weights included). The
shares :math:`q_k / q` are a partition of unity, so the posterior is exactly the sum of

.. math::  p_k(x) = p(x)\, q_k(x) / q(x) ,

smooth parts that add up to p whatever q is. Part k is sampled in the coordinates z that whiten its Gaussian,
:math:`x = m_k + L_k z`, where its density is :math:`\phi(z)\, p(x) / q(x)`: the closer q is to p, the closer
to a standard normal, however bent p is and however many modes it has. The mass of a part is a mean of
:math:`(p / q)(q_k / q)` over draws from q (importance sampling), and the parts are put together in these
proportions.

The model is not changed: the model of a part contains its density, so the priors are those of the model file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pytensor.compile import SharedVariable
from pytensor.graph import ancestors, rewrite_graph
from pytensor.graph.replace import clone_replace, graph_replace
from scipy.special import logsumexp

from bayes_sched.arrays import Floats
from bayes_sched.sampling.mixture import GaussianMixture

if TYPE_CHECKING:
    from bayes_sched.model.protocol import Coordinates

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


_LOG_SQRT_2PI = 0.5 * float(np.log(2.0 * np.pi))


@dataclass(frozen=True)
class Partition:
    """The parts of a posterior, one for each component of a mixture that resembles it.

    Attributes
    ----------
    mixture : GaussianMixture
        The approximation q of the posterior.
    """

    mixture: GaussianMixture

    def data(self, part: int) -> dict[str, Floats]:
        """Return the values of the part model's data variables that select a part."""
        return {
            "part_mean": self.mixture.means[part],
            "part_cholesky": self.mixture.cholesky[part],
            "mixture_log_weights": self.mixture.log_weights,
            "mixture_means": self.mixture.means,
            "mixture_inverse_cholesky": self.mixture.inverse_cholesky,
        }

    def to_coordinates(self, z: Floats, part: int) -> Floats:
        """Map draws of a part, dims (..., dim), to the model's coordinates."""
        points: Floats = self.mixture.means[part] + z @ self.mixture.cholesky[part].T
        return points

    def log_share(self, points: Floats, part: int) -> Floats:
        """Return the log share q_k / q of a part at points, dims (point,)."""
        joint = self.mixture.component_logpdf(points)
        share: Floats = joint[:, part] - logsumexp(joint, axis=1)
        return share

    def masses(self, points: Floats, log_density: Floats) -> Floats:
        """Return the share of each part in the posterior, dims (part,), from draws of the mixture.

        Parameters
        ----------
        points : ndarray, dims (point, coordinate)
            Draws from the mixture.
        log_density : ndarray, dims (point,)
            Log density of the posterior there, up to a constant.
        """
        joint = self.mixture.component_logpdf(points)
        log_mixture = logsumexp(joint, axis=1)
        log_ratio = log_density - log_mixture
        mass: Floats = np.exp(log_ratio - log_ratio.max()) @ np.exp(joint - log_mixture[:, None])
        return mass / mass.sum()


def part_model(density: Density, partition: Partition) -> pm.Model:
    """Return the PyMC model of z for part 0.

    What selects a part is data: other parts need no compiling.
    """
    with pm.Model(coords={"coordinate": list(density.names)}, check_bounds=False) as model:
        z = pm.Normal("z", dims="coordinate")
        data = {name: pm.Data(name, value) for name, value in partition.data(0).items()}
        x = pt.specify_shape(data["part_mean"] + data["part_cholesky"] @ z, (density.dim,))
        (target,) = graph_replace([density.graph], {density.point: x})
        mixture = (data["mixture_log_weights"], data["mixture_means"], data["mixture_inverse_cholesky"])
        pm.Potential("ratio", target - _mixture_logpdf(x, *mixture))
    return model


def _mixture_logpdf(x: Any, log_weights: Any, means: Any, inverse_cholesky: Any) -> Any:
    """Return the log density of a mixture at a vector x, as a PyTensor expression."""
    whitened = (inverse_cholesky * (x - means)[:, None, :]).sum(axis=-1)
    log_scale = pt.log(pt.diagonal(inverse_cholesky, axis1=1, axis2=2)).sum(axis=-1)
    joint = log_weights + log_scale - 0.5 * pt.square(whitened).sum(axis=-1)
    return pt.logsumexp(joint) - x.shape[0] * _LOG_SQRT_2PI
