r"""Geometry: coordinates fitted to one posterior, in which NUTS moves freely; one set for each mode.

A pilot run approximates the posterior p by a mixture of Gaussians q. Components of q that overlap form a
*part*; NUTS does not cross between parts. With q_g the share of part g in q, the posterior is the sum of the
densities

.. math::  p_g(x) = p(x)\, q_g(x) / q(x) ,

smooth pieces that add up to p whatever q is. Part g is sampled in the coordinates z of the Knothe-Rosenblatt
rearrangement :math:`x = R_g(z)` of q_g, where its density is :math:`\phi(z)\, p(x) / q(x)`: the closer q is
to p, the closer to a standard normal. The mass of each part is a mean of p/q over draws from q (importance
sampling), and the parts are put together in these proportions.

The model is not changed: the mapped model contains its density, so the priors are those of the model file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from numpy.typing import NDArray
from pytensor.graph import rewrite_graph
from pytensor.graph.replace import clone_replace, graph_replace
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from scipy.special import logsumexp

from bayes_sched.mixture import Floats, GaussianMixture
from bayes_sched.rearrangement import Rearrangement, mixture_logpdf, rearrange_draws

if TYPE_CHECKING:
    from bayes_sched.model import Coordinates

#: Bhattacharyya overlap above which two components belong to one part.
_OVERLAP = 0.3
_ABSENT = -1e30  # log weight of a component that is not in the part
_IMPOSSIBLE = -1e300


class Density:
    """The log density of a PyMC model in given coordinates, and its gradient, as a compiled function.

    Parameters
    ----------
    model : pm.Model
        Every free variable is a positive scalar that PyMC samples as its logarithm.
    coordinates : Coordinates
        The bijection to these logarithms.
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


@dataclass(frozen=True)
class Transport:
    """The map from the sampled z to a model's coordinates, for each part of a posterior.

    Attributes
    ----------
    mixture : GaussianMixture
        The approximation q of the posterior.
    """

    mixture: GaussianMixture

    @cached_property
    def part_of_component(self) -> NDArray[np.int64]:
        """Part of each component, dims (component,): single linkage on the overlap of components."""
        means, covariances = self.mixture.means, self.mixture.covariances
        if len(means) == 1:
            return np.zeros(1, dtype=np.int64)
        pair = 0.5 * (covariances[:, None] + covariances[None, :])
        difference = means[:, None] - means[None, :]
        log_det = np.linalg.slogdet(covariances)[1]
        bhattacharyya = (
            np.einsum("abi,abi->ab", difference, np.linalg.solve(pair, difference[..., None])[..., 0]) / 8.0
            + 0.5 * np.linalg.slogdet(pair)[1]
            - 0.25 * (log_det[:, None] + log_det[None, :])
        )
        tree = linkage(squareform(np.maximum(bhattacharyya, 0.0), checks=False), method="single")
        return np.asarray(fcluster(tree, t=-np.log(_OVERLAP), criterion="distance"), dtype=np.int64) - 1

    @property
    def num_parts(self) -> int:
        """Number of parts: modes that NUTS would not cross between."""
        return int(self.part_of_component.max()) + 1

    def part(self, number: int) -> GaussianMixture:
        """Return the components of a part as a mixture of its own, the weights not normalised."""
        member = self.part_of_component == number
        return GaussianMixture(
            self.mixture.weights[member], self.mixture.means[member], self.mixture.covariances[member]
        )

    def data(self, number: int) -> dict[str, Floats]:
        """Return the values of the mapped model's data variables that select a part."""
        log_weights = np.log(self.mixture.weights)
        member = self.part_of_component == number
        return {
            "transport_log_weights": log_weights,
            "transport_part_log_weights": np.where(member, log_weights, _ABSENT),
            "transport_means": self.mixture.means,
            "transport_inverse_cholesky": self.mixture.inverse_cholesky,
        }

    def to_coordinates(self, z: Floats, number: int) -> Floats:
        """Map draws of a part, dims (..., dim), to the model's coordinates."""
        return rearrange_draws(z, self.part(number))

    def masses(self, points: Floats, log_density: Floats) -> Floats:
        """Return the mass of each part of the posterior, dims (part,), from draws of the mixture.

        Parameters
        ----------
        points : ndarray, dims (point, coordinate)
            Draws from the mixture.
        log_density : ndarray, dims (point,)
            Log density of the posterior there.
        """
        joint = self.mixture.component_logpdf(points)
        log_mixture = logsumexp(joint, axis=1)
        ratio = np.exp(log_density - log_mixture - np.max(log_density - log_mixture))
        share = np.exp(joint - log_mixture[:, None])
        mass = np.array(
            [ratio @ share[:, self.part_of_component == g].sum(axis=1) for g in range(self.num_parts)]
        )
        normalised: Floats = mass / mass.sum()
        return normalised


def mapped_model(density: Density, transport: Transport) -> pm.Model:
    """Return the PyMC model of z for part 0.

    The transport's numbers are data: other parts need no compiling.
    """
    with pm.Model(coords={"coordinate": list(density.names)}, check_bounds=False) as model:
        z = pm.Normal("z", dims="coordinate")
        data = {name: pm.Data(name, value) for name, value in transport.data(0).items()}
        means, factors = data["transport_means"], data["transport_inverse_cholesky"]
        x = Rearrangement()(z, data["transport_part_log_weights"], means, factors)
        x = pt.specify_shape(x, (density.dim,))
        (target,) = graph_replace([density.graph], {density.point: x})
        pm.Potential("ratio", target - mixture_logpdf(x, data["transport_log_weights"], means, factors))
    return model
