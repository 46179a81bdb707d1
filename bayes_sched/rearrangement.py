r"""The Knothe-Rosenblatt rearrangement of a Gaussian mixture, as a PyTensor operation.

The rearrangement :math:`x = R(z)` is the smooth, triangular, strictly increasing map that turns a standard
normal :math:`z` into the mixture :math:`q`: coordinate by coordinate, with :math:`F_j` the conditional
distribution function of the mixture,

.. math::  F_j(x_j \mid x_1, \ldots, x_{j-1}) = \Phi(z_j) .

Because R pushes the standard normal :math:`\phi` forward to q, its Jacobian is :math:`\phi(z) / q(R(z))`: a
target density p in the coordinates z is :math:`\phi(z)\, p(x) / q(x)`. Where q is close to p that is close to
a standard normal, however many modes p has. The target stays exact whatever q is; only the efficiency of
sampling depends on q.

Rosenblatt (1952), Annals of Mathematical Statistics 23; Parno and Marzouk (2018), SIAM/ASA JUQ 6, for
transport maps as a preconditioner of Markov chain Monte Carlo.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import disconnected_type
from pytensor.graph.basic import Apply
from pytensor.graph.op import Op
from pytensor.link.numba.dispatch.basic import numba_njit, register_funcify_default_op_cache_key

from bayes_sched.mixture import Floats, GaussianMixture

_SQRT2 = math.sqrt(2.0)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)


@numba.njit
def _conditional_quantile(z, means, scales, weights):  # type: ignore[no-untyped-def]
    """Solve sum_k weights_k Phi((x - means_k) / scales_k) = Phi(z) for x: Newton steps within a bracket.

    The components' own quantiles bracket the root. Tail probabilities are used on the side of z, in
    logarithms, so that the relative accuracy does not depend on how far out z is.
    """
    low, high, x = np.inf, -np.inf, 0.0
    for k in range(means.shape[0]):
        if weights[k] > 0.0:
            own = means[k] + scales[k] * z
            low, high = min(low, own), max(high, own)
            x += weights[k] * own
    if high - low <= 1e-13 * (abs(high) + abs(low)):
        return 0.5 * (low + high)
    side = 1.0 if z > 0.0 else -1.0
    target = math.log(0.5 * math.erfc(abs(z) / _SQRT2))
    for _ in range(100):
        tail = density = 0.0
        for k in range(means.shape[0]):
            y = (x - means[k]) / scales[k]
            tail += weights[k] * 0.5 * math.erfc(side * y / _SQRT2)
            density += weights[k] * math.exp(-0.5 * y * y - _LOG_SQRT_2PI) / scales[k]
        excess = side * (target - math.log(max(tail, 1e-300)))  # increases with x, zero at the root
        if excess > 0.0:
            high = x
        else:
            low = x
        step = x - excess * tail / max(density, 1e-300)
        if not (low < step < high):
            step = 0.5 * (low + high)
        if abs(step - x) <= 1e-13 * (1.0 + abs(step)):
            return step
        x = step
    return x


@numba.njit
def rearrange(z, log_weights, means, inverse_cholesky):  # type: ignore[no-untyped-def]
    """Return R(z), dims (dim,)."""
    num_components, dim = means.shape
    x = np.empty(dim)
    log_posterior = log_weights.copy()
    centres, scales = np.empty(num_components), np.empty(num_components)
    for j in range(dim):
        weights = np.exp(log_posterior - log_posterior.max())
        weights /= weights.sum()
        for k in range(num_components):
            shift = 0.0
            for i in range(j):
                shift += inverse_cholesky[k, j, i] * (x[i] - means[k, i])
            scales[k] = 1.0 / inverse_cholesky[k, j, j]
            centres[k] = means[k, j] - shift * scales[k]
        x[j] = _conditional_quantile(z[j], centres, scales, weights)
        for k in range(num_components):
            log_posterior[k] += -0.5 * ((x[j] - centres[k]) / scales[k]) ** 2 - math.log(scales[k])
    return x


@numba.njit
def rearrange_pullback(z, x, cotangent, log_weights, means, inverse_cholesky):  # type: ignore[no-untyped-def]
    """Return J' cotangent for J = dx/dz. The inverse of J, dz/dx, is explicit and lower triangular."""
    num_components, dim = means.shape
    inverse = np.zeros((dim, dim))
    log_posterior = log_weights.copy()
    slope = np.zeros((num_components, dim))  # d log_posterior_k / d x_i
    for j in range(dim):
        weights = np.exp(log_posterior - log_posterior.max())
        weights /= weights.sum()
        mean_slope = weights @ slope
        side = 1.0 if z[j] > 0.0 else -1.0
        for k in range(num_components):
            y = 0.0
            for i in range(j + 1):
                y += inverse_cholesky[k, j, i] * (x[i] - means[k, i])
            density = weights[k] * math.exp(0.5 * (z[j] * z[j] - y * y))
            tail = (
                weights[k] * 0.5 * math.erfc(side * y / _SQRT2) * math.exp(0.5 * z[j] * z[j] + _LOG_SQRT_2PI)
            )
            for i in range(j):
                inverse[j, i] += density * inverse_cholesky[k, j, i] - side * tail * (
                    slope[k, i] - mean_slope[i]
                )
            inverse[j, j] += density * inverse_cholesky[k, j, j]
            log_posterior[k] += -0.5 * y * y + math.log(inverse_cholesky[k, j, j])
            for i in range(j + 1):
                slope[k, i] -= y * inverse_cholesky[k, j, i]
    out = np.empty(dim)
    for j in range(dim - 1, -1, -1):
        value = cotangent[j]
        for i in range(j + 1, dim):
            value -= inverse[i, j] * out[i]
        out[j] = value / inverse[j, j]
    return out


class _Kernel(Op):  # type: ignore[misc]
    """A vector-valued operation whose implementation is one of the numba kernels above."""

    __props__ = ()
    kernel: Any

    def make_node(self, *inputs: Any) -> Apply[Any, Any]:
        variables = [pt.as_tensor_variable(value) for value in inputs]
        return Apply(self, variables, [pt.vector(dtype="float64", shape=variables[0].type.shape)])

    def perform(self, node: Any, inputs: Any, output_storage: Any) -> None:
        output_storage[0][0] = type(self).kernel(*inputs)


class RearrangementPullback(_Kernel):
    """The gradient of :class:`Rearrangement`."""

    kernel = staticmethod(rearrange_pullback)


class Rearrangement(_Kernel):
    """R(z) with inputs (z, log_weights, means, inverse_cholesky); differentiable in z."""

    kernel = staticmethod(rearrange)

    def connection_pattern(self, node: Any) -> list[list[bool]]:
        """Return which inputs the output is differentiable in: z alone."""
        return [[True], [False], [False], [False]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        """Return the transposed Jacobian times the cotangent, for each input."""
        z, *mixture = inputs
        gradient = RearrangementPullback()(z, outputs[0], cotangents[0], *mixture)
        return [gradient, *(disconnected_type() for _ in mixture)]


@register_funcify_default_op_cache_key(Rearrangement)  # type: ignore[untyped-decorator]
def _(op: Any, **kwargs: Any) -> Any:
    @numba_njit
    def rearrangement(z, log_weights, means, inverse_cholesky):  # type: ignore[no-untyped-def]
        return rearrange(z, log_weights, means, inverse_cholesky)

    return rearrangement


@register_funcify_default_op_cache_key(RearrangementPullback)  # type: ignore[untyped-decorator]
def _(op: Any, **kwargs: Any) -> Any:
    @numba_njit
    def pullback(z, x, cotangent, log_weights, means, inverse_cholesky):  # type: ignore[no-untyped-def]
        return rearrange_pullback(z, x, cotangent, log_weights, means, inverse_cholesky)

    return pullback


def mixture_logpdf(x: Any, log_weights: Any, means: Any, inverse_cholesky: Any) -> Any:
    """Return the log density of a mixture at a vector x, as a PyTensor expression."""
    whitened = (inverse_cholesky * (x - means)[:, None, :]).sum(axis=-1)
    log_scale = pt.log(pt.diagonal(inverse_cholesky, axis1=1, axis2=2)).sum(axis=-1)
    joint = log_weights + log_scale - 0.5 * pt.square(whitened).sum(axis=-1)
    return pt.logsumexp(joint) - x.shape[0] * _LOG_SQRT_2PI


def rearrange_draws(z: Floats, mixture: GaussianMixture) -> Floats:
    """Return R(z) for draws, dims (..., dim)."""
    log_weights = np.log(mixture.weights)
    flat = z.reshape(-1, z.shape[-1])
    out = [rearrange(row, log_weights, mixture.means, mixture.inverse_cholesky) for row in flat]
    return np.array(out).reshape(z.shape)
