r"""The prior of a server that belongs to a population: what other servers tell about it.

What data identify of a server, z (:mod:`bayes_sched.identified`), follows the posterior predictive
distribution of the population, a mixture over its draws h,

.. math::  p(z) = \frac{1}{H} \sum_h \prod_k \mathrm{Normal}(z_k \mid \mu_{hk}, \omega_{hk}),

and given z the parameters are distributed as the documented priors :math:`p_0` have them. A server may be
unlike any before, so that a share :math:`\epsilon` is left to the documented priors (a robust
meta-analytic-predictive prior: Schmidli, Gsteiger, Roychoudhury, O'Hagan, Spiegelhalter and Neuenschwander
2014, doi:10.1111/biom.12242):

.. math::

    p(\theta) = p_0(\theta) \left[ (1 - \epsilon) \frac{p(z(\theta))}{p_0(z(\theta))} + \epsilon \right].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayes_sched.errors import InputError
from bayes_sched.identified import complete, identified, identified_names, log_documented, log_normal

if TYPE_CHECKING:
    from bayes_sched.priors import Priors

Floats = NDArray[np.float64]

DOCUMENTED_SHARE = 0.2
"""Share of a new trace's prior that is left to the documented priors."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PopulationPrior:
    """What is known of a server before its own trace is seen.

    Attributes
    ----------
    names : tuple of str
        The coordinates that servers share.
    mean, sd : ndarray, dims (component, coordinate)
        Of the logarithm of each coordinate.
    text : str
        Whose prior it is, in words.
    documented_share : float
        Share that is left to the documented priors.
    """

    names: tuple[str, ...]
    mean: Floats
    sd: Floats
    text: str
    documented_share: float = DOCUMENTED_SHARE

    def check(self, priors: Priors) -> None:
        """Make sure that a model with these priors has the population's coordinates.

        Raises
        ------
        InputError
            It lacks one.
        """
        missing = sorted(set(self.names) - set(identified_names(priors)))
        if missing:
            names = ", ".join(missing)
            msg = f"the pool tells of {names}, which this model lacks: use the pool's model and noise"
            raise InputError(msg)

    def log_ratio(self, logs: Mapping[str, Any], priors: Priors, backend: Any) -> Any:
        """Return the log of this prior's density over that of the documented `priors`, dims of `logs`.

        Parameters
        ----------
        logs : mapping of str to array-like or TensorVariable
            Logarithms of every parameter.
        priors : Priors
        backend : module
            :mod:`numpy` or :mod:`pytensor.tensor`.
        """
        z = identified(logs, self.names, backend)
        each = log_normal(z[..., None, :], self.mean, self.sd, backend).sum(axis=-1)
        mixture = logsumexp(each, axis=-1) if backend is np else backend.logsumexp(each, axis=-1)
        ratio = mixture - np.log(len(self.mean)) - log_documented(z, self.names, priors, backend)
        if self.documented_share == 0.0:
            return ratio
        share = np.log(self.documented_share)
        return backend.logaddexp(np.log1p(-self.documented_share) + ratio, share)

    def draw(self, priors: Priors, size: int, rng: np.random.Generator) -> dict[str, Floats]:
        """Draw logarithms of every parameter, dims (size,)."""
        component = np.arange(size) % len(self.mean)
        z = rng.normal(self.mean[component], self.sd[component])
        drawn = complete(z, self.names, priors, rng)
        is_documented = rng.uniform(size=size) < self.documented_share
        return {
            name: np.where(is_documented, rng.normal(prior.mu, prior.sigma, size), drawn[name])
            for name, prior in priors.items()
        }
